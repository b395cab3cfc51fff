from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carls_jax.bank import Field
from carls_jax.errors import DtypeError, KeyKindError, ShapeError
from carls_jax.hooks import device_words, host_words, split_keys

VALUES = {
    "float32": [[1.5, -0.0], [np.inf, 1e-42], [3.0, 4.0]],
    "int8": [[-128, 127], [0, 1], [2, 3]],
    "uint16": [[0, 65535], [0, 1], [2, 3]],
    "uint32": [[0, 2**32 - 1], [0, 1], [2, 3]],
    "bool": [[True, False], [True, True], [False, False]],
    "int64": [[2**40 + 1, -1], [-(2**63), 5], [0, 2**63 - 1]],
}


@pytest.mark.parametrize("dtype", VALUES)
def test_host_and_device_agree_on_words(dtype: str) -> None:
    values = np.array(VALUES[dtype], dtype)
    on_device = jnp.asarray(split_keys(values) if dtype == "int64" else values)
    field = Field((2,), dtype=dtype)

    words = device_words.to_words(on_device, field, batch=(3,))
    back = device_words.from_words(words, field)

    np.testing.assert_array_equal(words, host_words.to_words(values, field))
    assert back.dtype == on_device.dtype
    np.testing.assert_array_equal(back, on_device)


def test_int32_keys_keep_their_sign() -> None:
    keys = np.array([[3, -1], [-7, 2**31 - 1]], np.int32)

    words = device_words.key_words(keys)

    np.testing.assert_array_equal(words, split_keys(keys))


def test_pairs_are_keys_as_they_are() -> None:
    pairs = split_keys(np.array([2**40 + 1, -1]))

    np.testing.assert_array_equal(device_words.key_words(pairs), pairs)


@pytest.mark.parametrize("keys", [np.array([2**40]), np.array([1.0]), [1, 2]])
def test_other_keys_are_refused_rather_than_truncated(keys: object) -> None:
    with pytest.raises(KeyKindError, match=r"hooks\.split_keys"):
        device_words.key_words(keys)  # type: ignore[arg-type]


def test_uint32_keys_must_be_pairs() -> None:
    with pytest.raises(ShapeError, match="uint32 keys are pairs"):
        device_words.key_words(np.array([1, 2, 3], np.uint32))


def test_each_row_carries_the_step() -> None:
    words = device_words.keys_with_step(np.array([4, -1], np.int32), step=7)

    assert words.tolist() == [[4, 0, 7], [2**32 - 1, 2**32 - 1, 7]]


@pytest.mark.parametrize("step", [None, -1])
def test_no_step_is_minus_one(step: int | None) -> None:
    words = device_words.keys_with_step(np.array(4, np.int32), step=step)

    assert words.tolist() == [4, 0, 2**32 - 1]


def test_a_step_is_an_integer_scalar() -> None:
    keys = np.array([4], np.int32)
    with pytest.raises(DtypeError, match="step has dtype float32"):
        device_words.keys_with_step(keys, step=jnp.float32(1))
    with pytest.raises(ShapeError, match=r"step has shape \[1\]"):
        device_words.keys_with_step(keys, step=jnp.array([1]))


def test_rows_that_are_not_kept_get_padding_and_stay_in_place() -> None:
    words = device_words.keys_with_step(np.array([4, 5], np.int32), step=7)

    kept = device_words.keep_keys(words, jnp.array([False, True]))

    assert kept.tolist() == [[2**32 - 1, 2**32 - 1, 7], [5, 0, 7]]


def test_values_are_cast_only_where_they_keep_their_meaning() -> None:
    def checked(values: object, dtype: str) -> jax.Array:
        return device_words.checked_values(values, Field(dtype=dtype), name="x", batch=(1,))

    assert checked(jnp.array([1.5], jnp.bfloat16), "float32").dtype == jnp.float32
    assert checked(np.array([1.5]), "float32").dtype == jnp.float32
    assert checked([3], "float32").tolist() == [3.0]
    assert checked(np.array([3], np.int8), "int32").dtype == jnp.int32
    for values, dtype in [
        (np.array([1.5], np.float32), "int32"),
        (np.array([3]), "int32"),  # NumPy's int64, which JAX would truncate
        (np.array([1j]), "float32"),
        (np.array([3], np.int32), "bool"),
    ]:
        with pytest.raises(DtypeError, match="'x' has dtype"):
            checked(values, dtype)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"'x' has shape \[2\], expected \[2, 3\]"):
        device_words.checked_values(jnp.ones(2), Field((3,)), name="x", batch=(2,))
