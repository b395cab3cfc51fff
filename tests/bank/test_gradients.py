from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carls_jax.bank.gradients import clip_row_norms, combine_gradients
from carls_jax.errors import ConfigError


def combine_with_a_dict(slots, gradients, how):
    """Adds in pairs, as documented."""
    groups: dict[int, list] = {}
    for slot, gradient in zip(slots.tolist(), gradients, strict=True):
        groups.setdefault(slot, []).append(gradient)
    combined = {}
    for slot, terms in groups.items():
        sums = terms
        while len(sums) > 1:
            pairs = [sums[i] + sums[i + 1] for i in range(0, len(sums) - 1, 2)]
            sums = pairs + sums[len(pairs) * 2 :]
        repeated = len(terms) > 1 and how == "mean"
        combined[slot] = sums[0] / gradients.dtype.type(len(terms)) if repeated else sums[0]
    return combined


@given(
    slots=st.lists(st.one_of(st.integers(0, 6), st.integers(-(2**63), 2**63 - 1)), max_size=60),
    how=st.sampled_from(["sum", "mean"]),
    shape=st.sampled_from([(), (5,), (2, 3)]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_combines_like_a_dict_bit_for_bit(slots, how, shape, dtype, seed):
    slots = np.array(slots, np.int64)
    gradients = np.random.default_rng(seed).normal(size=(len(slots), *shape)).astype(dtype)
    sent = gradients.copy()
    expected = combine_with_a_dict(slots, gradients, how)
    unique, combined = combine_gradients(slots, gradients, how)
    assert len(set(unique.tolist())) == len(unique)
    assert set(unique.tolist()) == set(expected)
    assert combined.shape == (len(unique), *shape)
    for slot, gradient in zip(unique.tolist(), combined, strict=True):
        np.testing.assert_array_equal(gradient, expected[slot], strict=True)
    np.testing.assert_array_equal(gradients, sent)


def test_sums_and_means_worked_out_by_hand():
    slots = np.array([7, 3, 7, 7])
    gradients = np.array([[1.0], [5.0], [2.0], [6.0]], np.float32)
    unique, combined = combine_gradients(slots, gradients, "sum")
    assert (unique.tolist(), combined.tolist()) == ([3, 7], [[5.0], [9.0]])
    unique, combined = combine_gradients(slots, gradients, "mean")
    assert (unique.tolist(), combined.tolist()) == ([3, 7], [[5.0], [3.0]])


def test_adds_one_slot_that_is_repeated_very_often():
    unique, combined = combine_gradients(np.zeros(5000, np.int64), np.ones((5000, 2), np.float32))
    assert (unique.tolist(), combined.tolist()) == ([0], [[5000.0, 5000.0]])


def test_gives_back_its_arguments_where_nothing_repeats():
    slots, gradients = np.array([5, 2, 9]), np.ones((3, 4), np.float32)
    unique, combined = combine_gradients(slots, gradients)
    assert unique is slots
    assert combined is gradients


def test_refuses_an_unknown_way_to_combine():
    with pytest.raises(ConfigError, match=r"how='max'\): allowed are 'sum' and 'mean'"):
        combine_gradients(np.zeros(2, np.int64), np.zeros((2, 1)), "max")


def test_clips_the_rows_above_the_norm_and_leaves_the_others():
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-6.0, 8.0]], np.float32)
    clipped = clip_row_norms(gradients, 5.0, np.empty_like(gradients))
    expected = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(clipped, expected, strict=True)


def test_clips_a_norm_that_float32_could_not_square():
    gradients = np.full((1, 4), 1e30, np.float32)
    clipped = clip_row_norms(gradients, 1.0, gradients)
    np.testing.assert_allclose(clipped, [[0.5, 0.5, 0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 100, 128, 129, 1000, 8192, 8193, 20000])
def test_numpy_adds_a_row_in_an_order_that_depends_on_its_width_alone(width):
    rows = np.random.default_rng(width).lognormal(sigma=5, size=(6, width))
    together = np.sum(rows, axis=1)
    for start, stop in [(0, 1), (5, 6), (1, 3), (2, 6)]:
        np.testing.assert_array_equal(np.sum(rows[start:stop], axis=1), together[start:stop])
        np.testing.assert_array_equal(np.sum(rows[start:stop].copy(), axis=1), together[start:stop])
