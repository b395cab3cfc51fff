from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import changes, reading
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import author
from carls_jax.bank.columns import SLICE_ROWS
from carls_jax.bank.rows import METADATA, Rows
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_shard import TableShard

NUM_ROWS = 2 * SLICE_ROWS + 3
FIELDS = {"n": Field(dtype="int64", history=2), "x": Field((2,))}


@pytest.fixture
def shard() -> Shard:
    """Holds rows 0, 2, 4, …, written at step 7 by "maker"; each is its own key."""
    shard = Shard()
    shard.apply(changes.create_table(TableSpec("t", FIELDS)))
    keys = 2 * np.arange(NUM_ROWS)
    by = author(step=7, source="maker", updated_at=9.0)
    shard.apply(changes.update("t", keys, {"n": keys}, by=by))
    return shard


@pytest.fixture
def table(shard: Shard) -> TableShard:
    return shard.table("t")


def lookup(table: TableShard, keys: np.ndarray, **arguments: Any) -> tuple[Rows, np.ndarray]:
    clocks = arguments.pop("clocks", {"main": 7})
    request = pb.Lookup(**{"fields": ["n"], "clock": "main", **arguments})
    return reading.lookup(table, request, keys, clocks=clocks)


def test_rows_are_gathered_over_all_slices(table: TableShard) -> None:
    keys = np.random.default_rng(0).permutation(2 * NUM_ROWS)
    rows, exists = lookup(table, keys, fields=["x", "n"], metadata=METADATA)

    is_there = keys % 2 == 0
    assert_array_equal(exists, is_there)
    assert_array_equal(rows.found, is_there)
    assert_array_equal(rows["n"], np.where(is_there, keys, 0))
    assert_array_equal(rows.version["n"], is_there.astype(np.int64), strict=True)
    assert_array_equal(rows.step["n"], np.where(is_there, 7, -1))
    assert_array_equal(rows.updated_at["n"], np.where(is_there, 9.0, 0.0))
    assert_array_equal(rows.source["n"], np.where(is_there, "maker", ""))
    assert_array_equal(rows.clock["n"], np.where(is_there, "main", ""))
    assert list(rows.metadata) == list(METADATA)


def test_masks_are_the_callers_own(table: TableShard) -> None:
    rows, exists = lookup(table, np.array([0]), fields=["n", "x"])
    for mask in (exists, rows.found, rows.present["n"]):
        mask[:] = False
        assert rows.present["x"].all()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"max_age_steps": 3, "clocks": {"main": 10}}, True),
        ({"max_age_steps": 2, "clocks": {"main": 10}}, False),
        ({"max_age_steps": 2, "clocks": {"main": 10}, "now": 9}, True),
        (
            {"max_age_steps": 0, "clocks": {"main": 7}, "now": 5},
            True,
        ),  # written ahead of the reader
        ({"max_age_steps": 0, "clocks": {"main": 10}, "now": 7, "clock": "other"}, False),
        ({"max_age_steps": 1, "fields": ["x"]}, False),  # never written
    ],
)
def test_a_field_is_as_old_as_its_clock_says(
    table: TableShard, arguments: dict[str, Any], found: bool
) -> None:
    rows, exists = lookup(table, np.array([4]), **arguments)
    assert rows.found.tolist() == [found]
    assert exists.tolist() == [True]
    assert set(rows.metadata) == set()
    if "n" in rows.values:
        assert rows["n"].tolist() == [4 if found else 0]


def test_an_empty_table_is_read() -> None:
    table = TableShard(TableSpec("t", FIELDS))
    rows, exists = lookup(table, np.array([0, -1]), metadata=METADATA, max_age_steps=1)
    assert not exists.any()
    assert rows["n"].tolist() == [0, 0]
    assert rows.source["n"].tolist() == ["", ""]
    request = pb.Scan(fields=["n"], num_rows=10)
    scanned, following = reading.scan(table, request)
    assert (scanned.keys.size, scanned["n"].dtype, following) == (0, np.int64, 0)


# Scans


@pytest.mark.parametrize("num_rows", [1000, SLICE_ROWS, SLICE_ROWS + 1, 1 << 20])
def test_a_scan_passes_over_what_was_deleted(shard: Shard, num_rows: int) -> None:
    gone = np.arange(0, 4 * SLICE_ROWS, 6)
    shard.apply(changes.delete("t", gone, by=author()))
    table, start, seen = shard.table("t"), 0, []
    while True:
        request = pb.Scan(fields=["n"], metadata=["step"], start=start, num_rows=num_rows)
        rows, start = reading.scan(table, request)
        assert rows.keys.size <= num_rows
        assert_array_equal(rows["n"], rows.keys)
        assert (rows.step["n"] == 7).all()
        assert rows.found.all()
        assert rows.present["n"].all()
        seen.append(rows.keys)
        if not start:
            break
    expected = np.setdiff1d(2 * np.arange(NUM_ROWS), gone)
    assert_array_equal(np.sort(np.concatenate(seen)), expected)


def test_a_scan_beyond_the_end_gives_nothing(table: TableShard) -> None:
    rows, following = reading.scan(table, pb.Scan(fields=["n"], start=1 << 40, num_rows=5))
    assert (rows.keys.size, following) == (0, 0)


# History


def test_the_histories_of_many_rows_are_their_own(shard: Shard) -> None:
    for step in (8, 9):
        keys = 4 * np.arange(NUM_ROWS // 2)
        by = author(step=step, source=f"job/{step}")
        shard.apply(changes.update("t", keys, {"n": keys + step}, by=by))
    keys = np.arange(2 * NUM_ROWS)
    written = reading.history(shard.table("t"), pb.History(field="n"), keys)
    for key, writes in zip(keys.tolist(), written, strict=True):
        told = [(one.version, one.step, one.source, int(one.value)) for one in writes]
        if key % 4 == 0 and key < 4 * (NUM_ROWS // 2):
            assert told == [(3, 9, "job/9", key + 9), (2, 8, "job/8", key + 8)]
        else:
            assert told == ([(1, 7, "maker", key)] if key % 2 == 0 else [])
