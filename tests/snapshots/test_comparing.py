"""Tests of `compare`: it finds what differs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import Bank, LocalBank
from carls_jax.bank.resharding import reshard
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.snapshots.comparing import compare
from carls_jax.snapshots.difference import Change, Difference, TableDifference, describe
from carls_jax.snapshots.exported import exported_content
from carls_jax.snapshots.exporting import export
from carls_jax.snapshots.tables import Content, snapshot_content
from tests.bank.stored_rows import fill, open_bank

NODES = carls.TableSpec(
    "nodes",
    {
        "score": carls.Field((2,)),
        "count": carls.Field(dtype="int64"),
        "tiny": carls.Field(dtype="int8"),
        "is_new": carls.Field(dtype="bool"),
    },
)
VOTES = carls.TableSpec("votes", {"vote": carls.Field()}, per_source=True)
FIRST = {
    "score": np.zeros((4, 2), np.float32),
    "count": np.zeros(4, np.int64),
    "tiny": np.full(4, -128, np.int8),
    "is_new": np.zeros(4, np.bool_),
}

Compare = Callable[[Callable[[Bank], None]], Difference]


@pytest.fixture
def compared(tmp_path: Path) -> Compare:
    """Returns what changes a bank of four rows, and tells the difference to what it was before."""

    def after(change: Callable[[Bank], None]) -> Difference:
        with LocalBank(tmp_path, source="a") as bank:
            bank.table(NODES).update(np.arange(4), FIRST, step=1)
            bank.table(VOTES).update([1, 2], {"vote": [1.0, 2.0]}, source="a")
            bank.table(VOTES).update([1], {"vote": [5.0]}, source="b")
            bank.snapshot("a")
            change(bank)
            bank.snapshot("b")
        stored = StoredBank(tmp_path)
        return compare(snapshot_content(stored, "a"), snapshot_content(stored, "b"), part_bytes=16)

    return after


def values_of(change: TableDifference) -> dict[str, Change]:
    return {name: one for name, one in change.columns.items() if name.startswith("value/")}


def test_equal_snapshots_do_not_differ(compared: Compare) -> None:
    assert not compared(lambda bank: None)


def test_changed_rows_are_counted_by_column_with_their_largest_difference(
    compared: Compare,
) -> None:
    def change(bank: Bank) -> None:
        bank.table("nodes").update(
            [1, 3],
            {
                "score": [[0.5, 0], [0, -2.0]],
                "count": [1, -(2**63)],
                "tiny": np.array([127, -128], np.int8),
                "is_new": [False, True],
            },
            step=1,
        )

    found = compared(change)
    assert list(found.tables) == ["nodes"]
    nodes = found.tables["nodes"]
    assert (nodes.only_in_a, nodes.only_in_b, nodes.num_changed) == (0, 0, 2)
    assert values_of(nodes) == {
        "value/score": Change(2, 2.0),
        "value/count": Change(2, float(2**63)),
        "value/tiny": Change(1, 255.0),
        "value/is_new": Change(1, 1.0),
    }
    assert nodes.columns["version/score"] == Change(2, 1.0)
    assert "step/score" not in nodes.columns
    assert "source/score" not in nodes.columns


def test_a_zero_that_lost_its_sign_differs_by_nothing(compared: Compare) -> None:
    found = compared(lambda bank: bank.table("nodes").update([1], {"score": [[-0.0, 0.0]]}))
    assert found.tables["nodes"].columns["value/score"] == Change(1, 0.0)


def test_rows_of_one_side_are_counted(compared: Compare) -> None:
    def change(bank: Bank) -> None:
        bank.table("nodes").delete([0])
        bank.table("nodes").update([7, 8], {"count": [1, 1]}, step=1)

    nodes = compared(change).tables["nodes"]
    assert (nodes.only_in_a, nodes.only_in_b, nodes.num_changed) == (1, 2, 0)


def test_rows_of_several_authors_are_different_rows(compared: Compare) -> None:
    def change(bank: Bank) -> None:
        bank.table("votes").delete([1], source="a")
        bank.table("votes").update([1], {"vote": [6.5]}, source="b")
        bank.table("votes").update([2], {"vote": [3.0]}, source="b")

    votes = compared(change).tables["votes"]
    assert (votes.only_in_a, votes.only_in_b, votes.num_changed) == (1, 1, 1)
    assert votes.columns["value/vote"] == Change(1, 1.5)


def test_another_source_is_found_by_its_name(compared: Compare) -> None:
    found = compared(lambda bank: bank.table("nodes").update([2], {"count": [0]}, source="c"))
    assert found.tables["nodes"].columns["source/count"] == Change(1, None)


def test_tables_and_clocks_of_one_side_are_told(compared: Compare) -> None:
    def change(bank: Bank) -> None:
        bank.table(carls.TableSpec("new", {"x": carls.Field()}))
        bank.advance(9)
        bank.advance(3, clock="other")

    found = compared(change)
    assert found == Difference(
        tables_only_in_b=("new",), clocks={"main": (1, 9), "other": (None, 3)}
    )
    assert describe(found, "x", "y").splitlines() == [
        "A is x",
        "B is y",
        "table new is only in B",
        "clock main: 1 in A, 9 in B",
        "clock other: none in A, 3 in B",
    ]


def test_what_differs_is_told_in_words() -> None:
    table = TableDifference(1, 2, ("value/old",), (), 3, {"value/x": Change(3, 0.25)})
    table = replace(table, columns={**table.columns, "source/x": Change(2, None)})
    assert describe(Difference(tables={"nodes": table}), "x", "y").splitlines()[2:] == [
        "table nodes: 1 rows only in A, 2 only in B, 3 changed",
        "  value/old is only in A",
        "  value/x: 3 rows, largest difference 0.25",
        "  source/x: 2 rows",
    ]


@pytest.fixture
def everything(tmp_path: Path) -> Content:
    """Gives a snapshot of a bank of three shards with rows of every kind."""
    with open_bank([tmp_path / f"bank/{index}" for index in range(3)]) as bank:
        fill(bank)
    return snapshot_content(StoredBank(tmp_path / "bank"), "full")


def test_an_export_and_a_bank_of_other_shards_equal_the_snapshot(
    everything: Content, tmp_path: Path
) -> None:
    export(everything, tmp_path / "a.npz")
    reshard([tmp_path / "bank"], [tmp_path / "0", tmp_path / "1"], snapshot="full")
    exported = exported_content(tmp_path / "a.npz")
    resharded = snapshot_content(StoredBank(tmp_path / "0", tmp_path / "1"))
    for a, b in ((everything, exported), (exported, resharded), (resharded, everything)):
        for part_bytes in (100, 1 << 20):
            assert not compare(a, b, part_bytes=part_bytes)
