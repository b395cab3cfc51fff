from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import applying, changes, table_shard
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.columns import SLICE_ROWS
from carls_jax.bank.initializers import constant
from carls_jax.bank.interface import Applied
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankFullError,
    BankOverloadedError,
    CarlsError,
    DtypeError,
    FieldNotFoundError,
    InvalidInputError,
    KeyKindError,
    NonFiniteError,
    ShapeError,
)

SGD = optimizer("sgd", learning_rate=0.5)
ADAGRAD = optimizer("adagrad", learning_rate=1.0, initial_accumulator_value=0.0)
SPEC = TableSpec(
    "t",
    {
        "w": Field((2,), init=constant(8.0), optimizer=SGD),
        "v": Field(optimizer=SGD, group="pair", history=4),
        "u": Field(optimizer=ADAGRAD, group="pair"),
        "n": Field(dtype="int64"),
        "p": Field(group="g"),
        "q": Field(group="g"),
    },
)
SAID = TableSpec("said", {"x": Field()}, per_source=True)
ME = author(source="me", step=1)

Unchanged = Callable[[Shard], AbstractContextManager[None]]


@pytest.fixture
def shard() -> Shard:
    shard = Shard()
    shard.apply(changes.create_table(SPEC))
    shard.apply(changes.create_table(SAID))
    return shard


def array(*numbers: float, dtype: str = "float32") -> np.ndarray:
    return np.array(numbers, dtype)


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def update(*numbers: int, by: pb.Author = ME, if_newer: Any = False, **values: Any) -> Change:
    return changes.update("t", keys(*numbers), values, by=by, if_newer=if_newer)


def push(*numbers: int, by: pb.Author = ME, **arguments: Any) -> Change:
    options = {name: arguments.pop(name) for name in ("combine", "create") if name in arguments}
    return changes.push("t", keys(*numbers), arguments, by=by, **options)


def column(shard: Shard, name: str, *numbers: int) -> list[Any]:
    """Returns what rows of table "t" that are there have in a column."""
    table = shard.table("t")
    slots = table.find(keys(*numbers))
    assert (slots >= 0).all()
    return table.columns[name][slots].tolist()


# Creating


def test_rows_are_created_once_whatever_is_asked(shard: Shard) -> None:
    first = shard.apply(changes.create_rows("t", keys(5, 3, -1, 5), by=ME))
    again = shard.apply(changes.create_rows("t", keys(3, 7), by=ME))
    assert (first.num_created, again.num_created) == (2, 1)
    assert column(shard, "value/w", 3, 5, 7) == [[8.0, 8.0]] * 3
    assert column(shard, "version/w", 3, 5, 7) == [0, 0, 0]


# Updating


def test_an_update_leaves_the_fields_that_it_does_not_name(shard: Shard) -> None:
    shard.apply(update(1, 2, n=keys(10, 20), by=author(step=4, source="maker")))
    assert column(shard, "value/n", 1, 2) == [10, 20]
    assert column(shard, "value/w", 1, 2) == [[8.0, 8.0]] * 2
    assert column(shard, "step/n", 1) == [4]
    assert column(shard, "step/w", 1) == [-1]


def test_of_a_repeated_key_the_last_value_is_written_once(shard: Shard) -> None:
    applied = shard.apply(update(1, -1, 2, 1, n=keys(1, 2, 3, 4)))
    assert applied.num_created == 2
    assert column(shard, "value/n", 1, 2) == [4, 3]
    assert column(shard, "version/n", 1, 2) == [1, 1]


def test_an_update_of_padding_alone_does_nothing(shard: Shard, state_of: Any) -> None:
    before = state_of(shard)["t"]
    assert shard.apply(update(-1, -1, n=keys(1, 2))).num_created == 0
    assert state_of(shard)["t"] == before


def test_a_row_is_created_and_written_at_once(shard: Shard) -> None:
    """A reader that comes whenever the lock is free sees no row that was only created."""
    table = shard.table("t")
    seen: list[int] = []

    class WatchedLock:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            seen.extend(table.columns["version/n"][table.live_slots()].tolist())

    table.lock = WatchedLock()  # type: ignore[assignment]
    count = 2 * SLICE_ROWS + 1
    shard.apply(changes.update("t", np.arange(count), {"n": np.arange(count)}, by=ME))
    assert len(seen) > count
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("step", "clock", "written"),
    [(5, "main", True), (6, "main", True), (4, "main", False), (0, "other", True)],
)
def test_if_newer_keeps_what_a_later_step_of_the_same_clock_wrote(
    shard: Shard, step: int, clock: str, written: bool
) -> None:
    shard.apply(update(1, n=keys(10), by=author(step=5)))
    by = author(step=step, clock=clock)
    applied = shard.apply(update(1, 2, n=keys(11, 12), by=by, if_newer=True))
    assert applied == Applied(applied.sequence, num_created=1, num_kept=0 if written else 1)
    assert column(shard, "value/n", 1, 2) == [11 if written else 10, 12]
    assert column(shard, "step/n", 1, 2) == [step if written else 5, step]


