"""What rows are pushed by, seen through sgd, which subtracts it as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from carls_jax.bank import changes
from carls_jax.bank.changes import author
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec


def seen(
    gradients: NDArray[Any], keys: NDArray[np.int64], *, how: Any = "sum", **limits: float
) -> dict[int, NDArray[Any]]:
    """Returns what the row of each key is moved by."""
    sgd = optimizer("sgd", learning_rate=1.0, **limits)
    field = Field(gradients.shape[1:], dtype=gradients.dtype.name, optimizer=sgd)
    shard = Shard()
    shard.apply(changes.create_table(TableSpec("t", {"z": field}, max_rows=1 << 13)))
    shard.apply(changes.push("t", keys, {"z": gradients}, by=author(), combine=how))
    table = shard.table("t")
    different = np.unique(keys[keys != -1])
    rows = table.columns["value/z"][table.find(different)]
    return dict(zip(different.tolist(), -rows, strict=True))


def added_one_by_one(
    gradients: NDArray[Any], keys: NDArray[np.int64], how: str
) -> dict[int, NDArray[Any]]:
    """Adds in the order in which they come, as documented."""
    sums: dict[int, Any] = {}
    counts: dict[int, int] = {}
    for key, gradient in zip(keys.tolist(), gradients, strict=True):
        if key != -1:
            sums[key] = sums[key] + gradient if key in sums else gradient
            counts[key] = counts.get(key, 0) + 1
    if how == "mean":
        divisors = {key: gradients.dtype.type(count) for key, count in counts.items()}
        sums = {key: one / divisors[key] if counts[key] > 1 else one for key, one in sums.items()}
    return sums


# No deadline: the first push of a dtype may have to be compiled.
@settings(deadline=None)
@given(
    keys=st.lists(st.one_of(st.integers(-1, 6), st.integers(-(2**63), 2**63 - 1)), min_size=1),
    how=st.sampled_from(["sum", "mean"]),
    shape=st.sampled_from([(), (5,), (2, 3), (40,)]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_gradients_of_a_key_are_added_in_their_order_bit_for_bit(
    keys: list[int], how: str, shape: tuple[int, ...], dtype: str, seed: int
) -> None:
    ids = np.array(keys, np.int64)
    gradients = np.random.default_rng(seed).normal(size=(len(ids), *shape)).astype(dtype)
    sent = gradients.copy()
    expected = added_one_by_one(gradients, ids, how)
    got = seen(gradients, ids, how=how)
    assert got.keys() == expected.keys()
    for key, gradient in got.items():
        np.testing.assert_array_equal(gradient, expected[key])
    np.testing.assert_array_equal(gradients, sent)


@pytest.mark.parametrize(
    ("how", "expected"), [("sum", {3: [5.0], 7: [9.0]}), ("mean", {3: [5.0], 7: [3.0]})]
)
def test_sums_and_means_worked_out_by_hand(how: str, expected: dict[int, list[float]]) -> None:
    gradients = np.array([[1.0], [5.0], [2.0], [6.0]], np.float32)
    got = seen(gradients, np.array([7, 3, 7, 7]), how=how)
    assert {key: one.tolist() for key, one in got.items()} == expected


def test_a_key_may_come_very_often() -> None:
    got = seen(np.ones((5000, 2), np.float32), np.zeros(5000, np.int64))
    assert got[0].tolist() == [5000.0, 5000.0]


def test_what_is_clipped_is_the_sum_its_elements_first_and_its_norm_after() -> None:
    # 9 and -3 of two become 4 and -3, of norm 5, and then 2 and -1.5.
    gradients = np.array([[5, -1], [4, -2], [1, 2]], np.float32)
    got = seen(gradients, np.array([1, 1, 2]), clip=4.0, clip_row_norm=2.5)
    assert {key: one.tolist() for key, one in got.items()} == {1: [2.0, -1.5], 2: [1.0, 2.0]}


def test_rows_above_the_norm_are_scaled_down_and_others_left() -> None:
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-6.0, 8.0]], np.float32)
    got = seen(gradients, np.arange(4), clip_row_norm=5.0)
    expected = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(np.array([got[key] for key in range(4)]), expected)


def test_a_norm_is_taken_that_float32_could_not_square() -> None:
    got = seen(np.full((1, 4), 1e30, np.float32), np.arange(1), clip_row_norm=1.0)
    np.testing.assert_allclose(got[0], [0.5, 0.5, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 100, 129])
def test_every_element_counts_in_a_norm(width: int) -> None:
    for place in range(width):
        gradient = np.zeros((1, width), np.float32)
        gradient[0, place] = 8.0
        got = seen(gradient, np.arange(1), clip_row_norm=2.0)[0]
        np.testing.assert_array_equal(got, gradient[0] / 4)
