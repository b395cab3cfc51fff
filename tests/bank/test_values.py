from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.values import MAX_KEYS, as_keys, as_values, check_keys, check_values
from carls_jax.errors import (
    CarlsError,
    DtypeError,
    FieldNotFoundError,
    InvalidInputError,
    KeyKindError,
    NonFiniteError,
    ShapeError,
)
from carls_jax.keys import string_keys

INTS = TableSpec(
    "ints",
    {
        "x": Field((2,)),
        "small": Field(dtype="uint8"),
        "flag": Field(dtype="bool"),
        "a": Field(group="g"),
        "b": Field(group="g"),
    },
)
STRINGS = TableSpec("strings", {"x": Field()}, keys="str")


# Keys


def test_integer_keys_become_int64() -> None:
    assert_array_equal(as_keys(INTS, np.array([-1, 5], np.int32)), np.array([-1, 5]), strict=True)


def test_string_keys_become_fingerprints_and_fingerprints_stay() -> None:
    keys = as_keys(STRINGS, ["a", "b"])
    assert_array_equal(keys, string_keys(["a", "b"]))
    assert as_keys(STRINGS, keys) is keys


@pytest.mark.parametrize(
    ("spec", "keys", "text"),
    [
        (INTS, ["a"], "table 'ints' has integer keys.*keys=\"str\""),
        (INTS, [1.5], "table 'ints' has integer keys"),
        (STRINGS, [1], "table 'strings' has string keys"),
        (STRINGS, "abc", "table 'strings' has string keys.*wrap a single text"),
        (STRINGS, np.array([1], np.int32), "table 'strings' has string keys"),
    ],
)
def test_keys_of_another_kind_are_refused(spec: TableSpec, keys: object, text: str) -> None:
    with pytest.raises(KeyKindError, match=text):
        as_keys(spec, keys)


@pytest.mark.parametrize(("spec", "keys"), [(INTS, []), (STRINGS, []), (INTS, [[1, 2]])])
def test_keys_are_a_vector_that_is_not_empty(spec: TableSpec, keys: object) -> None:
    with pytest.raises(ShapeError):
        as_keys(spec, keys)


def test_a_call_has_a_bounded_number_of_keys() -> None:
    most = np.lib.stride_tricks.as_strided(np.zeros(1, np.int64), (MAX_KEYS + 1,), (0,))
    assert check_keys(most[1:]).size == 1 << 24
    with pytest.raises(ShapeError, match=r"\[16777217\], expected \[n\] with n in 1..16777216"):
        check_keys(most)


def test_a_bank_takes_int64_alone() -> None:
    with pytest.raises(KeyKindError, match="dtype int32, expected int64"):
        check_keys(np.array([1], np.int32))


# What a user gives


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("x", [[1, 2]], np.array([[1, 2]], np.float32)),
        ("x", np.ones((1, 2)), np.ones((1, 2), np.float32)),
        ("x", np.array([[True, False]]), np.array([[1, 0]], np.float32)),
        ("x", jnp.ones((1, 2), jnp.bfloat16), np.ones((1, 2), np.float32)),
        ("small", [255], np.array([255], np.uint8)),
        ("flag", [True], np.array([True])),
    ],
)
def test_values_become_arrays_of_the_fields_dtype(
    name: str, given: Any, expected: np.ndarray
) -> None:
    assert_array_equal(as_values(INTS, {name: given}, num_keys=1)[name], expected, strict=True)


def test_an_array_that_fits_is_not_copied() -> None:
    given = np.ones((3, 2), np.float32)
    assert as_values(INTS, {"x": given}, num_keys=3)["x"] is given
    transposed = np.ones((2, 3), np.float32).T
    assert as_values(INTS, {"x": transposed}, num_keys=3)["x"].flags.c_contiguous


BAD_VALUES: dict[str, tuple[dict[str, Any], type[CarlsError], str]] = {
    "no fields": ({}, InvalidInputError, "name at least one field of x, small, flag"),
    "unknown field": ({"y": [[1, 2]]}, FieldNotFoundError, "no field 'y'; it has x, small"),
    "too many rows": ({"x": np.ones((2, 2))}, ShapeError, r"'x' has shape \[2, 2\].*\[1, 2\]"),
    "too wide": ({"x": np.ones((1, 3))}, ShapeError, r"\[1, 3\], expected \[1, 2\]"),
    "flat": ({"x": [1, 2]}, ShapeError, r"\[2\], expected \[1, 2\]"),
    "ragged": ({"x": [[1], [2, 3]]}, ShapeError, "'x' is no array"),
    "floats for integers": ({"small": [1.0]}, DtypeError, "float64; the field is uint8"),
    "numbers for booleans": ({"flag": [1]}, DtypeError, "int64; the field is bool"),
    "too large": ({"small": [256]}, DtypeError, "256 to 256; the field is uint8, 0 to 255"),
    "negative": ({"small": [-1]}, DtypeError, "-1 to -1; the field is uint8"),
    "complex": ({"x": [[1j, 2]]}, DtypeError, "complex128"),
    "text": ({"x": [["a", "b"]]}, DtypeError, "<U1"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_that_do_not_fit_are_refused(name: str) -> None:
    values, error, text = BAD_VALUES[name]
    with pytest.raises(error, match=text):
        as_values(INTS, values, num_keys=1)


# What arrives at a bank


def _good(**values: Any) -> dict[str, np.ndarray]:
    return {"x": np.ones((3, 2), np.float32), **values}


def test_what_fits_is_accepted() -> None:
    check_values(INTS, _good(small=np.ones(3, np.uint8)), num_keys=3)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({}, InvalidInputError, "name at least one field"),
        (_good(y=np.ones(3)), FieldNotFoundError, "'y'"),
        (_good(small=np.ones(3)), DtypeError, "'small' has dtype float64; the field is uint8"),
        (_good(small=np.ones(2, np.uint8)), ShapeError, r"'small' has shape \[2\]"),
        (_good(a=np.ones(3, np.float32)), InvalidInputError, "a, b of group 'g'.*b is missing"),
    ],
)
def test_what_does_not_fit_is_refused(
    values: dict[str, np.ndarray], error: type[CarlsError], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_values(INTS, values, num_keys=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(bad: float) -> None:
    values = np.ones((4, 2), np.float32)
    values[[1, 3], 1] = bad
    with pytest.raises(NonFiniteError, match=r"'x' holds NaN.*in 2 of 4 rows, first in row 1"):
        check_values(INTS, {"x": values}, num_keys=4)


def test_a_number_too_large_for_the_field_is_not_finite() -> None:
    values = as_values(INTS, {"x": [[1e300, 1.0]]}, num_keys=1)
    with pytest.raises(NonFiniteError, match="too large for float32"):
        check_values(INTS, values, num_keys=1)


def test_values_that_are_no_dict_are_refused() -> None:
    spec = TableSpec("t", {"x": Field((2,))})
    with pytest.raises(InvalidInputError, match=r"values=ndarray: give a dict .*'x'"):
        as_values(spec, np.zeros((3, 2)), num_keys=3)  # type: ignore[arg-type]
