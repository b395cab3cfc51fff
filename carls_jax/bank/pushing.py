"""Pushes: gradients are combined, rules followed and rows written, in one pass over the rows.

m is the number of rows, F of fields, G of metadata groups, C of columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.compact import PLAIN, VALUE_BYTES
from carls_jax.bank.machine import CACHE_LINE, compiled, copy_bytes, inlined, prefetch
from carls_jax.bank.row_function import call
from carls_jax.bank.row_guard import begin_write, end_write, guard_at
from carls_jax.bank.rules import ROOM, ROOM_VALUES, VALUES, WIDTH
from carls_jax.bank.vectors import vector_at

Array = NDArray[Any]

# What is known of a column: where it is, bytes of what is written, where that lies, the group that
# must have moved, and how many places a row has: write v is at place (v - 1) % places.
ADDRESS, NUM_BYTES, BUFFER, GROUP, PLACES = range(5)

# What is known of a field that is compact: its form (see `compact`; of others `PLAIN`, and nothing
# else), where its column is, bytes of a row there, where an encoded row is put, and where the code
# is that encodes and decodes.
FORM, STORED, STORED_BYTES, ENCODED, ENCODER, DECODER = range(6)

# Of 2 to 16 rows it makes little difference (measured).
_AHEAD = 8
_UINT32 = np.uint32(0)


@compiled
def push_rows(
    slots: Array,
    firsts: Array,
    guards: int,
    rules: Array,
    fields: Array,
    numbers: Array,
    compact: Array,
    group_of: Array,
    columns: Array,
    versions: Array,
    new_versions: Array,
    is_moved: Array,
) -> None:
    """Moves rows, each by the sum of its gradients; what would not stay finite stays as it is.

    Args:
      slots: intp `[m]`, no slot twice.
      firsts: intp `[m]`, where the row's first gradient is.
      guards: Address of the table's guards.
      rules: int64 `[F]`, addresses; see `row_function`.
      fields, numbers: int64 and float64 `[F, ...]`; see `rules`.
      compact: int64 `[F, 6]`, see above. A rule finds such a field's row decoded, and alone.
      group_of: int64 `[F]`: if a field would not stay finite, its whole group stays as it is.
      columns: int64 `[C, 5]`, see above.
      versions: int64 `[G]`, addresses of the columns.
      new_versions: uint32 `[G]`, room for a row's.
      is_moved: bool `[G, m]`, told which rows moved.
    """
    for place in range(min(_AHEAD, slots.size)):
        _fetch(slots[place], guards, columns)
    for place in range(slots.size):
        if place + _AHEAD < slots.size:
            _fetch(slots[place + _AHEAD], guards, columns)
        slot = slots[place]
        for group in range(versions.size):
            is_moved[group, place] = True
            new_versions[group] = vector_at(versions[group], slot + 1, _UINT32)[slot] + np.uint32(1)
        for field in range(rules.size):
            _decode(compact[field], slot, fields[field])
            is_moved[group_of[field], place] &= call(
                rules[field],
                fields[field, ROOM],
                fields[field:].ctypes.data,
                numbers[field:].ctypes.data,
                slot,
                firsts[place],
            )
            _encode(compact[field], fields[field])
        guard = guard_at(guards, slot)
        begin_write(guard)
        for column in range(columns.shape[0]):
            group = columns[column, GROUP]
            if is_moved[group, place]:
                _write(columns[column], slot, new_versions[group])
        end_write(guard)


@inlined
def _decode(compact: Array, slot: int, field: Array) -> None:
    if compact[FORM] != PLAIN:
        stored = compact[STORED] + slot * compact[STORED_BYTES]
        call(compact[DECODER], field[ROOM], compact[FORM], field[VALUES], stored, field[WIDTH])


@inlined
def _encode(compact: Array, field: Array) -> None:
    """Encodes what a row becomes; what is not finite is not written."""
    if compact[FORM] != PLAIN:
        new_values = field[ROOM] + ROOM_VALUES * field[WIDTH] * VALUE_BYTES
        call(
            compact[ENCODER],
            field[ROOM],
            compact[FORM],
            new_values,
            compact[ENCODED],
            field[WIDTH],
        )


@inlined
def _write(column: Array, slot: int, version: Any) -> None:
    num_bytes, places = column[NUM_BYTES], column[PLACES]
    ring = slot * places
    if places > 1:
        ring += np.int64(version - np.uint32(1)) % places
    copy_bytes(column[ADDRESS] + ring * num_bytes, column[BUFFER], num_bytes)


@inlined
def _fetch(slot: int, guards: int, columns: Array) -> None:
    """Asks for the memory of a row, which is to be written."""
    prefetch(guard_at(guards, slot))
    for column in range(columns.shape[0]):
        num_bytes = columns[column, NUM_BYTES]
        row = columns[column, ADDRESS] + slot * columns[column, PLACES] * num_bytes
        for line in range(0, num_bytes, CACHE_LINE):
            prefetch(row + line)
