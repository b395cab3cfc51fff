"""What a lookup returns: `Rows`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import showing
from carls_jax.bank.changes import Keys
from carls_jax.errors import FieldNotFoundError, InvalidInputError

METADATA = ("version", "step", "updated_at", "source", "clock")


class Metadata(Mapping[str, NDArray[Any]]):
    """Gives one kind of metadata by field; says so if the lookup did not ask for it."""

    def __init__(self, kind: str, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        self._kind = kind
        self._arrays = arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        if self._arrays is None:
            raise InvalidInputError(
                f"rows.{self._kind} was not looked up: ask for it with metadata=({self._kind!r},)"
            )
        if name not in self._arrays:
            raise FieldNotFoundError(
                f"the lookup did not ask for field {name!r}, only {', '.join(self._arrays)}"
            )
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays or ())

    def __len__(self) -> int:
        return len(self._arrays or ())

    def __repr__(self) -> str:
        if self._arrays is None:
            return f"<{self._kind}: not looked up>"
        return f"<{self._kind} of {', '.join(self._arrays)}>"


@dataclass(frozen=True, repr=False, eq=False)
class Rows:
    """Holds looked-up rows: `rows["embedding"]` is that field's values.

    n is the number of keys; in a per-source table every array has the authors as second axis,
    `[n, S, ...]`.

    Attributes:
      keys: int64 `[n]`, as asked.
      values: By field, `[n, *shape]`; zeros where `present` is False.
      found: bool `[n]`, the row is there and each field asked for is young enough.
      present: By field, bool `[n]`, the row is there and this field is young enough.
      sources: Names of the S authors, in a per-source table.
      num_created: Rows that this lookup created.
    """

    keys: Keys
    values: Mapping[str, NDArray[Any]]
    found: NDArray[np.bool_]
    present: Mapping[str, NDArray[np.bool_]]
    metadata: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    num_created: int = 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            return self.values[name]
        except KeyError:
            raise FieldNotFoundError(
                f"the lookup did not ask for field {name!r}, only {', '.join(self.values)}"
            ) from None

    def __repr__(self) -> str:
        return showing.rows_text(self)

    def _repr_html_(self) -> str:
        return showing.rows_html(self)

    @property
    def version(self) -> Metadata:
        """By field, int64 `[n]`: how often the field of this row was changed."""
        return Metadata("version", self.metadata.get("version"))

    @property
    def step(self) -> Metadata:
        """By field, int64 `[n]`: the model step that the author used; -1: never written."""
        return Metadata("step", self.metadata.get("step"))

    @property
    def updated_at(self) -> Metadata:
        """By field, float64 `[n]`: seconds since the epoch; 0: never written."""
        return Metadata("updated_at", self.metadata.get("updated_at"))

    @property
    def source(self) -> Metadata:
        """By field, str `[n]`: the job that wrote the field; "": none.

        In a per-source table it is the row's author, whether or not it wrote the field.
        """
        return Metadata("source", self.metadata.get("source"))

    @property
    def clock(self) -> Metadata:
        """By field, str `[n]`: the clock that `step` is on."""
        return Metadata("clock", self.metadata.get("clock"))


@dataclass(frozen=True)
class Written:
    """Is one entry of a field's history.

    Attributes:
      version: How many changes the field had seen after this write.
      step: Model step that the author used.
      updated_at: Seconds since the epoch.
      source: The job that wrote.
      clock: The clock that `step` is on.
      value: What was written, `[*shape]`.
    """

    version: int
    step: int
    updated_at: float
    source: str
    clock: str
    value: NDArray[Any]
