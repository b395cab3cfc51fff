"""Gathering: gradients that are pushed to lazy fields are added up beside their rows.

m is the number of rows, W that of elements of a row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.changes import Change
from carls_jax.bank.columns import Slots
from carls_jax.bank.gradients import combined, norm_clipped, norm_of
from carls_jax.bank.machine import CACHE_LINE, address_of, compiled, copy_bytes, inlined, prefetch
from carls_jax.bank.repeats import Distinct, Places
from carls_jax.bank.row_guard import begin_write, end_write, guard_at
from carls_jax.bank.table_shard import TableShard
from carls_jax.bank.vectors import vector_at

Array = NDArray[Any]

# Weight of a gradient's norm in the row's usual norm.
_NEW_NORM = 0.1
_MAX_COUNT = np.iinfo(np.int32).max
# Rows whose memory is asked for before they are written; as in `pushing`.
_AHEAD = 8

# Order of the columns, whose addresses `_gather_rows` takes.
_SUM, _COUNT, _NORM, _SINCE, _STEP, _SOURCE, _CLOCK = range(7)
_ORDER = ("sum", "count", "norm", "since", "step", "source", "clock")


def gather(
    table: TableShard, change: Change, name: str, once: Distinct, slots: Slots, firsts: Places
) -> None:
    """Gathers the gradients of a push for one lazy field; as `applying` applies those of others.

    The gradients of a repeated key are combined first and count as one.

    Args:
      name: The field.
      once: The push's different keys.
      slots: `[m]`, of rows that are there.
      firsts: `[m]`, where each row's first gradient is.
    """
    field, by = table.spec.field(name), change.header.author
    assert field.lazy is not None
    gradients = change.values[name]
    columns = [table.columns[f"pending/{name}/{kind}"] for kind in _ORDER]
    addresses = np.array([address_of(column) for column in columns], np.int64)
    author = np.array([by.step, table.sources.add(by.source), table.clocks.add(by.clock)], np.int64)
    limits = (field.lazy.clip_row_norm, field.lazy.reject_above)
    numbers = np.array([by.updated_at, *(math.inf if limit is None else limit for limit in limits)])
    room = np.empty((2, math.prod(field.shape)), field.dtype)
    num_left_out = np.zeros(2, np.int64)
    for part in table.slices(slots.size):
        with table.lock:
            table.keep_before(slots[part])
            _gather_rows(
                slots[part],
                firsts[part],
                address_of(table.guards),
                addresses,
                address_of(gradients),
                once.following,
                change.header.push.combine == "mean",
                author,
                numbers,
                room,
                num_left_out,
            )
    counted = zip(("gradients_rejected", "rows_overflowed"), num_left_out.tolist(), strict=True)
    table.counts.add({kind: count for kind, count in counted if count})


@compiled
def _gather_rows(
    slots: Array,
    firsts: Array,
    guards: int,
    columns: Array,
    gradients: int,
    following: Array,
    is_mean: bool,
    author: Array,
    numbers: Array,
    room: Array,
    num_left_out: Array,
) -> None:
    """Adds gradients to what was gathered of rows, but for those that are rejected or overflow.

    Args:
      slots: intp `[m]`, no slot twice.
      firsts: intp `[m]`, where the row's first gradient is.
      guards: Address of the table's guards.
      columns: int64 `[7]`, addresses, see above.
      gradients, following, is_mean: See `gradients.combined`.
      author: int64 `[3]`: step, numbers of source and clock.
      numbers: float64 `[3]`: the time, the largest norm, and how many usual norms are rejected.
      room: `[2, W]`.
      num_left_out: int64 `[2]`, counts gradients that were rejected, and that would overflow.
    """
    width, like, room_at = room.shape[1], room[0, 0], room.ctypes.data
    row_bytes = width * room.itemsize
    own, total = vector_at(room_at, width, like), vector_at(room_at + row_bytes, width, like)
    now, max_norm, most_usual = numbers
    step, source, clock = author
    for place in range(slots.size):
        if place + _AHEAD < slots.size:
            _fetch(slots[place + _AHEAD], guards, columns, row_bytes)
        slot = slots[place]
        gathered = vector_at(columns[_SUM] + slot * row_bytes, width, like)
        count = vector_at(columns[_COUNT] + slot * 4, 1, np.int32(0))
        usual = vector_at(columns[_NORM] + slot * 8, 1, np.float64(0))
        gradient = combined(gradients, firsts[place], following, is_mean, own)
        norm = norm_of(gradient) if most_usual < np.inf else 0.0
        gradient = norm_clipped(gradient, max_norm, own)
        if not (_add(gradient, gathered, count[0] > 0, total) and norm < np.inf):
            num_left_out[1] += 1
            continue
        is_rejected = usual[0] > 0 and norm > most_usual * usual[0]
        if norm > 0:
            # No lookup reads it, so the row's guard need not move. An outlier moves it as far as
            # what is not yet one: so it follows a lasting change.
            weight = _NEW_NORM if usual[0] > 0 else 1.0
            usual[0] += weight * ((most_usual * usual[0] if is_rejected else norm) - usual[0])
        if is_rejected:
            num_left_out[0] += 1
            continue
        guard = guard_at(guards, slot)
        begin_write(guard)
        copy_bytes(columns[_SUM] + slot * row_bytes, room_at + row_bytes, row_bytes)
        if count[0] == 0:
            vector_at(columns[_SINCE] + slot * 8, 1, np.float64(0))[0] = now
        count[0] = min(count[0], _MAX_COUNT - 1) + 1
        vector_at(columns[_STEP] + slot * 8, 1, np.int64(0))[0] = step
        vector_at(columns[_SOURCE] + slot * 2, 1, np.uint16(0))[0] = source
        vector_at(columns[_CLOCK] + slot, 1, np.uint8(0))[0] = clock
        end_write(guard)


@inlined
def _add(gradient: Any, gathered: Any, has_gathered: Any, total: Any) -> Any:
    """Adds up `[W]`, where there is something to add to; tells whether all numbers are finite."""
    if has_gathered:
        for i in range(total.size):
            total[i] = gradient[i] + gathered[i]
    else:
        for i in range(total.size):
            total[i] = gradient[i]
    num_bad = 0
    for i in range(total.size):
        num_bad += not abs(total[i]) < np.inf
    return num_bad == 0


@inlined
def _fetch(slot: int, guards: int, columns: Array, row_bytes: int) -> None:
    """Asks for the memory of a row, which is to be written."""
    prefetch(guard_at(guards, slot))
    for line in range(0, row_bytes, CACHE_LINE):
        prefetch(columns[_SUM] + slot * row_bytes + line)
    prefetch(columns[_COUNT] + slot * 4)
    prefetch(columns[_NORM] + slot * 8)
    prefetch(columns[_SINCE] + slot * 8)
    prefetch(columns[_STEP] + slot * 8)
    prefetch(columns[_SOURCE] + slot * 2)
    prefetch(columns[_CLOCK] + slot)
