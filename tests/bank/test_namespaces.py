"""Several runs in one bank: each sees what it would see in a bank of its own.

All that banks have in common is asked of a namespaced one, too, by the contract suites.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.connect import connect
from carls_jax.bank.interface import Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankClosedError,
    InvalidInputError,
    SpecMismatchError,
    TableNotFoundError,
)

NODES = TableSpec("nodes", {"n": Field(dtype="int64", history=2)})
SAID = TableSpec("said", {"n": Field()}, per_source=True)


@pytest.fixture
def whole() -> Iterator[LocalBank]:
    with LocalBank(source="me") as bank:
        yield bank


@pytest.fixture
def runs(whole: Bank) -> list[Bank]:
    return [whole.namespace("one"), whole.namespace("two")]


def test_tables_of_one_name_are_two(whole: Bank, runs: list[Bank]) -> None:
    for number, run in enumerate(runs):
        run.table(NODES).update([1, 2 + number], {"n": [number, number]})
    whole.table(NODES).update([1], {"n": [9]})

    for number, run in enumerate(runs):
        assert run.tables() == {"nodes": NODES}
        assert run.table("nodes").name == "nodes"
        rows = run.table("nodes").lookup([1, 2, 3])
        assert_array_equal(rows["n"], [number, 0, number])
        assert rows.found.sum() == 2
    assert sorted(whole.tables()) == ["nodes", "one/nodes", "two/nodes"]
    assert_array_equal(whole.table("two/nodes").lookup([3])["n"], [1])


def test_specs_need_not_agree(runs: list[Bank]) -> None:
    one, two = runs
    one.table(NODES)
    two.table(replace(NODES, keys="str"))
    with pytest.raises(SpecMismatchError):
        two.table(NODES)
    wide = replace(NODES, fields={**NODES.fields, "new": Field()})
    assert one.alter(wide).spec == wide
    assert list(two.tables()["nodes"].fields) == ["n"]


def test_a_table_of_another_namespace_is_not_found(runs: list[Bank]) -> None:
    one, two = runs
    one.table(NODES)
    for name in ("nodes", "one/nodes"):
        with pytest.raises(TableNotFoundError, match="none yet"):
            two.table(name)


def test_clocks_are_told_apart(whole: Bank, runs: list[Bank]) -> None:
    for step, run in zip((7, 100), runs, strict=True):
        run.advance(step)
        run.table(NODES).update([1], {"n": [1]}, step=step - 5, clock="main")
    assert [run.stats().clocks for run in runs] == [{"main": 7}, {"main": 100}]
    assert whole.stats().clocks == {"one/main": 7, "two/main": 100}
    for run in runs:
        table = run.table("nodes")
        assert table.lookup([1], max_age_steps=5).found.all()
        assert not table.lookup([1], max_age_steps=4).found.any()
        rows = table.lookup([1], metadata=METADATA)
        assert rows.clock["n"].tolist() == ["main"]
        assert [write.clock for write in table.history([1], "n")[0]] == ["main"]
        assert [rows.clock["n"][0] for rows in table.scan(metadata=("clock",))] == ["main"]


def test_steps_are_compared_on_the_namespaces_own_clock(runs: list[Bank]) -> None:
    table = runs[0].table(NODES)
    table.update([1], {"n": [1]}, step=5, clock="teacher")
    assert table.update([1], {"n": [2]}, step=4, clock="teacher", if_newer=True).num_kept == 1
    assert table.update([1], {"n": [3]}, step=4, clock="student", if_newer=True).num_kept == 0


def test_sources_are_told_apart(runs: list[Bank]) -> None:
    for run, source in zip(runs, ("ann", "bob"), strict=True):
        run.table(SAID).update([1], {"n": [1]}, source=source)
        assert run.table(SAID).lookup([1]).sources == (source,)
        assert list(run.stats().tables["said"].rows_written) == [source]


def test_rows_that_a_lookup_creates_are_the_namespaces(whole: Bank, runs: list[Bank]) -> None:
    runs[0].table(SAID).lookup([1], create=True)
    assert len(whole.table("one/said")) == 1
    assert "main" not in whole.stats().clocks


def test_a_snapshot_is_of_the_whole_bank(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as whole:
        one, two = whole.namespace("one"), whole.namespace("two")
        for run in (one, two):
            run.table(NODES).update([1], {"n": [1]})
        taken = one.snapshot("first")
        two.table(NODES).update([1], {"n": [2]})
        assert [label.label for label in two.snapshots()] == ["first"]
        incarnation = two.identity.incarnation
        assert one.restore(taken) == taken
        assert two.identity.incarnation != incarnation
        assert_array_equal(two.table(NODES).lookup([1])["n"], [1])


def test_a_bank_is_connected_to_in_a_namespace(tmp_path: Path) -> None:
    with connect(f"local:{tmp_path}", namespace="run", source="me") as run:
        run.table(NODES)
        assert run.source == "me"
    with pytest.raises(BankClosedError):
        run.tables()
    with connect(f"local:{tmp_path}") as whole:  # which the first has let go of
        assert list(whole.tables()) == ["run/nodes"]


def test_closing_a_namespace_leaves_the_bank_open(whole: Bank) -> None:
    with whole.namespace("one") as run:
        run.table(NODES)
    assert list(whole.tables()) == ["one/nodes"]
    with pytest.raises(BankClosedError):
        run.table("nodes")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 65, 7, None])
def test_other_names_are_refused(whole: Bank, name: object) -> None:
    with pytest.raises(InvalidInputError, match="namespace="):
        whole.namespace(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b"])
def test_other_names_are_refused_before_a_bank_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="namespace="):
        connect(f"local:{tmp_path}/bank", namespace=name)
    assert not list(tmp_path.iterdir())


def test_a_namespace_has_no_namespaces(runs: list[Bank]) -> None:
    with pytest.raises(InvalidInputError, match="in one already"):
        runs[0].namespace("inner")


def test_names_that_become_too_long_are_refused(runs: list[Bank]) -> None:
    name = "/".join(["x" * 63] * 4)
    with pytest.raises(InvalidInputError, match="at most 256 letters"):
        runs[0].table(replace(NODES, name=name))


def test_what_was_moved_is_counted_once(whole: Bank, runs: list[Bank]) -> None:
    runs[0].table(NODES).update([1, 2], {"n": np.array([1, 2])})
    (flow,) = runs[0].ledger.rows()
    assert (flow["table"], flow["num_rows"]) == ("nodes", 2)
    assert not whole.ledger.rows()