def test_if_newer_keeps_or_writes_a_whole_group(shard: Shard) -> None:
    shard.apply(update(1, p=array(1), q=array(2), n=keys(3), by=author(step=5)))
    shard.apply(update(1, n=keys(4), by=author(step=2)))
    by = author(step=3)
    applied = shard.apply(update(1, p=array(9), q=array(9), n=keys(9), by=by, if_newer=True))
    assert applied.num_kept == 2
    assert column(shard, "value/p", 1) + column(shard, "value/q", 1) == [1, 2]
    assert column(shard, "value/n", 1) == [9]


def test_each_field_is_judged_by_its_own_step(shard: Shard) -> None:
    shard.apply(update(1, 2, n=keys(1, 1), by=author(step=5)))
    shard.apply(update(1, 2, p=array(1, 1), q=array(1, 1), by=author(step=3)))
    shard.apply(update(2, n=keys(1), by=author(step=9, clock="other")))
    values = {"n": keys(7, 7), "p": array(7, 7), "q": array(7, 7)}
    applied = shard.apply(update(1, 2, by=author(step=4), if_newer=True, **values))
    assert applied.num_kept == 1
    assert column(shard, "value/n", 1, 2) == [1, 7]
    assert column(shard, "value/p", 1, 2) == [7, 7]
    assert column(shard, "step/n", 1, 2) == [5, 4]


@pytest.mark.parametrize(("names", "written"), [(["n"], "pq"), (["p"], "n"), (["q", "n"], "")])
def test_if_newer_of_some_fields_leaves_these_and_their_groups(
    shard: Shard, names: list[str], written: str
) -> None:
    by, values = author(step=5), {"n": keys(1), "p": array(1), "q": array(1)}
    shard.apply(update(1, by=by, **values))
    values = {"n": keys(7), "p": array(7), "q": array(7)}
    applied = shard.apply(update(1, by=author(step=4), if_newer=names, **values))
    assert applied.num_kept == 3 - len(written)
    for name in values:
        assert column(shard, f"value/{name}", 1) == [7 if name in written else 1]
    assert shard.apply(update(1, by=by, if_newer=names, **values)).num_kept == 0  # ties win


def test_if_newer_names_fields_that_are_written(shard: Shard, unchanged: Unchanged) -> None:
    with unchanged(shard), pytest.raises(InvalidInputError, match=r"if_newer='p': .* writes n"):
        shard.apply(update(1, n=keys(1), if_newer=["p"]))


# Pushing


def test_each_fields_optimizer_gets_its_gradients(shard: Shard) -> None:
    shard.apply(push(1, w=array(2, 4).reshape(1, 2)))
    assert column(shard, "value/w", 1) == [[7.0, 6.0]]  # 8 - 0.5 gradient
    for gradient in (3.0, 4.0):
        shard.apply(push(1, v=array(gradient), u=array(gradient)))
    assert column(shard, "value/v", 1) == [-3.5]
    # -3/√9 - 4/√(9 + 16)
    np.testing.assert_allclose(column(shard, "value/u", 1), [-1.8], rtol=1e-6)
    assert column(shard, "state/u/sum_of_squares", 1) == [25.0]


def test_a_group_is_pushed_as_one_write(shard: Shard) -> None:
    shard.apply(push(1, v=array(2), u=array(2), by=author(step=6)))
    assert column(shard, "version/pair", 1) == [1]
    assert column(shard, "history/v/value", 1) == [[-1.0, 0, 0, 0]]
    assert column(shard, "history/v/step", 1) == [[6, 0, 0, 0]]


@pytest.mark.parametrize(("combine", "expected"), [("sum", 8 - 0.5 * 6), ("mean", 8 - 0.5 * 2)])
def test_gradients_of_a_repeated_key_count_as_one(
    shard: Shard, combine: Any, expected: float
) -> None:
    gradients = np.repeat(array(1, 9, 2, 3, 4), 2).reshape(5, 2)
    shard.apply(push(1, -1, 1, 1, 2, w=gradients, combine=combine))
    assert column(shard, "value/w", 1, 2) == [[expected] * 2, [6.0] * 2]
    assert column(shard, "version/w", 1, 2) == [1, 1]


