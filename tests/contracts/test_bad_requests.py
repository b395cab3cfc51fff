"""Whether bad requests change nothing, asked of every kind of bank."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from carls_jax import errors
from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.interface import Bank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


def _update(**arguments: Any) -> Callable[[Table], object]:
    given: dict[str, Any] = {"keys": [3, 1], "values": {"label": [1, 2]}, **arguments}
    return lambda table: table.update(**given)


def _push(values: object, **arguments: Any) -> Callable[[Table], object]:
    return lambda table: table.push([3, 1], {"embedding": values}, **arguments)


NAN_LAST = [[1.0, 1.0], [1.0, float("nan")]]
BAD_REQUESTS: dict[str, tuple[Callable[[Table], object], type[errors.CarlsError], str]] = {
    "no such field": (_update(values={"lable": [1, 2]}), errors.FieldNotFoundError, "it has"),
    "no fields": (_update(values={}), errors.InvalidInputError, "name at least one"),
    "too many values": (_update(values={"label": [1, 2, 3]}), errors.ShapeError, r"\[3\]"),
    "wrong width": (_push(np.ones((2, 3))), errors.ShapeError, r"expected \[2, 2\]"),
    "floats for integers": (_update(values={"label": [1.5, 2]}), errors.DtypeError, "float64"),
    "not a number": (_push(NAN_LAST), errors.NonFiniteError, "first in row 1"),
    "infinite": (
        _update(values={"confidence": [np.inf, 1.0]}),
        errors.NonFiniteError,
        "first in row 0",
    ),
    "no optimizer": (
        lambda table: table.push([3, 1], {"label": [1, 1]}),
        errors.InvalidInputError,
        "has no optimizer",
    ),
    "string keys": (_update(keys=["3", "1"]), errors.KeyKindError, "integer keys"),
    "float keys": (_update(keys=[3.0, 1.0]), errors.KeyKindError, "float64"),
    "keys of two dimensions": (_update(keys=[[3, 1]]), errors.ShapeError, "1, 2"),
    "no keys": (_update(keys=[], values={"label": []}), errors.ShapeError, r"\[0\]"),
    "bad step": (_update(step=-2), errors.InvalidInputError, "step=-2"),
    "bad source": (_update(source="a b"), errors.InvalidInputError, "'a b'"),
    "bad clock": (_update(clock=""), errors.InvalidInputError, "clock=''"),
    "bad combine": (_push(np.ones((2, 2)), combine="max"), errors.InvalidInputError, "'max'"),
    "lookup of no field": (
        lambda table: table.lookup([3], fields=("nope",), create=True),
        errors.FieldNotFoundError,
        "embedding, label, confidence",
    ),
    "lookup of a negative age": (
        lambda table: table.lookup([3], max_age_steps=-1, create=True),
        errors.InvalidInputError,
        "max_age_steps=-1",
    ),
    "lookup of authors": (
        lambda table: table.lookup([3], sources="*", create=True),
        errors.InvalidInputError,
        "not per_source",
    ),
    "scan of no rows": (
        lambda table: next(table.scan(block_rows=0)),
        errors.InvalidInputError,
        "block_rows=0",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_changes_nothing_and_says_why(nodes: Table, name: str) -> None:
    call, error, text = BAD_REQUESTS[name]
    nodes.update([3, 4], {"label": [30, 40]}, step=5)
    before = nodes.to_numpy()

    with pytest.raises(error, match=text):
        call(nodes)

    after = nodes.to_numpy()
    for column in before:
        assert_array_equal(after[column], before[column], strict=True)
    assert nodes.bank.stats().clocks == {"main": 5}


def _raw(
    table: str, values: dict[str, NDArray[Any]], kind: str = "update"
) -> Callable[[Bank], Any]:
    """Sends what `Table` would have refused before it left the client."""
    make = changes.update if kind == "update" else changes.push
    keys = np.array(KEYS)
    return lambda bank: bank.apply(make(table, keys, values, by=changes.author(step=9)))


RAW_REQUESTS: dict[str, tuple[Callable[[Bank], object], type[errors.CarlsError]]] = {
    "no such table": (_raw("edges", {"label": np.arange(8)}), errors.TableNotFoundError),
    "too few values": (_raw("nodes", {"label": np.arange(7)}), errors.ShapeError),
    "wrong dtype": (_raw("nodes", {"label": np.arange(8.0)}), errors.DtypeError),
    "push to no optimizer": (
        _raw("nodes", {"label": np.arange(8)}, "push"),
        errors.InvalidInputError,
    ),
    "no author": (
        _raw("messages", {"text": np.zeros((8, 2), np.int32)}),
        errors.InvalidInputError,
    ),
    "lookup in no table": (
        lambda bank: bank.lookup(pb.Lookup(table="edges", fields=["x"]), np.array(KEYS)),
        errors.TableNotFoundError,
    ),
    "lookup of no field": (
        lambda bank: bank.lookup(pb.Lookup(table="nodes", create=True), np.array(KEYS)),
        errors.InvalidInputError,
    ),
    "lookup of int32 keys": (
        lambda bank: bank.lookup(
            pb.Lookup(table="nodes", fields=["label"], create=True), np.array(KEYS, np.int32)
        ),
        errors.KeyKindError,
    ),
    "scan of no rows": (
        lambda bank: bank.scan(pb.Scan(table="nodes", fields=["label"])),
        errors.InvalidInputError,
    ),
}


@pytest.mark.parametrize("name", RAW_REQUESTS)
def test_the_bank_checks_for_itself_what_it_is_sent(
    bank: Bank, name: str, specs: SimpleNamespace
) -> None:
    call, error = RAW_REQUESTS[name]
    bank.table(specs.nodes)
    bank.table(specs.messages)

    with pytest.raises(error):
        call(bank)

    stats = bank.stats()
    assert [table.num_rows for table in stats.tables.values()] == [0, 0]
    assert stats.clocks == {}


def test_a_full_table_refuses_new_rows_whole(bank: Bank) -> None:
    spec = TableSpec("small", fields={"x": Field(())}, max_rows=4)
    table = bank.table(spec)

    with pytest.raises(errors.BankFullError, match="at most 4 rows"):
        table.update(np.arange(100), {"x": np.zeros(100)})

    assert len(table) == 0


def test_an_author_must_have_a_name(messages: Table) -> None:
    with pytest.raises(errors.InvalidInputError, match="per_source"):
        messages.update([3], {"text": [[1, 1]]}, source="")
