from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.before_images import Room
from carls_jax.bank.changes import author
from carls_jax.bank.columns import SLICE_ROWS
from carls_jax.bank.initializers import constant, uniform
from carls_jax.bank.layout import columns_of
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import BankFullError

from .conftest import rows_of

ADAGRAD = optimizer("adagrad", learning_rate=0.1, initial_accumulator_value=0.25)
SPEC = TableSpec(
    "t",
    {
        "w": Field((2,), init=constant(0.5), optimizer=ADAGRAD),
        "u": Field((3,), init=uniform(-1.0, 1.0)),
        "n": Field(dtype="int64", history=2),
        "p": Field(group="g"),
        "q": Field(group="g"),
    },
)
ME, YOU = author(source="me"), author(source="you")


def keys_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def add(table: TableShard, *numbers: int, by: Any = ME) -> np.ndarray:
    """Adds rows with their initial values, as a change does, and returns their slots."""
    table.make_room(keys_of(*numbers), source=by.source)
    return table.create(keys_of(*numbers), by=by)


def remove(table: TableShard, *numbers: int, by: Any = ME) -> None:
    with table.lock:
        slots = table.find(keys_of(*numbers), source=by.source)
        table.remove(keys_of(*numbers), slots, by=by)


def rows(table: TableShard, slots: np.ndarray) -> dict[str, Any]:
    return {name: column[slots].tolist() for name, column in table.columns.items()}


def test_a_table_has_a_column_for_all_that_it_keeps() -> None:
    table = TableShard(SPEC)
    groups, metadata = ("w", "u", "n", "g"), ("version", "step", "updated_at", "source", "clock")
    expected = {"key", "state/w/sum_of_squares", "history/n/value"}
    expected |= {f"value/{name}" for name in SPEC.fields}
    expected |= {f"{kind}/{group}" for kind in metadata for group in groups}
    expected |= {f"history/n/{kind}" for kind in metadata}
    assert set(table.columns) == set(columns_of(SPEC, table.optimizers)) == expected
    assert table.columns["history/n/value"].shape[1:] == (2,)


def test_metadata_of_one_field_take_less_than_40_bytes_a_row() -> None:
    columns = columns_of(TableSpec("t", {"x": Field((128,))}), {})
    assert sum(one.row_bytes for name, one in columns.items() if name != "value/x") <= 40


def test_new_rows_have_their_initial_values() -> None:
    table = TableShard(SPEC)
    slots = add(table, 7, 3)

    new = rows(table, slots)
    assert new["key"] == [7, 3]
    assert new["value/w"] == [[0.5, 0.5]] * 2
    assert new["value/n"] == [0, 0]
    assert new["state/w/sum_of_squares"] == [[0.25, 0.25]] * 2
    assert (new["version/g"], new["step/g"], new["source/g"]) == ([0, 0], [-1, -1], [0, 0])
    drawn = SPEC.fields["u"].init.rows(
        keys_of(7, 3), seed=0, field="u", shape=(3,), dtype="float32"
    )
    assert_array_equal(table.columns["value/u"][slots], drawn)


def test_fields_that_the_caller_writes_get_no_initial_values() -> None:
    table = TableShard(SPEC)
    assert set(table.first_values(keys_of(1), but={"w"})) == {
        "value/u",
        "state/w/sum_of_squares",
        *(f"step/{group}" for group in SPEC.groups),
    }


def test_keys_are_found_where_they_were_put() -> None:
    table = TableShard(SPEC)
    slots = add(table, 7, 3)
    found = table.find(keys_of(3, 9, 7, -1, 3))
    assert_array_equal(found, [slots[1], -1, slots[0], -1, slots[1]])
    assert table.num_rows == 2
    assert_array_equal(np.sort(slots), table.live_slots())


def test_a_removed_row_leaves_nothing_to_the_next_one() -> None:
    table = TableShard(SPEC)
    slots = add(table, 7, 3)
    with table.lock:
        table.write(("n",), slots, {"value/n": keys_of(70, 30)}, by=author(step=4, source="me"))
        table.write(("w",), slots, {"value/w": np.ones((2, 2))}, by=ME)
    remove(table, 7)

    assert_array_equal(table.find(keys_of(7, 3)), [-1, slots[1]])
    assert table.num_rows == 1
    again = add(table, 9)
    assert again == slots[0]
    fresh = TableShard(SPEC)
    expected = rows(fresh, add(fresh, 9))
    assert rows(table, again) == expected


def test_slots_are_used_again_before_new_ones() -> None:
    table = TableShard(SPEC)
    add(table, *range(10))
    remove(table, 2, 5, 7)
    assert table.used_slots == 10
    assert table.live_slots().size == table.num_rows == 7

    added = add(table, 20, 21, 22, 23)

    assert sorted(added.tolist()) == [2, 5, 7, 10]
    assert table.used_slots == 11
    assert_array_equal(table.live_slots(2, 6), [2, 3, 4, 5])


def test_memory_that_only_holds_zeros_is_not_touched() -> None:
    table = TableShard(SPEC)

    def num_bytes() -> int:
        return os.fstat(table.memory.descriptor).st_blocks * 512

    slots = add(table, *range(100_000))
    before = num_bytes()
    table.columns["value/n"][slots] = 1
    assert num_bytes() - before >= table.columns["value/n"][slots].nbytes


def test_versions_count_and_history_keeps_the_last_writes() -> None:
    table = TableShard(SPEC)
    slots = add(table, 7, 3)
    for step in (1, 2, 3):
        with table.lock:
            table.write(("n",), slots[:1], {"value/n": keys_of(step)}, by=author(step=step))
    written = rows(table, slots)
    assert written["version/n"] == [3, 0]
    # Write v is at place (v - 1) % 2.
    assert written["history/n/value"] == [[3, 2], [0, 0]]
    assert written["history/n/step"] == [[3, 2], [0, 0]]
    assert written["history/n/version"] == [[3, 2], [0, 0]]


