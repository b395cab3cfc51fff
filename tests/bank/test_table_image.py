"""An image of a table stays as it was while the table changes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.before_images import Room
from carls_jax.bank.changes import author
from carls_jax.bank.columns import SLICE_BYTES, SLICE_ROWS
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_image import TableImage
from carls_jax.bank.table_shard import TableShard

from .conftest import rows_of

ME = author(source="me")
SPEC = TableSpec("t", {"x": Field(dtype="int64", history=2), "y": Field((3,))})
NUM_ROWS = 5000


@pytest.fixture
def table() -> TableShard:
    """Makes a table whose row k has x = k, but for every seventh, which was removed."""
    table = TableShard(SPEC)
    add(table, np.arange(NUM_ROWS))
    remove(table, np.arange(0, NUM_ROWS, 7))
    return table


def add(table: TableShard, keys: np.ndarray) -> None:
    table.make_room(keys)
    set_x(table, table.create(keys, by=ME), keys)


def set_x(table: TableShard, slots: np.ndarray, x: np.ndarray) -> None:
    with table.lock:
        table.write(("x",), slots, {"value/x": x}, by=ME)


def remove(table: TableShard, keys: np.ndarray) -> None:
    with table.lock:
        table.remove(keys, table.find(keys), by=ME)


def read(image: TableImage, num_rows: int) -> dict[str, Any]:
    rows = {
        name: np.empty((num_rows, *column.shape[1:]), column.dtype)
        for name, column in image.columns.items()
    }
    image.read(rows)
    return rows


def live_keys() -> np.ndarray:
    keys = np.arange(NUM_ROWS)
    return keys[keys % 7 != 0]


def test_nothing_that_is_done_later_is_seen(table: TableShard) -> None:
    expected = rows_of(table.begin_image(Room()))
    table.end_image()
    image = table.begin_image(room := Room())
    keys = live_keys()
    parts = [read(image, 1)]
    remove(table, keys[::2])  # and their slots are used again, with those that were free
    add(table, np.arange(10_000, 10_000 + NUM_ROWS))
    set_x(table, table.find(keys[1::2]), -keys[1::2])
    parts.append(read(image, 1000))
    set_x(table, table.find(keys[1::2]), keys[1::2])
    remove(table, keys[1::2])
    assert room.num_bytes > 0
    parts.append(read(image, keys.size - 1001))
    for name, column in expected.items():
        assert_array_equal(np.concatenate([part[name] for part in parts]), column)
    assert_array_equal(np.sort(expected["key"]), keys)
    assert_array_equal(expected["value/x"], expected["key"])
    assert room.num_bytes == 0
    assert table.find(keys).max() == -1


def test_what_was_read_or_came_later_is_not_kept(table: TableShard) -> None:
    image = table.begin_image(room := Room())
    read(image, 100)
    set_x(table, table.find(live_keys()[:100]), np.arange(100))
    with table.lock:
        table.keep_before(np.arange(NUM_ROWS, NUM_ROWS + 10))
    assert room.num_bytes == 0
    set_x(table, table.find(live_keys()[100:102]), np.arange(2))
    row_bytes = sum(column[:1].nbytes for column in table.columns.values())
    assert room.num_bytes == 2 * row_bytes
    read(image, 1)
    assert room.num_bytes == row_bytes


def test_once_it_has_ended_nothing_is_kept(table: TableShard) -> None:
    table.begin_image(room := Room(1))
    slots = table.find(live_keys())
    set_x(table, slots, live_keys())
    table.end_image()
    assert room.num_bytes == 0
    table.wait_for_room(NUM_ROWS)
    set_x(table, slots, live_keys())
    assert room.num_bytes == 0
    table.end_image()


def test_columns_may_be_written_after_keep_before_and_write_told_none(table: TableShard) -> None:
    """So does a kernel that moves rows itself."""
    image = table.begin_image(Room())
    slots = table.find(live_keys())
    with table.lock:
        table.keep_before(slots)
        table.columns["value/y"][slots] = 9.0
        table.write(("y",), slots, {}, by=ME)
    held = rows_of(image)
    assert (held["value/y"] == 0).all()
    assert (held["version/y"] == 0).all()


def test_a_row_that_changes_while_it_is_copied_is_kept(
    table: TableShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = table.begin_image(Room())
    copy, slots = image._copy, table.find(live_keys())

    def copy_late(name: str, *arguments: Any) -> None:
        set_x(table, slots, np.full(slots.size, -1))
        copy(name, *arguments)

    monkeypatch.setattr(image, "_copy", copy_late)
    held = rows_of(image)
    assert_array_equal(held["value/x"], held["key"])


def test_reading_takes_no_memory_for_what_was_never_written() -> None:
    table = TableShard(TableSpec("t", {"x": Field((1024,))}))
    add_empty = np.arange(SLICE_ROWS)
    table.make_room(add_empty)
    table.create(add_empty, by=ME)
    if not table.memory.is_shared:
        pytest.skip("the table's memory is not shared")
    before = os.fstat(table.memory.descriptor).st_blocks
    rows_of(table.begin_image(Room()))
    assert os.fstat(table.memory.descriptor).st_blocks == before


def test_a_row_may_be_larger_than_a_slice() -> None:
    table = TableShard(TableSpec("t", {"x": Field((SLICE_BYTES,))}))
    table.make_room(np.arange(2))
    slots = table.create(np.arange(2), by=ME)
    with table.lock:
        table.columns["value/x"][slots] = slots[:, None]
    assert rows_of(table.begin_image(Room()))["value/x"][:, -1].tolist() == [0.0, 1.0]
