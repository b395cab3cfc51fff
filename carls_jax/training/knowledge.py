"""What a plan finds for one batch: `Known`, which the step gets, and `Fetched`, all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Bank, Rows, Table, TableSpec
from carls_jax.bank.values import as_keys
from carls_jax.errors import InvalidInputError
from carls_jax.keys import PADDING
from carls_jax.training.plan import Batch, Lookup, Push, Update, name_of

Keys = NDArray[np.int64]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """Holds what a lookup of the plan found, as a pytree for the training step.

    `...` are the axes of the keys in the batch, those of a chained lookup's keys, and the authors
    of a per-source table.

    Attributes:
      values: By field, `[B, ..., *shape]`; zeros where the row was not found.
      mask: bool `[B, ...]`, the row was found, and each one on the way to it.
      age: By field, int32 `[B, ...]`, how many steps ago the field was written; -1: never.
      sources: Names of the authors, in a per-source table.
    """

    values: dict[str, Any]
    mask: Any
    age: dict[str, Any]
    sources: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Fetched:
    """Holds what was looked up for one step.

    Attributes:
      known: By lookup, what the step gets.
      targets: By write, int64 `[B, ...]`, the keys that it goes to.
      ages: int `[n]`, in steps, of all values that were found and ever written.
      num_found: Rows found.
      num_asked: Rows asked for, padding included.
    """

    known: dict[str, Known]
    targets: dict[str, Keys]
    ages: NDArray[np.int64]
    num_found: int
    num_asked: int


@dataclass(frozen=True)
class _Found:
    """Holds what one lookup found in the end: keys and mask as in the batch, rows in a line."""

    keys: Keys
    rows: Rows
    mask: NDArray[np.bool_]

    def known(self, now: int) -> Known:
        rows, axes = self.rows, self.mask.shape
        return Known(
            values={
                name: value.reshape(axes + value.shape[rows.found.ndim :])
                for name, value in rows.values.items()
            },
            mask=self.mask,
            age={
                name: np.where(step >= 0, now - step, -1).astype(np.int32).reshape(axes)
                for name, step in rows.step.items()
            },
            sources=rows.sources,
        )

    def ages(self, now: int) -> list[NDArray[np.int64]]:
        steps = [step[self.rows.found] for step in self.rows.step.values()]
        return [now - step[step >= 0] for step in steps]


def fetch(
    plan: Mapping[str, Lookup],
    writes: Mapping[str, Update],
    batch: Batch,
    bank: Bank,
    *,
    now: int,
) -> Fetched:
    """Carries out the lookups of one batch; `now` is the step that will use them.

    Raises:
      InvalidInputError: The batch lacks an entry that holds keys; the message lists what is there.
      KeyKindError: Keys are not of their table's kind.
    """
    found: dict[str, _Found] = {}
    for name, lookup in plan.items():
        keys = _keys(lookup.keys, bank.table(name_of(lookup.table)).spec, batch, found)
        found[name] = _follow(lookup, keys, np.ones(keys.shape, np.bool_), bank, now=now)
    ages = [array for one in found.values() for array in one.ages(now)]
    return Fetched(
        known={name: one.known(now) for name, one in found.items()},
        targets={name: _target(write, batch, found, bank) for name, write in writes.items()},
        ages=np.concatenate([np.empty(0, np.int64), *ages]),
        num_found=sum(int(one.mask.sum()) for one in found.values()),
        num_asked=sum(one.mask.size for one in found.values()),
    )


def _follow(link: Lookup, keys: Keys, mask: NDArray[np.bool_], bank: Bank, *, now: int) -> _Found:
    """Reads the rows of keys and goes on along the chain; `mask`: which keys were found so far."""
    rows = _read(bank.table(name_of(link.table)), link, keys, now=now)
    axes = keys.shape + rows.found.shape[1:]
    mask = _widened(mask, axes) & rows.found.reshape(axes)
    if link.following is None:
        return _Found(keys, rows, mask)
    values = rows[link.fields[0]]
    values = values.reshape(axes + values.shape[rows.found.ndim :])
    mask = _widened(mask, values.shape)
    # Rows that were not found hold zeros, and 0 is somebody's key.
    following_keys = np.where(mask, values, PADDING).astype(np.int64)
    mask = mask & (following_keys != PADDING)
    return _follow(link.following, following_keys, mask, bank, now=now)


def _read(table: Table, link: Lookup, keys: Keys, *, now: int) -> Rows:
    return table.lookup(
        keys.ravel(),
        fields=link.fields,
        create=link.create,
        sources=link.sources,
        max_age_steps=link.max_age_steps,
        now=now,
    )


def _keys(name: str, spec: TableSpec, batch: Batch, found: Mapping[str, _Found]) -> Keys:
    """Returns int64 `[B, ...]`, the keys that `name` stands for."""
    if name in found:
        return found[name].keys
    if name not in batch:
        raise InvalidInputError(
            f"keys={name!r}: the batch has {', '.join(map(str, batch))}, and the plan "
            f"{', '.join(found) or 'nothing'} before it"
        )
    keys = np.asarray(batch[name])
    return as_keys(spec, keys.ravel()).reshape(keys.shape)


def _target(write: Update, batch: Batch, found: Mapping[str, _Found], bank: Bank) -> Keys:
    keys = _keys(write.keys, bank.table(name_of(write.table)).spec, batch, found)
    if not isinstance(write, Push) or write.keys not in found:
        return keys
    mask = found[write.keys].mask
    return np.where(mask.reshape(*keys.shape, -1).any(axis=-1), keys, PADDING)


def _widened(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
