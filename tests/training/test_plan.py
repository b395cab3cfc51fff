"""What can be said wrong in a plan, and when that is noticed."""

from __future__ import annotations

import re

import pytest

from carls_jax.bank import Bank, Field, TableSpec
from carls_jax.bank.optimizers import optimizer
from carls_jax.errors import (
    DtypeError,
    FieldNotFoundError,
    InvalidInputError,
    TableNotFoundError,
)
from carls_jax.training import Lookup, Push, Update
from carls_jax.training.plan import check_plan

NODES = TableSpec(
    "nodes",
    {
        "z": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0)),
        "neighbors": Field((3,), dtype="int64"),
        "score": Field(),
    },
)


@pytest.fixture
def bank(local_bank: Bank) -> Bank:
    local_bank.table(NODES)
    return local_bank


def test_one_field_may_be_given_by_its_name() -> None:
    assert Lookup("nodes", "z", keys="id").fields == ("z",)


def test_then_goes_on_from_the_end_of_the_chain() -> None:
    lookup = Lookup(NODES, "neighbors", keys="id", max_age_steps=5)
    lookup = lookup.then("neighbors", create=True).then(("z", "score"), table="others")

    assert [link.table for link in lookup.links] == [NODES, NODES, "others"]
    assert [link.fields for link in lookup.links] == [
        ("neighbors",),
        ("neighbors",),
        ("z", "score"),
    ]
    assert [link.keys for link in lookup.links] == ["id", "neighbors", "neighbors"]
    assert [link.max_age_steps for link in lookup.links] == [5, None, None]
    assert [link.create for link in lookup.links] == [False, True, False]
    assert lookup.last.table == "others"


def test_a_field_that_a_spec_lacks_is_refused_at_once() -> None:
    message = re.escape("table 'nodes' has no field 'y'; it has z, neighbors, score")
    with pytest.raises(FieldNotFoundError, match=message):
        Lookup(NODES, "y", keys="id")
    with pytest.raises(FieldNotFoundError, match=message):
        Lookup(NODES, "neighbors", keys="id").then("y")
    with pytest.raises(FieldNotFoundError, match=message):
        Update(NODES, "y", keys="id")


def test_then_needs_one_field_to_go_on_from() -> None:
    with pytest.raises(InvalidInputError, match="goes on from one field"):
        Lookup(NODES, ("neighbors", "z"), keys="id").then("z")


def test_a_lookup_of_no_fields_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="names no field"):
        Lookup(NODES, (), keys="id")


def test_a_good_plan_passes(bank: Bank) -> None:
    plan = {"own": Lookup("nodes", "neighbors", keys="id").then(("z", "score"))}
    check_plan(
        plan, {"z": Push("nodes", "z", keys="own"), "s": Update(NODES, "score", keys="id")}, bank
    )


@pytest.mark.parametrize(
    ("plan", "writes", "error", "message"),
    [
        ({"a": Lookup("nods", "z", keys="id")}, {}, TableNotFoundError, "this bank has nodes"),
        ({"a": Lookup("nodes", "y", keys="id")}, {}, FieldNotFoundError, "no field 'y'"),
        (
            {"a": Lookup("nodes", "neighbors", keys="id").then("y")},
            {},
            FieldNotFoundError,
            "no field 'y'",
        ),
        (
            {"a": Lookup("nodes", "z", keys="id").then("z")},
            {},
            DtypeError,
            "goes on from field 'z' of table 'nodes', which is float32: keys are integers",
        ),
        ({"a": "nodes"}, {}, InvalidInputError, "plan['a']='nodes': give a Lookup"),
        ({}, {"w": Update("nods", "z", keys="id")}, TableNotFoundError, "this bank has nodes"),
        ({}, {"w": Update("nodes", "y", keys="id")}, FieldNotFoundError, "no field 'y'"),
        (
            {},
            {"w": Push("nodes", "score", keys="id")},
            InvalidInputError,
            "field 'score' of table 'nodes' has no optimizer",
        ),
        ({}, {"w": Lookup("nodes", "z", keys="id")}, InvalidInputError, "give an Update or a Push"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(
    bank: Bank, plan: dict, writes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        check_plan(plan, writes, bank)