def test_unknown_keys_are_reported_in_order_and_spoil_nothing(shard: Shard) -> None:
    shard.apply(changes.create_rows("t", keys(2), by=ME))
    gradients = np.ones((5, 2), np.float32)
    applied = shard.apply(push(9, 2, 4, -1, 9, w=gradients, create=False))
    assert_array_equal(applied.unknown_keys, [4, 9])
    assert applied.num_created == 0
    assert column(shard, "value/w", 2) == [[7.5, 7.5]]
    assert shard.stats().tables["t"].num_rows == 1
    assert shard.stats().tables["t"].counters["rows_pushed"] == 1


def test_a_push_of_unknown_keys_alone_does_nothing(shard: Shard) -> None:
    applied = shard.apply(push(9, w=np.ones((1, 2), np.float32), create=False))
    assert_array_equal(applied.unknown_keys, [9])


def test_a_row_whose_update_overflows_stays_as_it_was(shard: Shard) -> None:
    shard.apply(push(1, 2, v=array(1, 1), u=array(3, 3)))
    # The square of 1e30 is too large for float32: u overflows, so v, of its group, stays as well.
    shard.apply(push(1, 2, v=array(1, 1), u=array(1e30, 4)))
    assert column(shard, "value/v", 1, 2) == [-0.5, -1.0]
    assert column(shard, "state/u/sum_of_squares", 1, 2) == [9.0, 25.0]
    assert column(shard, "version/pair", 1, 2) == [1, 2]
    assert shard.stats().tables["t"].counters["rows_overflowed"] == 1


def test_gradients_whose_sum_overflows_leave_their_row(shard: Shard) -> None:
    most = np.full((3, 2), 3e38, np.float32)
    most[2] = 2
    shard.apply(push(1, 1, 2, w=most))
    assert column(shard, "value/w", 1, 2) == [[8.0, 8.0], [7.0, 7.0]]


def test_many_rows_are_pushed_in_slices(shard: Shard) -> None:
    count = 2 * SLICE_ROWS + 5
    numbers = np.random.default_rng(0).permutation(count)
    gradients = np.stack([numbers, numbers], axis=1).astype(np.float32)
    shard.apply(changes.push("t", numbers, {"w": gradients}, by=ME))
    assert_array_equal(column(shard, "value/w", *numbers), 8 - 0.5 * gradients)


# Deleting


def test_a_source_deletes_its_own_rows(shard: Shard) -> None:
    for source in ("me", "you"):
        values = {"x": array(1, 2)}
        shard.apply(changes.update("said", keys(1, 2), values, by=author(source=source)))
    applied = shard.apply(changes.delete("said", keys(2, 1, 2, 7, -1), by=author(source="me")))
    assert applied.num_deleted == 2
    table = shard.table("said")
    assert (table.find(keys(1, 2), source="me") < 0).all()
    assert (table.find(keys(1, 2), source="you") >= 0).all()
    assert shard.apply(changes.delete("said", keys(1), by=author(source="who"))).num_deleted == 0


# What cannot be applied