def test_a_table_with_authors_has_a_row_for_each_author_of_a_key() -> None:
    table = TableShard(TableSpec("t", {"x": Field()}, per_source=True))
    mine, yours = add(table, 1, 2, by=ME), add(table, 1, by=YOU)

    assert_array_equal(table.find(keys_of(1, 2), source="me"), mine)
    assert_array_equal(table.find(keys_of(1, 2), source="you"), [yours[0], -1])
    assert_array_equal(table.find(keys_of(1), source="nobody"), [-1])
    assert table.num_rows == 3
    remove(table, 1, by=ME)
    assert_array_equal(table.find(keys_of(1), source="you"), yours)
    assert [list(table.sources)[n] for n in table.columns["author"][table.live_slots()]] == [
        "me",
        "you",
    ]


# Limits


def test_a_full_table_refuses_more_rows_and_says_what_to_do() -> None:
    table = TableShard(TableSpec("t", {"x": Field()}, max_rows=3))
    add(table, 1, 2)
    with pytest.raises(BankFullError, match=r"'t' holds 2 of at most 3 rows; 2 more.*max_rows"):
        table.make_room(keys_of(3, 4))
    add(table, 3)
    table.make_room(keys_of())
    remove(table, 1)
    add(table, 4)
    assert table.num_rows == 3


def alike(num_keys: int) -> np.ndarray:
    """Makes keys whose hashes begin with the same 24 bits, by running SplitMix64 backwards."""
    mixed = np.uint64(0xABCDEF) << np.uint64(40) | np.arange(num_keys, dtype=np.uint64)

    def unshift(x: np.ndarray, bits: int) -> np.ndarray:
        shifted = x
        for _ in range(64 // bits):
            shifted = x ^ (shifted >> np.uint64(bits))
        return shifted

    mixed = unshift(mixed, 31) * np.uint64(pow(0x94D049BB133111EB, -1, 1 << 64))
    mixed = unshift(mixed, 27) * np.uint64(pow(0xBF58476D1CE4E5B9, -1, 1 << 64))
    return (unshift(mixed, 30) - np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def test_keys_made_to_overload_the_index_are_refused_before_any_is_added() -> None:
    table = TableShard(SPEC)
    keys = alike(20_000)
    with pytest.raises(BankFullError, match="share"):
        table.make_room(keys)
    assert (table.num_rows, table.used_slots) == (0, 0)
    add(table, 1, 2, 3)
    assert (table.find(keys_of(1, 2, 3)) >= 0).all()


def test_room_once_made_is_enough_for_keys_added_slice_by_slice() -> None:
    table = TableShard(TableSpec("t", {"x": Field()}))
    keys = np.random.default_rng(0).permutation(100_000)
    table.make_room(keys)
    partitions = table.num_bytes
    table.create(keys, by=ME)
    assert table.num_bytes - partitions == 100_000 * sum(
        column.dtype.itemsize for column in table.columns.values()
    )
    assert_array_equal(table.columns["key"][table.find(keys)], keys)


@pytest.mark.parametrize(
    ("width", "num_rows"), [(1, SLICE_ROWS), (256, 1024), (1 << 18, 1), (1 << 20, 1)]
)
def test_a_lock_is_held_for_so_many_rows_or_bytes(width: int, num_rows: int) -> None:
    table = TableShard(TableSpec("t", {"x": Field((width,))}))
    slices = list(table.slices(2 * num_rows + 1))
    assert slices == [slice(start, start + num_rows) for start in (0, num_rows, 2 * num_rows)]
    assert list(table.slices(0)) == []


# Images


def test_an_image_holds_all_and_loads_into_an_equal_table() -> None:
    spec = TableSpec("t", SPEC.fields, per_source=True)
    table = TableShard(spec)
    add(table, 1, 2, by=ME)
    slots = add(table, 1, 9, 5, by=YOU)
    with table.lock:
        table.write(
            ("n",), slots, {"value/n": keys_of(10, 90, 50)}, by=author(step=3, source="you")
        )
    remove(table, 9, by=YOU)
    image = table.begin_image(Room())
    assert image.num_rows == 4

    other = TableShard(spec)
    other.sources.replace(image.names["sources"])
    other.clocks.replace(image.names["clocks"])
    held = rows_of(image)
    for part in (slice(3), slice(3, None)):
        other.load({name: column[part] for name, column in held.items()})

    assert other.num_rows == 4
    for by, keys in ((ME, (1, 2)), (YOU, (1, 5))):
        found, expected = (
            rows(one, one.find(keys_of(*keys), source=by.source)) for one in (other, table)
        )
        assert found == expected
    assert_array_equal(other.find(keys_of(9), source="you"), [-1])
    assert add(other, 9, by=YOU).size == 1


def test_negative_zeros_are_loaded_as_such() -> None:
    table = TableShard(TableSpec("t", {"x": Field(), "y": Field()}))
    slots = add(table, 1)
    table.columns["value/x"][slots] = -0.0
    other = TableShard(table.spec)
    other.load(rows_of(table.begin_image(Room())))
    assert np.signbit(other.columns["value/x"][other.find(keys_of(1))])


def test_an_image_of_more_rows_than_fit_is_refused() -> None:
    small = TableShard(TableSpec("t", {"x": Field()}, max_rows=1))
    large = TableShard(TableSpec("t", {"x": Field()}))
    add(large, 1, 2)
    with pytest.raises(BankFullError, match="holds 0 of at most 1 rows; 2 more"):
        small.load(rows_of(large.begin_image(Room())))
