"""Evicting: which rows go when a table is full, or when they have not been written for long.

What is found here becomes changes that name the rows, with numbers before that of the change which
needs the room; applying these looks at no clock and no use. The caller holds the table's `writer`,
but for `may_have_expired`.

m is the number of rows that may go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import changes
from carls_jax.bank.applying import Checked
from carls_jax.bank.changes import NO_STEP, Change
from carls_jax.bank.columns import Slots
from carls_jax.bank.limiter import Times
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import BankFullError
from carls_jax.keys import PADDING

# Of the limit, what is evicted at once: choosing rows goes through many.
_SHARE_AT_ONCE = 100
# Among how many rows those that go are chosen, in all, and for each that goes.
_SAMPLED_ROWS = 1 << 14
_SAMPLED_FOR_ONE = 16
# Rows that one change evicts at most.
BLOCK_ROWS = 8192
# Rows whose times are looked at at once.
SCANNED_ROWS = 1 << 16
_NS = 1_000_000_000
_LONGEST_AGE_S = 1e9

Reason = Literal["limit", "expired"]

_logger = logging.getLogger(__name__)


def for_room(
    table: TableShard, change: Checked, clocks: Mapping[str, int], *, now: float
) -> Iterator[Change]:
    """Yields the evictions that make room for the new rows of a change.

    Args:
      change: The rows that it writes stay.
      clocks: Each clock's highest step.
      now: Seconds since the epoch, noted in the evictions.

    Raises:
      BankFullError: The change needs more rows than the limit.
    """
    most = table.limiter.max_rows if table.limiter else None
    num_new = change.new_keys.size
    if most is None or num_new == 0 or table.num_rows + num_new <= most:
        return
    kept = change.slots[change.slots >= 0]
    if kept.size + num_new > most:
        raise BankFullError(
            f"table {table.spec.name!r} is limited to {most} rows in a shard; a change of "
            f"{kept.size + num_new} rows, {num_new} of them new, does not fit, so none of it was "
            "done: raise the limit or make smaller changes"
        )
    may_go = table.columns["key"][: table.used_slots] != PADDING
    may_go[kept] = False
    slots = np.flatnonzero(may_go)
    wanted = max(table.num_rows + num_new - most, most // _SHARE_AT_ONCE)
    yield from _evictions(table, _lowest(table, slots, clocks, wanted), "limit", now)


def may_have_expired(table: TableShard, start: int, stop: int) -> bool:
    """Tells whether `expired` may find rows in a range of slots; needs no lock."""
    times, latest = _latest(table)
    if times is None:
        return False
    rows = slice(start, min(stop, table.used_slots))
    return bool(((times[rows] <= latest) & (table.columns["key"][rows] != PADDING)).any())


def expired(table: TableShard, start: int, stop: int, *, now: float) -> Iterator[Change]:
    """Yields the evictions of rows of a range of slots that were not written for too long."""
    times, latest = _latest(table)
    if times is not None:
        slots = table.live_slots(start, stop)
        if not times[slots].all():
            _learn(table, times, table.live_slots())
        yield from _evictions(table, slots[times[slots] <= latest], "expired", now)


def _latest(table: TableShard) -> tuple[Times | None, int]:
    """Returns when rows were written, if they expire, and the time up to which they have."""
    limiter = table.limiter
    if limiter is None or limiter.written is None or limiter.limit.ttl_s is None:
        return None, 0
    return limiter.written, time.monotonic_ns() - int(limiter.limit.ttl_s * _NS)


def _learn(table: TableShard, times: Times, slots: Slots) -> None:
    """Gives times to those of the rows that were loaded, and neither used nor written since.

    The newest of them, by its `updated_at`, counts as written now, and the others as so much before
    as theirs says: the time for which no process had them does not count, and that the computer's
    clock is wrong now makes none older. A row that was never written, or that says a time to come,
    counts as written now.
    """
    slots = slots[times[slots] == 0]
    if slots.size:
        written = _updated_at(table, slots)
        newest = min(float(written.max()), time.time())
        ages_s = np.where(written > 0, np.clip(newest - written, 0, _LONGEST_AGE_S), 0)
        times[slots] = time.monotonic_ns() - (ages_s * _NS).astype(np.int64)


def _lowest(table: TableShard, slots: Slots, clocks: Mapping[str, int], wanted: int) -> Slots:
    """Returns so many of the rows, at most, as the table's policy says.

    Of a large table every k-th row is looked at, others each time: no change waits for long.
    """
    assert table.limiter is not None
    k = max(1, slots.size // max(_SAMPLED_ROWS, _SAMPLED_FOR_ONE * wanted))
    slots = slots[table.limiter.next_turn() % k :: k]
    chosen = []
    for scores_of in (_SCORES[table.limiter.limit.evict], _updated_at):
        if wanted >= slots.size:
            break
        scores = scores_of(table, slots, clocks)
        # PERFORMANCE: `partition` takes 25 ms for 166,666 scores most of which are equal, this 1 ms
        # and at most 9 ms.
        bound = np.sort(scores)[wanted - 1]
        chosen.append(slots[scores < bound])
        wanted -= chosen[-1].size
        slots = slots[scores == bound]
    return np.concatenate([*chosen, slots[:wanted]])


def _updated_at(table: TableShard, slots: Slots, _: object = None) -> NDArray[np.float64]:
    """Returns when rows `[m]` were last written, in seconds since the epoch; 0: never."""
    times = [table.columns[f"updated_at/{group}"][slots] for group in table.spec.groups]
    latest: NDArray[np.float64] = np.maximum.reduce(times)
    return latest


def _last_use(table: TableShard, slots: Slots, _: Mapping[str, int]) -> NDArray[Any]:
    assert table.limiter is not None
    assert table.limiter.used is not None
    _learn(table, table.limiter.used, slots)
    return table.limiter.used[slots]


def _num_writes(table: TableShard, slots: Slots, _: Mapping[str, int]) -> NDArray[Any]:
    counts = np.zeros(slots.size, np.int64)
    for group in table.spec.groups:
        counts += table.columns[f"version/{group}"][slots]
    return counts


def _steps_ahead(table: TableShard, slots: Slots, clocks: Mapping[str, int]) -> NDArray[Any]:
    """Returns the steps, 0 or less, by which the newest field of each row is ahead of its clock."""
    highest = np.array([clocks.get(name, NO_STEP) for name in table.clocks], np.int64)
    ahead = np.full(slots.size, np.iinfo(np.int64).min)
    for group in table.spec.groups:
        steps = table.columns[f"step/{group}"][slots]
        of_group = steps - highest[table.columns[f"clock/{group}"][slots]]
        np.maximum(ahead, of_group, out=ahead, where=steps != NO_STEP)
    return ahead


_SCORES: dict[str, Callable[[TableShard, Slots, Mapping[str, int]], NDArray[Any]]] = {
    "least_recent": _last_use,
    "lowest_count": _num_writes,
    "oldest_step": _steps_ahead,
}


def _evictions(table: TableShard, slots: Slots, reason: Reason, now: float) -> Iterator[Change]:
    limiter, name = table.limiter, table.spec.name
    for source, keys in table.keys_by_source(slots):
        by = changes.author(source=source, updated_at=now)
        for start in range(0, keys.size, BLOCK_ROWS):
            block = keys[start : start + BLOCK_ROWS]
            if limiter is not None and limiter.limit.log:
                _logger.info(
                    "table %s evicts %d rows (%s)%s: %s",
                    name,
                    block.size,
                    reason,
                    source and f" of {source}",
                    block.tolist(),
                )
            yield changes.evict(name, block, reason=reason, by=by)
