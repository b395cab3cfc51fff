"""`Maker`: a plain function that turns a checkpoint into knowledge."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from carls_jax.bank.specs import check_name
from carls_jax.errors import ConfigError


@dataclass(frozen=True)
class Maker:
    """Describes a maker; made by the decorator `maker`.

    Attributes:
      name: Its worker i writes as source "NAME/i", such as "smooth/0"; the authors of a per-source
        table are called so too.
      function: `refresh(ctx)` or `make(ctx, keys)`.
      reads: Tables that it reads.
      writes: By table, the fields that it writes.
      keys: For `make`, gives the keys to make rows for from the experiment's data; None: the keys
        of the table that it writes.
      batch_size: For `make`, keys per call.
      blend: Share of its earlier values that a row keeps, as in `Table.update`; 0: none.
    """

    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]
    writes: Mapping[str, tuple[str, ...]]
    keys: Callable[[Any], Any] | None = None
    batch_size: int = 1024
    blend: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.name, argument="maker(name)")
        if not self.writes or not all(self.writes.values()):
            raise ConfigError(
                f"maker {self.name!r}: writes={dict(self.writes)}: give {{'table': (field, ...)}}"
            )
        if self.batch_size < 1:
            raise ConfigError(f"maker {self.name!r}: batch_size={self.batch_size}: at least 1")
        if not 0.0 <= self.blend < 1.0:
            raise ConfigError(
                f"maker {self.name!r}: blend={self.blend}: allowed are numbers from 0 to below 1"
            )
        if not (self.is_refresh or _takes(self.function, 2)):
            raise ConfigError(
                f"maker {self.name!r} is a function of {inspect.signature(self.function)}: write "
                "refresh(ctx), or make(ctx, keys)"
            )
        if self.is_refresh and self.keys is not None:
            raise ConfigError(f"maker {self.name!r} takes no keys, so keys=... has no use")
        if not self.is_refresh and len(self.writes) != 1:
            raise ConfigError(
                f"maker {self.name!r} makes rows of keys, so it writes one table, not "
                f"{', '.join(self.writes)}"
            )

    @property
    def is_refresh(self) -> bool:
        """Whether the function is called once per checkpoint, and not on batches of keys."""
        return _takes(self.function, 1)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function, as in a test of it."""
        return self.function(*arguments)


def maker(
    *,
    writes: Mapping[str, str | Sequence[str]],
    reads: str | Sequence[str] = (),
    name: str | None = None,
    keys: Callable[[Any], Any] | None = None,
    batch_size: int = 1024,
    blend: float = 0.0,
) -> Callable[[Callable[..., Any]], Maker]:
    """Makes a maker of a function.

    The function is one of two kinds. `refresh(ctx)` is called once per checkpoint, may work on
    whole tables, and yields blocks `(keys, {field: values})`, or `(table, keys, {field: values})`
    where it writes several tables. `make(ctx, keys)` is called on batches of keys, which are split
    among the workers, and returns `{field: values}`, or None to write nothing. Either may have
    more arguments that have defaults. `ctx` is a `Context`.

    Args:
      writes: By table, the field or fields that it writes.
      reads: The table or tables that it reads. They must exist when it runs; it orders nothing.
      name: Worker i writes as source "NAME/i". None: the function's name.
      keys: For `make`: `keys(data)` gives the keys. None: the keys of the table that it writes.
      batch_size: For `make`: keys per call.
      blend: Share of its earlier value that each written field keeps: 0.9 makes rows exponential
        moving averages over checkpoints. All fields that it writes hold floats then. A refresh that
        is done again, since the worker died before its end, is blended again.

    Raises:
      ConfigError: The function or an argument cannot work.
    """

    def decorate(function: Callable[..., Any]) -> Maker:
        return Maker(
            name=name or function.__name__,
            function=function,
            reads=_names(reads),
            writes=MappingProxyType({table: _names(fields) for table, fields in writes.items()}),
            keys=keys,
            batch_size=batch_size,
            blend=blend,
        )

    return decorate


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _takes(function: Callable[..., Any], num_arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(num_arguments))
    except TypeError:
        return False
    return True
