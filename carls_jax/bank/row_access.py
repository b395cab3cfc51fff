"""Reading and writing rows: every column of a row at once, found by its key, without a lock.

`read_rows` may run in other processes, on a read-only mapping of the table's memory, while the
table's one writer writes. What it gives is, for each key, the row as it was at one moment during
the call. It looks up, copies and checks in one pass: a row's lines of memory are asked for some
keys before they are copied, so that many are under way at once. What that is
worth: docs/decisions/rows-without-locks.md.

n is the number of keys, C the number of columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.index import SEQUENCE, home_of, slot_from
from carls_jax.bank.machine import (
    CACHE_LINE,
    acquire_int64,
    compiled,
    copy_bytes,
    fence_acquire,
    fill_bytes,
    inlined,
    load_int32,
    load_int64,
    prefetch,
)
from carls_jax.bank.row_guard import begin_read, begin_write, end_write, guard_at, is_unchanged
from carls_jax.keys import PADDING

Array = NDArray[Any]

# What `read_rows` and `write_rows` know of a column, int64 each.
ADDRESS, ROW_BYTES, BUFFER, FILL_OR_STRIDE = range(4)
NUM_FACTS = 4

# Of each column's row; the processor goes on by itself.
_LINES_AHEAD = 8
_ROWS_AHEAD = 16
_BLOCK = 64
# A row is written in a microsecond, a partition of the index remade in some hundred.
_MAX_ATTEMPTS = 10_000
_GAVE_UP = -2


@compiled
def read_rows(
    keys: Array,
    start: int,
    keys_column: int,
    guards: int,
    state: int,
    directory: int,
    cells: int,
    columns: Array,
    buffer: Array,
    found: Array,
) -> int:
    """Copies the rows of keys into a buffer.

    Args:
      keys: int64 `[n]`.
      start: Where in `keys` to begin.
      keys_column, guards: Addresses of the table's keys and guards.
      state, directory, cells: Addresses of the table's `KeyIndex`.
      columns: int64 `[C, 4]`: where the column is, bytes of its rows, where in the buffer copies of
        them begin, and the byte that fills the rows of keys without one.
      buffer: uint8, room for n rows of each column.
      found: bool `[n]`, told which keys have one.

    Returns:
      n; or less: a row or the index was being written for so long that the caller should do
      something else before it goes on from there.
    """
    n = keys.size
    facts, num_columns, room = columns.ctypes.data, columns.shape[0], buffer.ctypes.data
    slots, seen = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.uint32)
    for block in range(start, n, _BLOCK):
        size = min(_BLOCK, n - block)
        sequence = acquire_int64(state + 8 * SEQUENCE)
        for i in range(size):
            slots[i] = home_of(keys[block + i], state, directory)
            prefetch(cells + 4 * slots[i])
        for i in range(size):
            guess = np.int64(load_int32(cells + 4 * slots[i]))
            if guess >= 0:  # most keys are at home
                prefetch(keys_column + 8 * guess)
                prefetch(guard_at(guards, guess))
        for i in range(size):
            slots[i] = _slot_of(slots[i], keys[block + i], keys_column, state, cells)
            seen[i] = begin_read(guard_at(guards, max(slots[i], 0)))
        for i in range(size):
            if i + _ROWS_AHEAD < size:
                _ask_for(facts, num_columns, max(slots[i + _ROWS_AHEAD], 0))
            _copy_row(facts, num_columns, room, slots[i], block + i)
        fence_acquire()
        # While the index is remade a key may seem absent.
        is_complete = not sequence & 1 and acquire_int64(state + 8 * SEQUENCE) == sequence
        for i in range(size):
            is_right = is_complete
            if slots[i] >= 0:
                is_right = _is_whole(slots[i], seen[i], keys[block + i], keys_column, guards)
            found[block + i] = slots[i] >= 0
            if not is_right:
                slot = _read_row(
                    keys[block + i],
                    keys_column,
                    guards,
                    state,
                    directory,
                    cells,
                    facts,
                    num_columns,
                    room,
                    block + i,
                )
                if slot == _GAVE_UP:
                    return block + i
                found[block + i] = slot >= 0
    return n


@inlined
def _is_whole(slot: Any, seen: Any, key: Any, keys_column: Any, guards: Any) -> Any:
    """Tells whether a copied row was the key's, and not written, since its guard was seen."""
    return (
        not seen & np.uint32(1)
        # The slot may have gone to another key since it was found.
        and load_int64(keys_column + 8 * slot) == key
        and is_unchanged(guard_at(guards, slot), seen)
    )


