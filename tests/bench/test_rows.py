from __future__ import annotations

import numpy as np

from carls_jax.bench.rows import draws


def test_each_round_has_keys_of_its_own_and_they_can_be_drawn_again():
    draw = draws(1_000_000, 64)
    assert draw(0).shape == (64,)
    assert not np.intersect1d(draw(0), draw(1)).size
    np.testing.assert_array_equal(draws(1_000_000, 64)(1), draw(1))
    assert not np.intersect1d(draws(1_000_000, 64, seed=2)(0), draw(0)).size


def test_keys_are_those_of_the_rows():
    keys = np.concatenate([draws(5, 100)(number) for number in range(10)])
    np.testing.assert_array_equal(np.unique(keys), np.arange(5))


def test_one_key_in_ten_is_there_twice():
    keys = draws(2**40, 50, repeat_one_in=10)(0)
    assert np.unique(keys).size == 45
