"""Flushing: what lazy fields gathered for rows is applied by their optimizers.

That is part of a change: of an update, which it goes before, or of a flush, which a shard makes
before it reads rows and when gradients have waited long enough. So what a row holds depends on the
order of the changes alone, and not on clocks or on who read when.

m is the number of rows.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import changes
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.columns import Slots
from carls_jax.bank.pushers import pusher
from carls_jax.bank.repeats import Distinct
from carls_jax.bank.table_shard import TableShard
from carls_jax.keys import PADDING

# Rows that one change flushes at most: others wait for it a few milliseconds.
BLOCK_ROWS = 8192
# Rows whose times are looked at at once.
_SCANNED_ROWS = 1 << 16


def flush(table: TableShard, names: Container[str], slots: Slots, *, updated_at: float) -> None:
    """Applies what was gathered for rows; the caller holds `writer`.

    Args:
      names: Fields, of which the lazy ones have gathered.
      slots: `[m]`, no slot twice.
      updated_at: The time that is noted of rows that move.
    """
    num_flushed = num_kept = 0
    for name in table.spec.lazy_fields:
        if name not in names:
            continue
        pending = slots[table.columns[f"pending/{name}/count"][slots] > 0]
        num_flushed += pending.size
        for part in table.slices(pending.size):
            for alike, noted in _by_author(table, name, pending[part]):
                noted["updated_at"] = updated_at
                num_kept += _flush_alike(table, name, alike, noted)
    counted = {"rows_flushed": num_flushed, "rows_overflowed": num_kept}
    table.counts.add({kind: count for kind, count in counted.items() if count})


def _by_author(
    table: TableShard, name: str, slots: Slots
) -> Iterator[tuple[Slots, dict[str, Any]]]:
    """Yields rows whose last gathered gradients are of one author and step, and which these are."""
    kinds = ("step", "source", "clock")
    authors = np.stack([table.columns[f"pending/{name}/{kind}"][slots] for kind in kinds])
    order = np.lexsort(authors)
    slots, authors = slots[order], authors[:, order]
    begins = np.flatnonzero((authors[:, 1:] != authors[:, :-1]).any(axis=0)) + 1
    for alike in np.split(np.arange(slots.size), begins):
        if alike.size:
            author = authors[:, alike[0]].tolist()
            yield slots[alike], dict(zip(kinds, author, strict=True))


def _flush_alike(table: TableShard, name: str, slots: Slots, noted: dict[str, Any]) -> int:
    """Applies what one field gathered; returns how many rows stayed, not to overflow."""
    lazy = table.spec.field(name).lazy
    assert lazy is not None
    # PERFORMANCE: half the time of indexing. No slot needs to be clipped.
    gradients = table.columns[f"pending/{name}/sum"].take(slots, axis=0, mode="clip")
    if lazy.combine == "mean":
        counts = table.columns[f"pending/{name}/count"][slots].astype(gradients.dtype)
        gradients /= counts.reshape(-1, *[1] * (gradients.ndim - 1))
    places = np.arange(slots.size)
    once = Distinct(NO_KEYS, places, places, np.full(slots.size, -1, np.intp))
    move = pusher(table, [name]).begin(
        {name: gradients}, once, is_mean=False, step=noted["step"], noted=noted
    )
    with table.lock:
        table.keep_before(slots)
        is_moved = move(slots, places)
        # Last: whoever sees that nothing is pending sees the row as it became.
        table.put(slots, {f"pending/{name}/count": 0})
    return is_moved.size - int(np.count_nonzero(is_moved))


def before_lookup(
    table: TableShard, fields: Iterable[str], keys: Keys, sources: Sequence[str]
) -> Iterator[Change]:
    """Yields the changes to be made before fields of keys' rows are read.

    Args:
      sources: Whose rows, in a per-source table; in others `("",)`.
    """
    names = _lazy(table, fields)
    columns = tuple(f"pending/{name}/count" for name in names)
    for source in sources if names else ():
        counts, _ = table.read(keys, columns, source=source)
        is_pending = np.logical_or.reduce([count > 0 for count in counts])
        yield from _flushes(table, names, keys[is_pending], source)


def before_scan(
    table: TableShard, fields: Iterable[str], start: int, stop: int
) -> Iterator[Change]:
    """Yields the changes to be made before fields of a range of slots are read."""
    names = _lazy(table, fields)
    if names:
        yield from _flushes_of_slots(table, names, start, min(stop, table.used_slots), None)


def overdue(table: TableShard, now: float) -> Iterator[Change]:
    """Yields the changes that apply what has waited as long as its field allows, at a time."""
    for name in table.spec.lazy_fields:
        lazy = table.spec.field(name).lazy
        assert lazy is not None
        for start in range(0, table.used_slots, _SCANNED_ROWS):
            stop = min(start + _SCANNED_ROWS, table.used_slots)
            yield from _flushes_of_slots(table, [name], start, stop, now - lazy.max_wait_s)


def _lazy(table: TableShard, fields: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(fields) if name in table.spec.lazy_fields]


def _flushes_of_slots(
    table: TableShard, names: Sequence[str], start: int, stop: int, latest: float | None
) -> Iterator[Change]:
    """Yields what flushes rows of a range of slots, of those gathered first by a time if given.

    Rows may change meanwhile: which rows these are is a hint, and the change finds out by itself.
    """
    rows = slice(start, stop)
    is_due: NDArray[np.bool_] = np.zeros(max(stop - start, 0), np.bool_)
    for name in names:
        is_pending = table.columns[f"pending/{name}/count"][rows] > 0
        if latest is not None:
            is_pending &= table.columns[f"pending/{name}/since"][rows] <= latest
        is_due |= is_pending
    slots = start + np.flatnonzero(is_due)
    keys = table.columns["key"][slots]
    if not table.spec.per_source:
        yield from _flushes(table, names, keys, "")
        return
    authors, sources = table.columns["author"][slots], list(table.sources)
    for author in np.unique(authors).tolist():
        yield from _flushes(table, names, keys[authors == author], sources[author])


def _flushes(table: TableShard, names: Sequence[str], keys: Keys, source: str) -> Iterator[Change]:
    keys = keys[keys != PADDING]
    by = changes.author(source=source)
    for start in range(0, keys.size, BLOCK_ROWS):
        yield changes.flush(table.spec.name, keys[start : start + BLOCK_ROWS], names, by=by)
