"""What compact fields store, send and give back, asked of every kind of bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from carls_jax import errors
from carls_jax.bank import changes
from carls_jax.bank.compact import FORMS, decode, encode
from carls_jax.bank.initializers import constant
from carls_jax.bank.interface import Bank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.training.fetching import Fetcher
from carls_jax.training.plan import Lookup

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards
WIDTH = 5
ROW_BYTES = {"bfloat16": 10, "int8": 9}
VALUES = np.random.default_rng(0).normal(size=(8, WIDTH)).astype(np.float32)


def spec_of(form: str, *, per_source: bool = False) -> TableSpec:
    sgd = optimizer("sgd", learning_rate=1.0)
    return TableSpec(
        "vectors",
        {
            "w": Field((WIDTH,), compact=form, init=constant(0.1), optimizer=sgd, history=2),
            "next": Field((), dtype="int64"),
        },
        per_source=per_source,
    )


def expected(form: str, values: Any) -> NDArray[np.float32]:
    """Returns what is left of values once they were stored."""
    field = spec_of(form).field("w")
    return decode(field, encode(field, np.asarray(values, np.float32)))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def table(bank: Bank, form: str) -> Table:
    return bank.table(spec_of(form))


def test_the_spec_comes_back(table: Table, bank: Bank, form: str) -> None:
    assert bank.tables()["vectors"].field("w").compact == form
    with pytest.raises(errors.SpecMismatchError, match="compact"):
        bank.table(TableSpec("vectors", {**table.spec.fields, "w": Field((WIDTH,))}))


def test_values_are_given_and_got_as_float32(table: Table, form: str) -> None:
    table.update(KEYS, {"w": VALUES})
    got = table.lookup([*KEYS, 77])
    assert got["w"].dtype == np.float32
    assert_array_equal(got["w"], [*expected(form, VALUES), np.zeros(WIDTH)])
    assert got.found.tolist() == [True] * 8 + [False]
    order = np.argsort(KEYS)
    everything = table.to_numpy(fields=("w",))
    assert_array_equal(everything["keys"], np.sort(KEYS))
    assert_array_equal(everything["w"], expected(form, VALUES)[order])


def test_rows_that_were_loaded_are_the_same(table: Table, form: str) -> None:
    assert table.load(KEYS, {"w": VALUES}) == 8
    assert_array_equal(table.lookup(KEYS)["w"], expected(form, VALUES))


def test_what_is_sent_is_counted_as_it_is_sent(table: Table, bank: Bank, form: str) -> None:
    table.update(KEYS, {"w": VALUES})
    table.lookup(KEYS, fields=("w",))
    list(table.scan(fields=("w",)))
    table.push(KEYS, {"w": VALUES})
    sent = {direction: one.num_bytes for direction, one in bank.ledger.totals().items()}
    compact = 8 * ROW_BYTES[form]
    gradients = VALUES.nbytes
    assert sent == {"update": compact, "lookup": compact, "scan": compact, "push": gradients}


def test_a_row_that_is_created_has_its_initial_value(table: Table, form: str) -> None:
    created = table.lookup(KEYS, create=True)["w"]
    assert_array_equal(created, expected(form, np.full((8, WIDTH), 0.1)))


def test_a_push_moves_the_stored_row(table: Table, form: str) -> None:
    table.update(KEYS, {"w": VALUES})
    gradients = VALUES[::-1].copy()
    table.push(KEYS, {"w": gradients})
    moved = expected(form, expected(form, VALUES) - gradients)
    assert_array_equal(table.lookup(KEYS)["w"], moved)


def test_the_history_has_what_was_stored(table: Table, form: str) -> None:
    table.update([3], {"w": VALUES[:1]})
    table.update([3, 1], {"w": VALUES[1:3]})
    of_3, of_1 = table.history([3, 1], "w")
    assert_array_equal([one.value for one in of_3], expected(form, VALUES[[1, 0]]))
    assert_array_equal([one.value for one in of_1], expected(form, VALUES[2:3]))


def test_rows_of_several_authors_have_an_axis_more(bank: Bank, form: str) -> None:
    table = bank.table(spec_of(form, per_source=True))
    table.update(KEYS, {"w": VALUES}, source="a")
    table.update(KEYS, {"w": -VALUES}, source="b")
    both = np.stack([expected(form, VALUES), expected(form, -VALUES)], axis=1)
    assert_array_equal(table.lookup(KEYS)["w"], both)


def test_a_plan_fetches_values(table: Table, bank: Bank, form: str) -> None:
    """By one lookup, by a chain of two, and of rows that are held already."""
    table.update(KEYS, {"w": VALUES, "next": np.roll(KEYS, -1)})
    plan = {
        "own": Lookup(table.spec, "w", keys="id"),
        "of_next": Lookup(table.spec, "next", keys="id").then("w"),
    }
    fetch = Fetcher(plan, {}, bank, depth=3)
    for step in range(2):
        known = fetch({"id": np.array(KEYS)}, step).known
        assert_array_equal(known["own"]["w"], expected(form, VALUES))
        assert_array_equal(known["of_next"]["w"], expected(form, np.roll(VALUES, -1, axis=0)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_what_is_not_finite_is_refused(table: Table, bad: float) -> None:
    values = VALUES.astype(np.float64)
    values[2, 1] = bad
    with pytest.raises(errors.NonFiniteError, match=r"too large for float32 in 1 of 8 rows.*row 2"):
        table.update(KEYS, {"w": values})
    with pytest.raises(errors.NonFiniteError, match=r"in 1 of 8 rows.*row 2"):
        table.push(KEYS, {"w": values})
    assert len(table) == 0


def test_a_forged_change_is_refused(table: Table, bank: Bank, form: str) -> None:
    field = table.spec.field("w")
    good = encode(field, VALUES)
    by = changes.author(source="me")
    bad = good.copy()
    bad.view(np.uint8)[5] = 0xFF  # the upper half of a bfloat16, or its place in an int8 row
    if form == "int8":
        bad[5, :4] = np.array([np.nan], "<f4").view(np.int8)
    else:
        bad[5, 0] = 0x7FC0
    forged = [
        (VALUES, errors.DtypeError, str(field.stored_dtype)),
        (good[:, 1:].copy(), errors.ShapeError, "expected"),
        (bad, errors.NonFiniteError, "row 5"),
    ]
    for values, error, message in forged:
        with pytest.raises(error, match=message):
            bank.apply(changes.update("vectors", np.array(KEYS), {"w": values}, by=by))
    with pytest.raises(errors.DtypeError, match="float32"):
        bank.apply(changes.push("vectors", np.array(KEYS), {"w": good}, by=by))
    assert len(table) == 0


def test_a_snapshot_gives_the_same_bytes(rooted_bank: Bank, form: str) -> None:
    table = rooted_bank.table(spec_of(form))
    table.update(KEYS, {"w": VALUES})
    taken = rooted_bank.snapshot("here")
    table.update(KEYS, {"w": -VALUES})
    rooted_bank.restore(taken)
    assert_array_equal(rooted_bank.table("vectors").lookup(KEYS)["w"], expected(form, VALUES))
