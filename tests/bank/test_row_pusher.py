from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import changes
from carls_jax.bank.changes import author
from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from tests.bank.pushed_rows import PushedRows

SGD = optimizer("sgd", learning_rate=0.5)
ADAM = optimizer("adam", learning_rate=0.1)


@pytest.mark.parametrize("name", KERNELS)
def test_a_row_stands_still_until_it_is_touched_and_counts_its_own_updates(name: str) -> None:
    """Row 0 is pushed at steps 0 and 100 alone: as if they followed each other."""
    spec = optimizer(name, learning_rate=0.1)
    start, first, last = np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)
    rows = PushedRows(spec, np.repeat(start, 2, axis=0))
    rows.push(np.repeat(first, 2, axis=0))
    values, state = rows.values[0], {key: one[0] for key, one in rows.state.items()}
    for step in range(1, 100):
        rows.push(first, keys=[1], step=step)
    assert_array_equal(rows.values[0], values)
    for key, one in rows.state.items():
        assert_array_equal(one[0], state[key])
    rows.push(np.repeat(last, 2, axis=0), step=100)

    expected = PushedRows(spec, start)
    expected.push(first)
    expected.push(last, step=1)
    assert_array_equal(rows.values[:1], expected.values)
    if "count" in rows.state_fields:
        assert rows.state["count"].tolist() == [2, 101]


def test_the_count_stops_at_its_largest_value() -> None:
    rows = PushedRows(ADAM, np.zeros(1, np.float32))
    rows.put_state({"count": 2**31 - 1})
    rows.push([1.0])
    assert rows.state["count"].tolist() == [2**31 - 1]
    assert rows.values != 0


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moves_rows_of_any_shape_with_all_their_state(name: str, shape: Any, dtype: str) -> None:
    spec = optimizer(name, learning_rate=0.1, clip=0.5, clip_row_norm=0.6)
    rows = PushedRows(spec, np.ones((5, *shape), dtype))
    first = rows.state
    rows.push(np.full((4, *shape), 2.0), keys=[0, 1, 3, 4])
    assert (rows.values[[0, 1, 3, 4]] < 1).all()
    assert (rows.values[2] == 1).all()
    for key, one in rows.state.items():
        assert (one[[0, 1, 3, 4]] != first[key][0]).all()
        assert_array_equal(one[2], first[key][2])


def test_a_row_that_would_overflow_stays_as_it_was_and_a_clip_moves_it() -> None:
    adagrad = optimizer("adagrad", learning_rate=0.1)
    rows = PushedRows(adagrad, np.ones((3, 2), np.float32))
    rows.push([[1, 1], [1e30, 1], [2, 2]])
    assert_array_equal(rows.values[1], [1, 1])
    assert_array_equal(rows.state["sum_of_squares"][1], np.float32([0.1, 0.1]))
    assert (rows.values[[0, 2]] < 1).all()

    rows = PushedRows(optimizer("adagrad", learning_rate=0.1, clip=1.0), np.ones(1, np.float32))
    rows.push([1e30])
    np.testing.assert_allclose(rows.state["sum_of_squares"], [1.1])


@pytest.mark.parametrize("name", KERNELS)
def test_no_optimizer_lets_a_number_overflow(name: str) -> None:
    """Values, gradients and state near the largest number, of either sign."""
    most = np.finfo(np.float32).max
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    rows = PushedRows(optimizer(name, learning_rate=9.0), most * signs[:, :1])
    rows.put_state({key: most for key in rows.state_fields if key != "count"})
    values, state = rows.values, rows.state
    rows.push(most * signs[:, 1:])
    for before, after in zip(
        [values, *state.values()], [rows.values, *rows.state.values()], strict=True
    ):
        assert np.isfinite(after).all()
        if not (rows.values != values).any():
            assert_array_equal(after, before)


# Several fields at once

FIELDS = {
    "w": Field((3,), optimizer=SGD, history=2),
    "u": Field((2,), dtype="float64", optimizer=optimizer("adagrad", learning_rate=1.0)),
    "v": Field((), optimizer=optimizer("momentum", learning_rate=1.0), group="pair"),
    "a": Field((5,), dtype="float64", optimizer=ADAM, group="pair", history=3),
}


