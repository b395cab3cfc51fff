from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from carls_jax.bank.repeats import distinct

KEYS = st.one_of(st.integers(-3, 6), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None)  # the first call may have to be compiled
@given(st.lists(KEYS, max_size=200))
def test_places_of_each_key_are_those_of_a_dict(keys: list[int]) -> None:
    places: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        if key != -1:
            places.setdefault(key, []).append(place)
    found = distinct(np.array(keys, np.int64))
    assert found.keys.tolist() == list(places)
    assert found.firsts.tolist() == [of_key[0] for of_key in places.values()]
    assert found.lasts.tolist() == [of_key[-1] for of_key in places.values()]
    following = {here: there for of_key in places.values() for here, there in pairwise(of_key)}
    assert found.following.tolist() == [following.get(place, -1) for place in range(len(keys))]


def test_keys_that_are_all_different_are_given_back() -> None:
    keys = np.array([5, -7, 2**40])
    assert distinct(keys).keys is keys


def test_many_keys_fit() -> None:
    keys = np.random.default_rng(0).permutation(np.repeat(np.arange(50_000), 2))
    found = distinct(keys)
    assert_array_equal(np.sort(found.keys), np.arange(50_000))
    assert_array_equal(keys[found.firsts], found.keys)
    assert_array_equal(found.following[found.firsts], found.lasts)


def test_padding_is_no_key() -> None:
    found = distinct(np.array([-1, -1]))
    assert found.keys.size == 0
    assert found.following.tolist() == [-1, -1]
