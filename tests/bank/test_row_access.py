from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal

from carls_jax.bank.machine import address_of
from carls_jax.bank.row_access import (
    ADDRESS,
    BUFFER,
    FILL_OR_STRIDE,
    NUM_FACTS,
    ROW_BYTES,
    read_rows,
    write_rows,
)

from .guarded_rows import GuardedRows

X = "value/x"


def facts(column: np.ndarray, *, fill: int = 0) -> np.ndarray:
    facts = np.zeros((1, NUM_FACTS), np.int64)
    facts[0, ADDRESS] = address_of(column)
    facts[0, ROW_BYTES] = column[0].nbytes
    facts[0, FILL_OR_STRIDE] = fill
    return facts


def read(
    rows: GuardedRows, keys: np.ndarray, start: int, buffer: np.ndarray, found: np.ndarray
) -> int:
    return read_rows(
        keys,
        start,
        address_of(rows.columns["key"]),
        address_of(rows.guards),
        *rows.index.memory.addresses,
        facts(rows.columns[X], fill=0xFF),
        buffer,
        found,
    )


def test_reading_goes_on_from_the_row_that_was_being_written() -> None:
    rows = GuardedRows()
    rows.put(np.arange(1, 201))
    keys = np.arange(1, 211)
    buffer, found = np.zeros(keys.size * 12 + 64, np.uint8), np.zeros(keys.size, np.bool_)
    rows.guards[[99, 149]] += 1
    assert read(rows, keys, 0, buffer, found) == 99
    rows.guards[99] += 1
    assert read(rows, keys, 99, buffer, found) == 149
    rows.guards[149] += 1
    assert read(rows, keys, 149, buffer, found) == keys.size
    x = buffer[: keys.size * 12].view(np.float32).reshape(-1, 3)
    assert_array_equal(x[:200], np.repeat(keys[:200, None], 3, axis=1))
    assert np.isnan(x[200:]).all()  # all bits are set
    assert_array_equal(found, keys <= 200)
    assert not buffer[keys.size * 12 :].any()


def test_reading_changes_nothing_in_the_table() -> None:
    """A reader may have the memory mapped to be read alone."""
    rows = GuardedRows()
    rows.put(np.arange(1, 201))
    before = {name: array.copy() for name, array in rows.memory.arrays.items() if array.size < 1e5}
    rows.read(np.arange(300), X)
    for name, array in before.items():
        assert_array_equal(rows.memory.arrays[name], array)


def test_the_same_row_may_be_written_to_many_slots() -> None:
    rows = GuardedRows()
    table, row = facts(rows.columns[X]), np.array([1, 2, 3], np.float32)
    table[0, BUFFER] = address_of(row)
    write_rows(np.array([9, 0, 4]), address_of(rows.guards), table)
    assert_array_equal(rows.columns[X][[9, 0, 4]], [row] * 3)
    assert np.flatnonzero(rows.guards).tolist() == [0, 4, 9]
