"""What a table is: `TableSpec` and `Field`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from carls_jax.bank.compact import FORMS, stored_dtype, stored_shape
from carls_jax.bank.initializers import Initializer, zeros
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.limits import Limit
from carls_jax.bank.optimizers import OptimizerSpec
from carls_jax.errors import (
    DtypeError,
    FieldNotFoundError,
    InvalidInputError,
    ShapeError,
    SpecMismatchError,
)

DTYPES = (
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool",
)  # fmt: skip
MAX_FIELDS = 256
MAX_ROW_BYTES = 1 << 24  # of one field
MAX_TABLE_ROW_BYTES = 1 << 26
MAX_DIMENSIONS = 8
MAX_HISTORY = 1024
MAX_NAME_LETTERS = 256
# 2**28 rows of 512 bytes reserve 128 GiB of addresses and no memory.
DEFAULT_MAX_ROWS = 1 << 28

_PART = r"[A-Za-z0-9_.\-]{1,64}"
_NAME = re.compile(rf"(?!.{{{MAX_NAME_LETTERS + 1}}}){_PART}(/{_PART})*")


def check_name(name: object, *, argument: str) -> str:
    """Returns a table's, field's, source's or clock's name if it is one.

    Raises:
      InvalidInputError: The name is not 1 to 64 letters, digits, dots, dashes or underscores, nor
        several of these joined by slashes, 256 letters in all.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{argument}={name!r:.80}: a name is 1 to 64 of the characters A-Z a-z 0-9 _ . -, "
            f"or several of these joined by slashes, at most {MAX_NAME_LETTERS} letters in all"
        )
    return name