KINDS: dict[str, Change] = {
    "create_rows": changes.create_rows("t", keys(1, 99), by=ME),
    "update": update(1, 99, n=keys(5, 5)),
    "push": push(1, 99, w=np.ones((2, 2), np.float32)),
    "delete": changes.delete("t", keys(1, 99), by=ME),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_prepared_and_not_applied_changes_nothing(
    shard: Shard, unchanged: Unchanged, kind: str
) -> None:
    shard.apply(update(1, n=keys(5)))
    with unchanged(shard):
        applying.prepare(shard.table("t"), KINDS[kind])


def _without_kind() -> Change:
    return Change(pb.Change(table="t", author=ME), keys(1))


W = np.ones((1, 2), np.float32)
BAD_CHANGES: dict[str, tuple[Callable[[], Change], type[CarlsError], str]] = {
    "no kind": (_without_kind, InvalidInputError, "kind='None': allowed are create_rows, update"),
    "narrow keys": (
        lambda: changes.create_rows("t", np.array([1], np.int32), by=ME),  # type: ignore[arg-type]
        KeyKindError,
        "dtype int32, expected int64",
    ),
    "no keys": (lambda: changes.delete("t", keys(), by=ME), ShapeError, r"\[0\]"),
    "square keys": (
        lambda: changes.delete("t", keys(1, 2).reshape(1, 2), by=ME),
        ShapeError,
        r"\[1, 2\]",
    ),
    "no clock": (
        lambda: changes.delete("t", keys(1), by=pb.Author()),
        InvalidInputError,
        "clock=''",
    ),
    "impossible step": (
        lambda: update(1, n=keys(1), by=pb.Author(step=-2, clock="main")),
        InvalidInputError,
        "step=-2",
    ),
    "author without a name": (
        lambda: changes.update("said", keys(1), {"x": array(1)}, by=author()),
        InvalidInputError,
        "source='': table 'said' is per_source",
    ),
    "deletion by nobody": (
        lambda: changes.delete("said", keys(1), by=author()),
        InvalidInputError,
        "source=''",
    ),
    "no values": (lambda: update(1), InvalidInputError, "name at least one field"),
    "unknown field": (lambda: update(1, m=keys(1)), FieldNotFoundError, "no field 'm'"),
    "wrong dtype": (lambda: update(1, n=array(1)), DtypeError, "'n' has dtype float32"),
    "wrong shape": (lambda: update(1, 2, n=keys(1)), ShapeError, r"'n' has shape \[1\]"),
    "not finite": (lambda: update(1, 9, v=array(1, np.nan), u=array(1, 1)), NonFiniteError, "'v'"),
    "not finite in padding": (lambda: push(-1, w=W * np.inf), NonFiniteError, "'w'"),
    "half a group updated": (lambda: update(9, p=array(1)), InvalidInputError, "q is missing"),
    "half a group pushed": (lambda: push(9, v=array(1)), InvalidInputError, "u is missing"),
    "no optimizer": (
        lambda: push(9, n=keys(1)),
        InvalidInputError,
        "'n' of table 't' has no optimizer.*declare it",
    ),
    "one of two without": (lambda: push(9, w=W, n=keys(1)), InvalidInputError, "'n'"),
    "impossible combination": (
        lambda: push(9, w=W, combine="max"),
        InvalidInputError,
        "combine='max': allowed are 'sum' and 'mean'",
    ),
}


@pytest.mark.parametrize("name", BAD_CHANGES)
def test_a_change_that_cannot_be_applied_says_why_and_changes_nothing(
    shard: Shard, unchanged: Unchanged, name: str
) -> None:
    make, error, text = BAD_CHANGES[name]
    shard.apply(update(1, 2, n=keys(5, 6), by=author(step=3)))
    with unchanged(shard), pytest.raises(error, match=text):
        shard.apply(make())


# Limits


@pytest.fixture
def full_shard() -> Shard:
    shard = Shard()
    fields = {"w": Field((2,), optimizer=SGD), "n": Field(dtype="int64")}
    shard.apply(changes.create_table(TableSpec("t", fields, max_rows=2)))
    shard.apply(update(1, 2, n=keys(5, 6)))
    return shard


ONE_MORE: dict[str, Change] = {
    "create_rows": changes.create_rows("t", keys(1, 3), by=ME),
    "update": update(1, 3, n=keys(7, 7)),
    "push": push(1, 3, w=np.ones((2, 2), np.float32)),
}


@pytest.mark.parametrize("kind", ONE_MORE)
def test_a_full_table_refuses_a_change_before_any_of_it_is_done(
    full_shard: Shard, unchanged: Unchanged, kind: str
) -> None:
    with unchanged(full_shard), pytest.raises(BankFullError, match="2 of at most 2 rows; 1 more"):
        full_shard.apply(ONE_MORE[kind])


def test_a_full_table_is_still_written_and_pushed_to(full_shard: Shard) -> None:
    full_shard.apply(update(2, 1, n=keys(8, 9)))
    assert column(full_shard, "value/n", 1, 2) == [9, 8]
    applied = full_shard.apply(push(1, 3, w=np.ones((2, 2), np.float32), create=False))
    assert_array_equal(applied.unknown_keys, [3])
    full_shard.apply(changes.delete("t", keys(1), by=ME))
    full_shard.apply(update(3, n=keys(3)))
    assert column(full_shard, "value/n", 2, 3) == [8, 3]


@pytest.mark.parametrize(
    ("limit", "table", "by", "text"),
    [
        ("MAX_SOURCES", "t", author(source="c"), "source='c' is one source too many"),
        ("MAX_AUTHORS", "said", author(source="c"), "source='c' is one source too many"),
        ("MAX_CLOCKS", "t", author(source="b", clock="d"), "clock='d' is one clock too many"),
    ],
)
def test_a_table_knows_a_bounded_number_of_names(
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Unchanged,
    limit: str,
    table: str,
    by: pb.Author,
    text: str,
) -> None:
    monkeypatch.setattr(table_shard, limit, 3)
    shard = Shard()
    field = "x" if table == "said" else "p"
    shard.apply(changes.create_table(TableSpec(table, {field: Field()}, per_source=field == "x")))

    def write(by: pb.Author) -> None:
        shard.apply(changes.update(table, keys(1), {field: array(1)}, by=by))

    for name in ("a", "b"):
        write(author(source=name, clock=name))
    with unchanged(shard), pytest.raises(BankOverloadedError, match=text):
        write(by)
    write(author(source="a", clock="b"))
