"""Epochs of shuffled batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from carls_jax.data.batches import Batches
from carls_jax.errors import InvalidInputError, ShapeError

COLUMNS = {"id": np.arange(10), "x": np.arange(20).reshape(10, 2)}


def first(batches: Batches, count: int) -> list[list[int]]:
    return [batch["id"].tolist() for batch in itertools.islice(batches, count)]


def test_without_shuffling_rows_come_in_order_and_the_rest_is_left_out() -> None:
    batches = Batches(COLUMNS, batch_size=4, shuffle=False)
    assert batches.batches_per_epoch == 2
    assert first(batches, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_rows_of_all_columns_stay_together() -> None:
    for batch in itertools.islice(Batches(COLUMNS, batch_size=4), 5):
        assert_array_equal(batch["x"], np.stack([2 * batch["id"], 2 * batch["id"] + 1], 1))


def test_each_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    drawn = first(Batches(COLUMNS, batch_size=5), 6)
    epochs = [drawn[start] + drawn[start + 1] for start in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_a_function_of_the_seed() -> None:
    once, again = Batches(COLUMNS, batch_size=3, seed=1), Batches(COLUMNS, batch_size=3, seed=1)
    assert first(once, 9) == first(again, 9) == first(once, 9)
    assert first(once, 9) != first(Batches(COLUMNS, batch_size=3, seed=2), 9)


def test_a_batch_holds_copies() -> None:
    columns = {"id": np.arange(4)}
    batch = next(iter(Batches(columns, batch_size=4, shuffle=False)))
    batch["id"][:] = 9
    assert_array_equal(columns["id"], [0, 1, 2, 3])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10), st.integers(0, 25), st.integers(0, 3))
def test_an_iterator_goes_on_from_any_state(batch_size: int, used: int, seed: int) -> None:
    batches = Batches(COLUMNS, batch_size=batch_size, seed=seed)
    iterator = iter(batches)
    for _ in range(used):
        next(iterator)
    resumed = iter(batches)
    resumed.set_state(iterator.get_state())
    for _ in range(5):
        assert_array_equal(next(resumed)["id"], next(iterator)["id"])


def test_arguments_that_cannot_work_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="batch_size=11: allowed is 1 to 10"):
        Batches(COLUMNS, batch_size=11)
    with pytest.raises(InvalidInputError, match="batch_size=0: allowed is 1 to 10"):
        Batches(COLUMNS, batch_size=0)
    with pytest.raises(InvalidInputError, match="seed=-1: allowed is 0 and more"):
        Batches(COLUMNS, batch_size=1, seed=-1)
    with pytest.raises(ShapeError, match=r"one length and have \{'a': 1, 'b': 2\}"):
        Batches({"a": [1], "b": [1, 2]}, batch_size=1)
    with pytest.raises(ShapeError, match="columns need one length"):
        Batches({}, batch_size=1)
    with pytest.raises(InvalidInputError, match="state=-1: allowed is 0 and more"):
        iter(Batches(COLUMNS, batch_size=1)).set_state(-1)
