"""What a plan finds for one batch: `Known`, which the step gets, and `Fetched`, all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from carls_jax.training.held import Found, Keys


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """Holds what a lookup of the plan found, as a pytree for the training step.

    `...` are the axes of the keys in the batch, those of a chained lookup's keys, and the authors
    of a per-source table.

    A row is looked up before its step, so meanwhile it may have been changed. `age` is that of the
    value at hand. Whether this process has changed it since by `Session.write`, `behind` tells;
    what hooks and other processes write meanwhile shows in later lookups only.

    Attributes:
      values: By field, `[B, ..., *shape]`; zeros where the row was not found.
      mask: bool `[B, ...]`, the row was found, and each one on the way to it.
      age: By field, int32 `[B, ...]`, how many steps ago the value was written; -1: never.
      behind: By field that the loop writes, int32 `[B, ...]`: 0, the value holds all that was
        written to the field in earlier steps; d, it may lack what was written d steps ago and
        later, since the bank had not acknowledged that when the row was looked up. The value is
        that of d steps ago. While the bank is away rows may be as they were seen before: then d
        counts from there, whether or not the row was written since.
      sources: Names of the authors, in a per-source table.
    """

    values: dict[str, Any]
    mask: Any
    age: dict[str, Any]
    behind: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Fetched:
    """Holds what was looked up for one step.

    Attributes:
      known: By lookup, what the step gets, without `behind`, which is known when the step begins.
      found: By lookup, the rows and their keys.
      targets: By write, int64 `[B, ...]`, the keys that it goes to.
      ages: int `[n]`, in steps, of all values that were found and ever written.
      num_found: Rows found.
      num_asked: Rows asked for, padding included.
      num_moved: Distinct rows that the bank sent; the others were repeated, or held already.
      as_of: Of the trainer's own writes, none up to this number can be missing in this or a later
        step's rows.
      took_s: Seconds that the lookups took.
    """

    known: dict[str, Known]
    found: dict[str, Found]
    targets: dict[str, Keys]
    ages: NDArray[np.int64]
    num_found: int
    num_asked: int
    num_moved: int
    as_of: int
    took_s: float


def known_of(found: Found, *, now: int) -> Known:
    """Returns what a step gets of the rows found, in arrays of its own."""
    rows, places = found.rows, found.places
    return Known(
        values={name: value.take(places, axis=0) for name, value in rows.values.items()},
        mask=rows.found.take(places, axis=0),
        age={
            name: np.where(step >= 0, now - step, -1).astype(np.int32).take(places, axis=0)
            for name, step in rows.step.items()
        },
        sources=rows.sources,
    )


def ages_of(found: Found, *, now: int) -> list[NDArray[np.int64]]:
    """Returns int64 `[n]` of each field, the ages of the values that were found and ever written.

    A value that several keys of the batch stand for counts each time.
    """
    times = np.bincount(found.places.ravel(), minlength=found.rows.keys.size)
    told = []
    for step in found.rows.step.values():
        has_age = found.rows.found & (step >= 0)
        repeats = np.broadcast_to(times.reshape(-1, *[1] * (step.ndim - 1)), step.shape)
        told.append(np.repeat(now - step[has_age], repeats[has_age]))
    return told