@pytest.fixture
def shard() -> Shard:
    shard = Shard()
    shard.apply(changes.create_table(TableSpec("t", FIELDS, max_rows=16)))
    shard.apply(changes.create_rows("t", np.arange(4), by=author()))
    return shard


def push(shard: Shard, *keys: int, step: int = 0, **gradients: float) -> None:
    sent = {
        name: np.full((len(keys), *FIELDS[name].shape), number, FIELDS[name].dtype)
        for name, number in gradients.items()
    }
    by = author(step=step, source="me", clock="ours", updated_at=7.0)
    shard.apply(changes.push("t", np.array(keys), sent, by=by))


def column(shard: Shard, name: str, key: int) -> Any:
    table = shard.table("t")
    return table.columns[name][table.find(np.array([key]))[0]].tolist()


def test_fields_of_both_dtypes_move_at_once_and_each_is_noted(shard: Shard) -> None:
    push(shard, 2, 1, step=5, w=2, u=3, v=4, a=5)
    assert column(shard, "value/w", 1) == [-1.0] * 3
    np.testing.assert_allclose(column(shard, "value/u", 1), [-3 / 9.1**0.5] * 2)
    assert column(shard, "value/v", 1) == -4
    np.testing.assert_allclose(column(shard, "value/a", 1), [-0.1] * 5)
    assert column(shard, "state/a/count", 1) == 1
    table = shard.table("t")
    for group in ("w", "u", "pair"):
        assert column(shard, f"version/{group}", 1) == 1
        assert column(shard, f"step/{group}", 1) == 5
        assert column(shard, f"updated_at/{group}", 1) == 7.0
        assert column(shard, f"source/{group}", 1) == table.sources.find("me")
        assert column(shard, f"clock/{group}", 1) == table.clocks.find("ours")
        assert column(shard, f"version/{group}", 0) == 0
        assert column(shard, f"step/{group}", 0) == -1


def test_a_field_that_would_overflow_keeps_its_group_alone(shard: Shard) -> None:
    push(shard, 1, w=2, u=3, v=1, a=1e200)
    assert column(shard, "value/w", 1) == [-1.0] * 3
    assert column(shard, "value/v", 1) == 0
    assert column(shard, "state/v/trace", 1) == 0
    assert column(shard, "state/a/count", 1) == 0
    assert [column(shard, f"version/{group}", 1) for group in ("w", "u", "pair")] == [1, 1, 0]
    assert column(shard, "history/a/version", 1) == [0, 0, 0]
    assert shard.stats().tables["t"].counters["rows_overflowed"] == 1


def test_any_field_of_a_group_keeps_it(shard: Shard) -> None:
    push(shard, 1, v=3e38, a=1)
    push(shard, 1, v=3e38, a=1)  # the trace of v would be 5.7e38
    assert column(shard, "version/pair", 1) == 1
    assert column(shard, "state/a/count", 1) == 1


def test_the_last_writes_are_kept_in_a_ring(shard: Shard) -> None:
    for step in (3, 4, 5):
        push(shard, 1, step=step, w=2 * step)
    assert column(shard, "history/w/version", 1) == [3, 2]
    assert column(shard, "history/w/step", 1) == [5, 4]
    assert column(shard, "history/w/value", 1) == [[-12.0] * 3, [-7.0] * 3]
    assert column(shard, "history/w/updated_at", 1) == [7.0, 7.0]
    assert column(shard, "history/w/version", 0) == [0, 0]


def test_what_is_pushed_to_may_differ_from_push_to_push(shard: Shard) -> None:
    push(shard, 1, w=2)
    push(shard, 1, u=3, w=2)
    push(shard, 1, w=2)
    assert column(shard, "value/w", 1) == [-3.0] * 3
    assert [column(shard, f"version/{group}", 1) for group in ("w", "u", "pair")] == [3, 1, 0]


def test_each_row_is_guarded_while_it_is_written(shard: Shard) -> None:
    """A guard grows by two in a write: it is odd meanwhile."""
    table = shard.table("t")
    slots = table.find(np.arange(4))
    before = table.guards[slots]
    push(shard, 3, 1, 3, -1, w=1, v=1, a=1)
    assert_array_equal(table.guards[slots] - before, [0, 2, 0, 2])
