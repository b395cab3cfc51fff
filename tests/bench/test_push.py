from __future__ import annotations

import numpy as np

from carls_jax.bench.push import adagrad_step, combined


def test_gradients_of_a_repeated_key_are_summed():
    keys = np.array([5, 2, 5, 5])
    gradients = np.array([[1.0], [2.0], [4.0], [8.0]], np.float32)
    different, sums = combined(keys, gradients)
    np.testing.assert_array_equal(different, [2, 5])
    np.testing.assert_array_equal(sums, [[2.0], [13.0]])
    np.testing.assert_array_equal(gradients[:, 0], [1.0, 2.0, 4.0, 8.0])


def test_adagrad_divides_by_the_root_of_the_sum_of_squares():
    rows, accumulators = adagrad_step(
        np.ones((1, 1), np.float32),
        np.full((1, 1), 7.0, np.float32),
        np.full((1, 1), 3.0, np.float32),
    )
    np.testing.assert_allclose(accumulators, [[16.0]])
    np.testing.assert_allclose(rows, [[1 - 0.01 * 3 / 4]])  # the learning rate is 0.01
