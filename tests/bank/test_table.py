"""What `Table` does beyond the promises that `tests/contracts` asks of every bank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import table as table_module
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.errors import (
    FieldNotFoundError,
    InvalidInputError,
    KeyNotFoundError,
    NonFiniteError,
)

NODES = TableSpec(
    "nodes",
    {"x": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0)), "n": Field(dtype="int64")},
)
SAID = TableSpec("said", {"x": Field(), "n": Field(dtype="int8")}, per_source=True)


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank(source="me") as bank:
        yield bank


@pytest.fixture
def nodes(bank: LocalBank) -> Table:
    return bank.table(NODES)


@pytest.fixture
def said(bank: LocalBank) -> Table:
    return bank.table(SAID)


# Arguments


BAD_CALLS: dict[str, tuple[Callable[[Table], object], str]] = {
    "one field as text": (lambda t: t.lookup([1], fields="x"), r"fields='x'.*\('x',\)"),
    "no fields": (lambda t: t.lookup([1], fields=()), r"fields=\(\): name at least one of x, n"),
    "one kind as text": (lambda t: t.lookup([1], metadata="step"), r"metadata='step'.*\('step',\)"),
    "unknown metadata": (
        lambda t: t.lookup([1], metadata=("age",)),
        r"metadata=\('age',\): allowed are version, step, updated_at, source, clock",
    ),
    "negative age": (lambda t: t.lookup([1], max_age_steps=-1), "max_age_steps=-1: allowed"),
    "half a step": (lambda t: t.lookup([1], max_age_steps=1.5), "max_age_steps=1.5"),
    "a flag for steps": (lambda t: t.lookup([1], now=True), "now=True"),
    "a word for steps": (lambda t: t.lookup([1], now="now"), "now='now'"),
    "no clock": (lambda t: t.lookup([1], clock=""), "clock=''"),
    "sources of none": (lambda t: t.lookup([1], sources="*"), "'nodes' is not per_source"),
    "unknown combination": (
        lambda t: t.push([1], {"x": [[1, 2]]}, combine="max"),
        "combine='max': allowed are 'sum' and 'mean'",
    ),
    "no block": (lambda t: next(t.scan(block_rows=0)), r"block_rows=0: allowed is 1 to 2\*\*20"),
    "history of what has none": (lambda t: t.history([1], "n"), r"'n'.*Field\(history=8\)"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_call_that_cannot_work_is_refused(nodes: Table, name: str) -> None:
    call, text = BAD_CALLS[name]
    with pytest.raises(InvalidInputError, match=text):
        call(nodes)
    assert nodes.stats().counters == {}


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        ((), r"sources=\(\): name at least one source"),
        (("bob", "a b"), "sources='a b'"),
        ("!bob", "sources='!bob'"),
    ],
)
def test_authors_are_named(said: Table, sources: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        said.lookup([1], sources=sources)


def test_only_somebody_can_be_me() -> None:
    with LocalBank() as nobodys:
        table = nobodys.table(SAID)
        with pytest.raises(InvalidInputError, match=r"sources='!me': connect with source="):
            table.lookup([1], sources="!me")
        with pytest.raises(InvalidInputError, match="per_source; name the writer"):
            table.lookup([1], create=True)
        assert table.lookup([1]).found.shape == (1, 0)


def test_a_lookup_has_a_bounded_number_of_rows_of_all_authors(
    said: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from carls_jax.bank import reading

    for source in ("a", "b"):
        said.update([1, 2], {"x": [1, 2]}, source=source)
    monkeypatch.setattr(reading, "MAX_KEYS", 4)
    assert said.lookup([1, 2]).found.all()
    with pytest.raises(InvalidInputError, match="3 keys of 2 sources: allowed are 4 rows in all"):
        said.lookup([1, 2, 3])
    assert said.lookup([1, 2, 3], sources="a").found.shape == (3, 1)


# Blocks


def test_what_is_loaded_goes_in_blocks_of_bounded_rows_and_bytes(
    nodes: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "BLOCK_ROWS", 5)
    assert nodes.load(range(12), {"n": range(12)}) == 12
    assert nodes.stats().counters["update_calls"] == 3
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 16)  # two rows of "x"
    assert nodes.load(range(5), {"x": np.ones((5, 2))}) == 0
    assert nodes.stats().counters["update_calls"] == 6
    assert [rows.keys.size for rows in nodes.scan(fields=("x",))] == [2] * 6
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 1)
    assert nodes.load([1], {"x": np.ones((1, 2))}) == 0


def test_a_load_that_fails_has_written_the_blocks_before(
    nodes: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "BLOCK_ROWS", 2)
    values = np.ones((4, 2), np.float32)
    values[3, 0] = np.nan
    with pytest.raises(NonFiniteError):
        nodes.load(range(4), {"x": values})
    assert nodes.to_numpy()["keys"].tolist() == [0, 1]


# All rows


def test_a_table_with_authors_comes_with_them(said: Table) -> None:
    said.update([2, 1], {"x": [20, 10]}, source="bob")
    said.update([1], {"x": [11]}, source="ann")
    said.lookup([1], create=True)
    columns = said.to_numpy()
    assert list(columns) == ["keys", "source", "x", "n"]
    assert columns["keys"].tolist() == [1, 1, 1, 2]
    assert columns["source"].tolist() == ["ann", "bob", "me", "bob"]
    assert columns["x"].tolist() == [11, 10, 0, 20]


def test_an_empty_table_has_columns_of_no_rows(nodes: Table, said: Table) -> None:
    columns = nodes.to_numpy()
    assert_array_equal(columns["x"], np.empty((0, 2), np.float32), strict=True)
    assert_array_equal(columns["keys"], np.empty(0, np.int64), strict=True)
    assert list(said.to_numpy()) == ["keys", "source", "x", "n"]


def test_a_field_with_the_name_of_the_keys_must_be_left_out(bank: LocalBank) -> None:
    table = bank.table(TableSpec("odd", {"keys": Field(), "x": Field()}))
    with pytest.raises(InvalidInputError, match=r"fields=\{'keys'\}: read them with scan"):
        table.to_numpy()
    assert list(table.to_numpy(fields=("x",))) == ["keys", "x"]


def test_a_sample_is_drawn_by_its_seed_from_all_rows(nodes: Table, said: Table) -> None:
    nodes.update(range(100), {"n": range(100)})
    rows = nodes.sample(7, seed=3)
    assert rows.found.all()
    assert np.unique(rows.keys).size == 7
    assert_array_equal(rows["n"], rows.keys)
    assert list(rows.values) == ["x", "n"]
    assert_array_equal(nodes.sample(7, seed=3).keys, rows.keys)
    assert nodes.sample(7, seed=4).keys.tolist() != rows.keys.tolist()
    assert sorted(nodes.sample(1000, fields=("n",)).keys) == list(range(100))

    for source in ("a", "b"):
        said.update([1, 2], {"x": [1, 2]}, source=source)
    assert said.sample().found.shape == (2, 2)


def test_an_empty_table_has_no_sample(nodes: Table) -> None:
    with pytest.raises(KeyNotFoundError, match="'nodes' has no rows"):
        nodes.sample()
    with pytest.raises(FieldNotFoundError):
        nodes.sample(fields=("y",))
