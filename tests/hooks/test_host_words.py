from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carls_jax.bank import Field
from carls_jax.errors import DtypeError, KeyKindError, ShapeError
from carls_jax.hooks import join_keys, split_keys
from carls_jax.hooks.host_words import from_words, num_words, to_words

DTYPES = ("float32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")


def test_a_key_becomes_its_low_word_and_its_high_word() -> None:
    pairs = split_keys(np.array([5, (7 << 32) + 9, -1]))

    assert pairs.dtype == np.uint32
    assert pairs.tolist() == [[5, 0], [9, 7], [0xFFFFFFFF, 0xFFFFFFFF]]


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_joining_what_was_split_gives_the_keys(keys: np.ndarray) -> None:
    joined = join_keys(split_keys(keys))

    assert joined.dtype == np.int64
    np.testing.assert_array_equal(joined, keys)


def test_keys_of_a_strided_array_are_split() -> None:
    assert split_keys(np.arange(6)[::3]).tolist() == [[0, 0], [3, 0]]


@pytest.mark.parametrize("keys", [np.array([1.0]), np.array([1], np.uint64), np.array(["a"])])
def test_what_is_no_signed_integer_is_not_split(keys: np.ndarray) -> None:
    with pytest.raises(KeyKindError, match="expected int64"):
        split_keys(keys)


def test_only_uint32_pairs_are_joined() -> None:
    with pytest.raises(ShapeError, match=r"\[3\], expected \[\.\.\., 2\]"):
        join_keys(np.zeros(3, np.uint32))
    with pytest.raises(KeyKindError, match="int32, expected uint32"):
        join_keys(np.zeros((3, 2), np.int32))


@pytest.mark.parametrize(
    ("field", "words"),
    [(Field(), 1), (Field((2, 3)), 6), (Field((3,), dtype="int64"), 6), (Field(dtype="bool"), 1)],
)
def test_a_64_bit_number_takes_two_words_and_others_one(field: Field, words: int) -> None:
    assert num_words(field) == words


def test_words_hold_the_bits_of_a_float_and_the_number_of_an_integer() -> None:
    assert to_words(np.array([1.0], np.float32), Field()).tolist() == [[0x3F800000]]
    assert to_words(np.array([-2], np.int8), Field(dtype="int8")).tolist() == [[0xFFFFFFFE]]
    assert to_words(np.array([True]), Field(dtype="bool")).tolist() == [[1]]


@given(data=st.data(), dtype=st.sampled_from(DTYPES), num_rows=st.integers(0, 4))
def test_words_of_any_field_turn_back_into_its_values(
    data: st.DataObject, dtype: str, num_rows: int
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=3))
    values = data.draw(hnp.arrays(dtype, (num_rows, *shape)))
    field = Field(shape, dtype=dtype)

    words = to_words(values, field)
    back = from_words(words, field)

    assert words.shape == (num_rows, num_words(field))
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


def test_float64_is_refused() -> None:
    with pytest.raises(DtypeError, match="float64 cannot be used inside jit"):
        num_words(Field(dtype="float64"))