@dataclass(frozen=True)
class Field:
    """Describes one named column of a table.

    Attributes:
      shape: Shape of one row's value; `()` is a single number.
      dtype: NumPy name of the element type, one of `DTYPES`.
      init: Value of a row that was created and not yet written.
      optimizer: Applies the gradients that are pushed to the field. None: it takes no gradients.
      group: Fields of one group share version, step, updated_at, source and clock, and must be
        written together. None: the field has its own.
      history: How many of its last writes the bank keeps for `Table.history`.
      compact: Stores and sends float32 values as "bfloat16", in half the bytes, or as "int8" with a
        scale for each row, in a quarter; see `carls_jax.bank.compact` for what that does to them.
        None: as they are.
      lazy: Gathers pushed gradients until the row is read. None: each push is applied at once.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    init: Initializer = field(default_factory=zeros)
    optimizer: OptimizerSpec | None = None
    group: str | None = None
    history: int = 0
    compact: Literal["bfloat16", "int8"] | None = None
    lazy: Lazy | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _checked_dtype(self.dtype))
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        self._check_compact()
        if self.row_bytes > MAX_ROW_BYTES:
            raise ShapeError(
                f"Field(shape={self.shape}, dtype={self.dtype!r}) takes {self.row_bytes} bytes a "
                f"row: allowed are {MAX_ROW_BYTES}"
            )
        if not isinstance(self.init, Initializer):
            raise InvalidInputError(
                f"Field(init={self.init!r}): give an initializer, such as init.constant(0.5)"
            )
        self.init.check_dtype(self.dtype)
        self._check_optimizer()
        self._check_lazy()
        _check_integer(self.history, "Field(history)", lowest=0, highest=MAX_HISTORY)
        if self.history * self.row_bytes > MAX_ROW_BYTES:
            raise ShapeError(
                f"Field(shape={self.shape}, history={self.history}) takes "
                f"{self.history * self.row_bytes} bytes a row: allowed are {MAX_ROW_BYTES}"
            )
        if self.group is not None:
            check_name(self.group, argument="Field(group)")

    def _check_optimizer(self) -> None:
        if self.optimizer is None:
            return
        if not isinstance(self.optimizer, OptimizerSpec):
            raise InvalidInputError(
                f"Field(optimizer={self.optimizer!r}): give what optimizer(...) returns, such as "
                'optimizer("adagrad", learning_rate=0.1)'
            )
        if not self.dtype.startswith("float"):
            raise DtypeError(
                f"Field(dtype={self.dtype!r}, optimizer=...): gradients need float32 or float64"
            )

    def _check_compact(self) -> None:
        if self.compact is None:
            return
        if self.compact not in FORMS:
            raise DtypeError(f"Field(compact={self.compact!r}): allowed are {FORMS} and None")
        if self.dtype != "float32":
            raise DtypeError(
                f"Field(dtype={self.dtype!r}, compact={self.compact!r}): it is for float32"
            )

    def _check_lazy(self) -> None:
        if self.lazy is None:
            return
        if not isinstance(self.lazy, Lazy):
            raise InvalidInputError(
                f"Field(lazy={self.lazy!r}): give a Lazy, such as Lazy(max_wait_s=10.0)"
            )
        if self.optimizer is None:
            raise InvalidInputError(
                "Field(lazy=...): it gathers gradients, so the field needs an optimizer, too"
            )

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Element type of what is stored and sent."""
        return stored_dtype(self.compact, self.dtype)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of what is stored and sent of one row's value."""
        return stored_shape(self.compact, self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's value, stored or sent."""
        return math.prod(self.stored_shape) * self.stored_dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Returns the field as plain JSON types."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "init": self.init.to_dict(),
            "optimizer": self.optimizer.to_dict() if self.optimizer else None,
            "group": self.group,
            "history": self.history,
            "compact": self.compact,
            "lazy": self.lazy.to_dict() if self.lazy else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Field:
        """Makes the field that `to_dict` described."""
        made = {
            "init": Initializer.from_dict(data["init"]),
            "optimizer": data["optimizer"] and OptimizerSpec.from_dict(data["optimizer"]),
            "lazy": data.get("lazy") and Lazy.from_dict(data["lazy"]),
        }
        return cls(**{**data, **made})


@dataclass(frozen=True)
class TableSpec:
    """Describes a table: rows of one kind.

    Attributes:
      name: Name of the table.
      fields: The fields by name, in order.
      keys: "int": 64-bit integers as they are; "str": strings, held as 64-bit fingerprints.
      per_source: One row per key and source, so that several models speak about the same key.
      seed: Seed of the initial rows.
      max_rows: Rows the table may hold; a change that would add more is refused.
      limit: Which rows go, so that others have room, and which are let in. None: all stay.
    """

    name: str
    fields: Mapping[str, Field]
    keys: Literal["int", "str"] = "int"
    per_source: bool = False
    seed: int = 0
    max_rows: int = DEFAULT_MAX_ROWS
    limit: Limit | None = None

    def __post_init__(self) -> None:
        check_name(self.name, argument="TableSpec(name)")
        if self.keys not in ("int", "str"):
            raise InvalidInputError(f"TableSpec(keys={self.keys!r}): allowed are 'int' and 'str'")
        _check_integer(self.max_rows, "TableSpec(max_rows)", lowest=1, highest=(1 << 31) - 1)
        _check_integer(self.seed, "TableSpec(seed)", lowest=0, highest=(1 << 63) - 1)
        if not isinstance(self.fields, Mapping) or not 1 <= len(self.fields) <= MAX_FIELDS:
            raise InvalidInputError(
                f"TableSpec(fields) of {self.name!r}: give 1 to {MAX_FIELDS} fields by name, not "
                f"{self.fields!r:.80}"
            )
        for name, one in self.fields.items():
            check_name(name, argument="TableSpec(fields)")
            if not isinstance(one, Field):
                raise InvalidInputError(f"TableSpec(fields[{name!r}]={one!r}) is not a Field")
        # A read-only copy: nobody can alter a spec through the mapping it was made from.
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))
        self._check_groups()
        self._check_limit()
        row_bytes = sum(one.row_bytes * (1 + one.history) for one in self.fields.values())
        if row_bytes > MAX_TABLE_ROW_BYTES:
            raise ShapeError(
                f"TableSpec(fields) of {self.name!r}: a row takes {row_bytes} bytes, with its "
                f"histories: allowed are {MAX_TABLE_ROW_BYTES}; make several tables"
            )

    def _check_limit(self) -> None:
        if self.limit is None:
            return
        if not isinstance(self.limit, Limit):
            raise InvalidInputError(
                f"TableSpec(limit={self.limit!r}): give a Limit, such as Limit(max_rows=1000)"
            )
        if self.limit.max_rows is not None and self.limit.max_rows > self.max_rows:
            raise InvalidInputError(
                f"TableSpec(limit=Limit(max_rows={self.limit.max_rows}), max_rows={self.max_rows}):"
                " a limit is at most the table's max_rows"
            )

    def _check_groups(self) -> None:
        for group, names in self.groups.items():
            if group in self.fields and self.fields[group].group != group and names != (group,):
                raise InvalidInputError(
                    f"group {group!r} has the name of a field that is not in it: choose another"
                )
            if len({self.fields[name].optimizer is None for name in names}) > 1:
                raise InvalidInputError(
                    f"fields {', '.join(names)} of group {group!r} are pushed together: give all "
                    "of them an optimizer, or none"
                )
            if len(names) > 1 and any(self.fields[name].lazy for name in names):
                raise InvalidInputError(
                    f"fields {', '.join(names)} of group {group!r}: a lazy field is written when "
                    "it is read, so it shares its version and step with no other: leave out "
                    "lazy=..., or group=..."
                )

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping can be neither pickled nor copied.
        return TableSpec.from_dict, (self.to_dict(),)

    def field(self, name: str) -> Field:
        """Returns a field; raises FieldNotFoundError, which lists those that exist."""
        try:
            return self.fields[name]
        except KeyError:
            raise FieldNotFoundError(
                f"table {self.name!r} has no field {name!r}; it has {', '.join(self.fields)}"
            ) from None

    def group_of(self, name: str) -> str:
        """Returns the name under which a field's version, step, … are kept."""
        return self.field(name).group or name

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """The fields of each metadata group."""
        groups: dict[str, tuple[str, ...]] = {}
        for name in self.fields:
            group = self.group_of(name)
            groups[group] = (*groups.get(group, ()), name)
        return groups

    @cached_property
    def lazy_fields(self) -> tuple[str, ...]:
        """Names of the fields that gather gradients."""
        return tuple(name for name, one in self.fields.items() if one.lazy)

    def check_agrees(self, existing: TableSpec) -> None:
        """Compares this spec with an existing table's.

        Hyper-parameters may differ: those of optimizers, of lazy updates, and the limit.

        Raises:
          SpecMismatchError: They disagree; the message lists each difference.
        """
        mine, theirs = _identity(self), _identity(existing)
        differences = [
            f"{name}: given {mine.get(name, 'nothing')}, existing {theirs.get(name, 'nothing')}"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]
        if differences:
            raise SpecMismatchError(
                f"table {self.name!r} exists with another spec: {'; '.join(differences)}. "
                "bank.alter(spec) adds fields and changes max_rows"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as plain JSON types."""
        return {
            "name": self.name,
            "fields": {name: one.to_dict() for name, one in self.fields.items()},
            "keys": self.keys,
            "per_source": self.per_source,
            "seed": self.seed,
            "max_rows": self.max_rows,
            "limit": self.limit.to_dict() if self.limit else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableSpec:
        """Makes the spec that `to_dict` described."""
        fields = {name: Field.from_dict(one) for name, one in data["fields"].items()}
        limit = data.get("limit") and Limit.from_dict(data["limit"])
        return cls(**{**data, "fields": fields, "limit": limit})


def _checked_dtype(dtype: object) -> str:
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise DtypeError(f"Field(dtype={dtype!r}): allowed are {', '.join(DTYPES)}")
    return name


def _checked_shape(shape: object) -> tuple[int, ...]:
    if isinstance(shape, int):
        raise ShapeError(f"Field(shape={shape}): give a tuple, such as ({shape},)")
    try:
        dims = tuple(operator.index(dim) for dim in shape)  # type: ignore[attr-defined]
    except TypeError:
        raise ShapeError(f"Field(shape={shape!r}): give a tuple of positive integers") from None
    if any(dim < 1 for dim in dims) or len(dims) > MAX_DIMENSIONS:
        raise ShapeError(
            f"Field(shape={shape!r}): allowed are at most {MAX_DIMENSIONS} positive sizes"
        )
    return dims


def _check_integer(value: object, argument: str, *, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidInputError(f"{argument}={value!r}: allowed are integers {lowest} to {highest}")


def _identity(spec: TableSpec) -> dict[str, object]:
    """Flattens what two specs of one table must agree on."""
    identity = {name: getattr(spec, name) for name in ("keys", "per_source", "seed", "max_rows")}
    for name, one in spec.fields.items():
        described = one.to_dict()
        described["optimizer"] = one.optimizer.name if one.optimizer else None
        described["lazy"] = one.lazy is not None
        identity |= {f"fields[{name!r}].{key}": value for key, value in described.items()}
    return identity
