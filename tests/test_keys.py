"""Tests of keys: what is accepted, and the values that must never change."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carls_jax.errors import InvalidInputError, KeyKindError, ShapeError
from carls_jax.keys import PADDING, int_keys, shard_of, splitmix64, string_keys


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", ">i4", ">i8"])
def test_a_minus_one_of_any_signed_dtype_is_padding(dtype):
    keys = int_keys(np.array([-1, 0, 7], dtype))

    assert keys.dtype == np.int64
    assert keys.tolist() == [PADDING, 0, 7]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_keys_keep_their_value(dtype):
    largest = min(int(np.iinfo(dtype).max), 2**63 - 1)

    assert int_keys(np.array([0, largest], dtype)).tolist() == [0, largest]


def test_lists_and_jax_arrays_are_keys():
    assert int_keys([2**40, -3]).tolist() == [2**40, -3]
    assert int_keys(jnp.array([5, -1], jnp.int32)).tolist() == [5, PADDING]


@pytest.mark.parametrize("empty", [[], (), np.empty(0, np.int32)])
def test_no_keys_are_an_empty_array(empty):
    keys = int_keys(empty)

    assert keys.dtype == np.int64
    assert keys.shape == (0,)


def test_an_int64_array_is_not_copied():
    keys = np.array([1, 2, 3])

    assert int_keys(keys) is keys


@pytest.mark.parametrize(
    "keys", [[1.0], np.empty(0), [True], ["a"], [b"a"], [None], [2**64], [-1, 2**63]]
)
def test_what_is_no_integer_of_64_bits_is_refused(keys):
    with pytest.raises(KeyKindError, match="keys must be integers"):
        int_keys(keys)


def test_unsigned_keys_beyond_int64_are_refused_by_value():
    with pytest.raises(InvalidInputError, match="received 9223372036854775808"):
        int_keys(np.array([1, 2**63], np.uint64))


@pytest.mark.parametrize("keys", [3, [[1, 2]], [[1], [2, 3]], np.zeros((2, 0), int)])
def test_integer_keys_of_another_rank_are_refused(keys):
    with pytest.raises(ShapeError, match="keys must be"):
        int_keys(keys)


def test_fingerprints_never_change():
    texts = ["", "a", "node/0", "Zürich", "日本"]

    assert string_keys(texts).tolist() == [
        -5426141060434712860,
        3405396810240292928,
        -5977383360976218621,
        636548684707296368,
        4223062404410717160,
    ]


@pytest.mark.parametrize(
    "strings",
    [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], object)],
)
def test_texts_in_any_container_give_the_same_keys(strings):
    assert string_keys(strings).tolist() == string_keys(["a", "b"]).tolist()


def test_no_texts_are_no_keys():
    assert string_keys([]).shape == (0,)


def test_the_text_that_would_be_padding_gets_minus_two(monkeypatch):
    # No text with this digest is known, so the digest is put in its place.
    monkeypatch.setattr("carls_jax.keys._digest", lambda text: b"\xff" * 8)

    assert string_keys(["any"]).tolist() == [-2]


@pytest.mark.parametrize("strings", ["abc", [1], [b"a"], ["a", None], np.array([1]), 3, iter("a")])
def test_what_is_no_list_of_texts_is_refused(strings):
    with pytest.raises(KeyKindError, match="strings must"):
        string_keys(strings)


def test_an_array_of_texts_of_another_rank_is_refused():
    with pytest.raises(ShapeError, match=r"received shape \(1, 1\)"):
        string_keys(np.array([["a"]]))


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidInputError, match="UTF-8"):
        string_keys(["\ud800"])


def test_splitmix64_gives_the_published_values():
    # First outputs of Vigna's splitmix64.c from the states 0 and 1234567.
    states = np.array([0, 1234567], np.uint64)

    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


def test_splitmix64_works_in_place():
    states = np.array([0, 1234567], np.uint64)
    expected = splitmix64(states)

    assert splitmix64(states, out=states) is states
    assert states.tolist() == expected.tolist()


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.integers(0, 50)), st.integers(1, 1000))
def test_every_key_has_one_shard(keys, num_shards):
    shards = shard_of(keys, num_shards)

    assert shards.dtype == np.int64
    assert ((shards >= 0) & (shards < num_shards)).all()
    assert shards[::-1].tolist() == shard_of(keys[::-1], num_shards).tolist()


def test_shards_never_change():
    assert shard_of(np.arange(10), 3).tolist() == [2, 2, 0, 1, 0, 2, 0, 0, 1, 0]


@pytest.mark.parametrize("num_shards", [2, 3, 8, 64])
def test_shards_are_even_and_leave_the_other_hash_bits_spread(num_shards):
    keys = np.arange(64_000)
    counts = np.bincount(shard_of(keys, num_shards), minlength=num_shards)
    of_one_shard = splitmix64(keys[shard_of(keys, num_shards) == 0].view(np.uint64))

    # Each count is binomial: six standard deviations around the mean.
    assert _is_even(counts)
    assert _is_even(np.bincount((of_one_shard >> np.uint64(60)).view(np.int64), minlength=16))
    assert _is_even(np.bincount((of_one_shard & np.uint64(15)).view(np.int64), minlength=16))


def test_a_bank_needs_a_shard():
    with pytest.raises(InvalidInputError, match="received 0"):
        shard_of(np.arange(3), 0)


def _is_even(counts):
    return np.abs(counts - counts.mean()).max() < 6 * np.sqrt(counts.mean())