@compiled
def _read_row(
    key: int,
    keys_column: int,
    guards: int,
    state: int,
    directory: int,
    cells: int,
    facts: int,
    num_columns: int,
    room: int,
    place: int,
) -> int:
    """Copies one row that others write; returns its slot, -1 if there is none, or `_GAVE_UP`."""
    for _ in range(_MAX_ATTEMPTS):
        sequence = acquire_int64(state + 8 * SEQUENCE)
        if sequence & 1:
            continue
        home = home_of(key, state, directory)
        slot = _slot_of(home, key, keys_column, state, cells)
        at = guard_at(guards, max(slot, 0))
        guard = begin_read(at)
        if slot >= 0 and (guard & np.uint32(1) or load_int64(keys_column + 8 * slot) != key):
            continue
        _copy_row(facts, num_columns, room, slot, place)
        if slot >= 0 and is_unchanged(at, guard):
            return int(slot)
        fence_acquire()
        if slot < 0 and acquire_int64(state + 8 * SEQUENCE) == sequence:
            return int(slot)
    return _GAVE_UP


@inlined
def _slot_of(home: Any, key: Any, keys_column: Any, state: Any, cells: Any) -> Any:
    """Returns the slot of a key, or less than 0."""
    # Padding is the key of slots without a row, one of which may still be in a cell.
    return np.int64(-1) if key == PADDING else slot_from(home, key, keys_column, state, cells)


@inlined
def _fact(facts: Any, column: Any, which: Any) -> Any:
    return load_int64(facts + 8 * (NUM_FACTS * column + which))


@inlined
def _ask_for(facts: Any, num_columns: Any, slot: Any) -> None:
    """Asks for the memory of a row."""
    for column in range(num_columns):
        row_bytes = _fact(facts, column, ROW_BYTES)
        row = _fact(facts, column, ADDRESS) + slot * row_bytes
        for line in range(min((row_bytes + CACHE_LINE - 1) // CACHE_LINE, _LINES_AHEAD)):
            prefetch(row + line * CACHE_LINE)


@inlined
def _copy_row(facts: Any, num_columns: Any, room: Any, slot: Any, place: Any) -> None:
    """Copies a row into the buffer at an address, or what stands for none where the slot is -1."""
    for column in range(num_columns):
        row_bytes = _fact(facts, column, ROW_BYTES)
        to = room + _fact(facts, column, BUFFER) + place * row_bytes
        if slot >= 0:
            copy_bytes(to, _fact(facts, column, ADDRESS) + slot * row_bytes, row_bytes)
        else:
            fill_bytes(to, _fact(facts, column, FILL_OR_STRIDE), row_bytes)


@compiled
def write_rows(slots: Array, guards: int, columns: Array) -> None:
    """Overwrites rows from buffers; for the table's one writer.

    Args:
      slots: intp `[n]`, no slot twice.
      guards: Address of the table's guards.
      columns: int64 `[C, 4]`: where the column is, bytes of its rows, where the new rows are, and
        how many bytes apart (0: all are the same).
    """
    for place in range(slots.size):
        if place + _ROWS_AHEAD < slots.size:
            ahead = slots[place + _ROWS_AHEAD]
            for column in range(columns.shape[0]):
                prefetch(columns[column, ADDRESS] + ahead * columns[column, ROW_BYTES])
        slot = slots[place]
        at = guard_at(guards, slot)
        begin_write(at)
        for column in range(columns.shape[0]):
            row_bytes = columns[column, ROW_BYTES]
            copy_bytes(
                columns[column, ADDRESS] + slot * row_bytes,
                columns[column, BUFFER] + place * columns[column, FILL_OR_STRIDE],
                row_bytes,
            )
        end_write(at)
