"""`HeldRows`: the rows of the batches that are held ahead, which later batches share.

m is the number of distinct keys of a lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Rows
from carls_jax.bank.joining import Followed
from carls_jax.training.away.last_seen import ALL, RememberedRows

Keys = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Found:
    """Holds what one lookup of a plan found for a batch: each row once, and who shares it.

    Attributes:
      rows: Rows of m distinct keys.
      places: int `[B, ...]`, which of them each key of the batch stands for.
      as_of: int64 `[m]`, how many of the trainer's own writes the bank had acknowledged when the
        row was looked up.
      as_of_step: int64 `[m]`, of a row that the bank did not tell but that was seen before, while
        it was away: the step up to which the bank had acknowledged these writes then. Of others it
        is the largest integer. None: there are only others.
    """

    rows: Rows
    places: NDArray[Any]
    as_of: NDArray[np.int64]
    as_of_step: NDArray[np.int64] | None = None

    @property
    def keys(self) -> Keys:
        """int64 `[B, ...]`, the keys of the rows; padding where there is none."""
        return self.rows.keys[self.places]


@dataclass(frozen=True, eq=False)
class _Block:
    """Holds the rows that were found for one step; their keys ascend."""

    step: int
    as_of: int
    rows: Rows


class HeldRows:
    """Keeps the rows of one kind of lookup while the batches that they were read for are held.

    A row read for step s is used for the steps s to s + num_steps - 1, and then read anew, however
    many batches need it. So what a step gets was read for one of the batches that were held ahead
    when its own was, and sharing makes no row older than that. Rows that were not found are asked
    for each time. Not for use by several threads at once.

    Args:
      num_steps: How many batches are held, the newest included; with 1 nothing is shared.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._blocks: list[_Block] = []

    def oldest(self, default: int) -> int:
        """Returns the `as_of` of the rows that were read first, or `default` if there are none."""
        return min((block.as_of for block in self._blocks), default=default)

    def keys(self, step: int, *, max_age_steps: int | None) -> Keys:
        """Returns the keys of the rows that may be used for a step, and forgets older rows.

        Those that have become too old are left out: the bank may have newer ones.
        """
        self._blocks = [one for one in self._blocks if step - one.step < self._num_steps]
        young = [np.empty(0, np.int64)]
        for block in self._blocks:
            keys = block.rows.keys
            if max_age_steps is not None:
                steps = np.stack(list(block.rows.step.values()))
                keys = keys[(step - steps <= max_age_steps).all(axis=0)]
            young.append(keys)
        return np.concatenate(young)

    def complete(self, followed: Followed, *, step: int, as_of: int) -> Found:
        """Adds the rows that the bank was told to leave out, and keeps those that it sent."""
        rows, keys = followed.rows, followed.keys
        parts, of_parts = [rows], [as_of]
        position = np.arange(keys.size)
        missing = position[rows.keys.size :]
        start = rows.keys.size
        for block in reversed(self._blocks):  # a key that is in two was read anew for the newer
            at, is_here = _search(block.rows.keys, keys[missing])
            position[missing[is_here]] = np.arange(start, start + at.size)
            parts.append(_at(block.rows, at))
            of_parts.append(block.as_of)
            start, missing = start + at.size, missing[~is_here]
        as_of_step = None
        if isinstance(rows, RememberedRows):
            as_of_step = np.concatenate([rows.as_of, np.full(start - rows.keys.size, ALL)])
        self._keep(rows, step=step, as_of=as_of)
        sizes = [part.keys.size for part in parts]
        if start > rows.keys.size:
            rows = _mapped(parts, np.concatenate)
        places = position.take(followed.places)
        return Found(rows, places, np.repeat(np.array(of_parts), sizes), as_of_step)

    def _keep(self, rows: Rows, *, step: int, as_of: int) -> None:
        if self._num_steps == 1:
            return
        is_told = rows.found
        if isinstance(rows, RememberedRows):  # the bank may be back for the next step
            is_told = is_told & (rows.as_of == ALL)
        if not is_told.all():
            rows = _at(rows, np.flatnonzero(is_told))
        self._blocks.append(_Block(step, as_of, rows))

    def forget(self) -> None:
        """Lets go of all rows."""
        self._blocks.clear()


def _search(ascending: Keys, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Returns the places of those keys that are there, and which are."""
    at = np.searchsorted(ascending, keys)
    at[at == ascending.size] = 0
    is_here = ascending[at] == keys if ascending.size else np.zeros(keys.size, np.bool_)
    return at[is_here], is_here


def _at(rows: Rows, places: NDArray[np.intp]) -> Rows:
    return _mapped([rows], lambda arrays: arrays[0].take(places, axis=0))


def _mapped(parts: Sequence[Rows], join: Callable[[list[NDArray[Any]]], NDArray[Any]]) -> Rows:
    """Returns the rows whose arrays are those of `parts`, joined."""
    first = parts[0]

    def joined(by_field: Callable[[Rows], Any]) -> dict[str, NDArray[Any]]:
        return {name: join([by_field(part)[name] for part in parts]) for name in by_field(first)}

    return Rows(
        keys=join([part.keys for part in parts]),
        values=joined(lambda part: part.values),
        found=join([part.found for part in parts]),
        present={},
        metadata={"step": joined(lambda part: part.metadata["step"])},
        sources=first.sources,
    )
