"""Tests of initializers: values that never change, and their distributions."""

from __future__ import annotations

import hashlib
import json
import math

import ml_dtypes
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank.initializers import (
    Initializer,
    constant,
    normal,
    standard_quantiles,
    uniform,
    zeros,
)
from carls_jax.errors import ConfigError, DtypeError, InvalidInputError, NonFiniteError

RANDOM = [uniform(-1, 1), normal(1.0)]
ALL = [zeros(), constant(2.5), constant(7), uniform(-0.05, 0.1), normal(0.1), normal(2, mean=-1.0)]


def draw(initializer, keys, *, seed=42, field="embedding", shape=(3,), dtype=np.float32):
    keys = np.asarray(keys, np.int64)
    return initializer.rows(keys, seed=seed, field=field, shape=shape, dtype=dtype)


def test_normal_values_never_change():
    rows = draw(normal(1.0), [0, 1, -7, 2**40])

    assert rows.tolist() == [
        [0.49268054962158203, -0.19739151000976562, 1.0274372100830078],
        [-1.1851787567138672, 0.49065208435058594, 1.7013225555419922],
        [-0.2494354248046875, -1.4239368438720703, 0.1521434783935547],
        [0.3150796890258789, 0.30420589447021484, 0.3577842712402344],
    ]


def test_uniform_values_never_change():
    rows = draw(uniform(-1, 1), [0, 1, -7, 2**40])

    assert rows.tolist() == [
        [-0.15647315979003906, -0.22519385814666748, -0.419757604598999],
        [0.3763158321380615, 0.5157456398010254, -0.20298218727111816],
        [-0.8455383777618408, -0.013197064399719238, -0.8247528076171875],
        [0.23903262615203857, 0.17061269283294678, -0.7243390083312988],
    ]


def test_the_quantile_table_never_changes():
    table = standard_quantiles().astype("<f8").tobytes()

    assert hashlib.sha256(table).hexdigest() == (
        "809d53a690a2d233677f367a9db7179fcb2c6867fd11b55b3275f750a55d52d6"
    )


def test_the_quantile_table_does_not_hang_on_the_last_bits_of_a_logarithm():
    exact = scipy.special.ndtri((np.arange(65_536) + 0.5) / 65_536)
    steps = exact * 2**20
    distance_to_a_tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) / 2**20

    # Implementations differ by some 1e-15, a thousandth of what would change a rounded value.
    np.testing.assert_array_equal(np.rint(steps) / 2**20, standard_quantiles())
    assert distance_to_a_tie.min() > 1e-12


@pytest.mark.parametrize("initializer", RANDOM)
@settings(deadline=None)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    split=st.integers(0, 20),
    size=st.integers(0, 9),
)
def test_a_row_is_the_same_in_any_batch(initializer, keys, split, size):
    whole = draw(initializer, keys, shape=(size,))
    parts = [draw(initializer, part, shape=(size,)) for part in (keys[:split], keys[split:])]

    assert whole.shape == (len(keys), size)
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(whole[::-1], draw(initializer, keys[::-1], shape=(size,)))


@pytest.mark.parametrize("initializer", RANDOM)
def test_the_shape_arranges_the_same_values(initializer):
    flat = draw(initializer, [3, 4], shape=(6,))

    np.testing.assert_array_equal(draw(initializer, [3, 4], shape=(2, 3)), flat.reshape(2, 2, 3))
    np.testing.assert_array_equal(draw(initializer, [3, 4], shape=()), flat[:, 0])


@pytest.mark.parametrize("initializer", RANDOM)
def test_keys_fields_and_seeds_draw_apart(initializer):
    keys = np.arange(5000)
    rows = draw(initializer, keys)
    others = [draw(initializer, keys, field="bias"), draw(initializer, keys, seed=43)]
    pairs = [(rows, other) for other in others]
    pairs += [(rows[1:], rows[:-1]), (rows[:, 1:], rows[:, :-1])]

    for one, other in pairs:
        # Independent values correlate by 1 / sqrt(n) at random: five times that is allowed.
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(one.size)
        assert (one != other).mean() > 0.99


def test_seeds_are_taken_modulo_two_to_the_64():
    np.testing.assert_array_equal(
        draw(normal(1.0), [5], seed=-1), draw(normal(1.0), [5], seed=np.uint64(2**64 - 1))
    )


def test_normal_values_have_the_moments_asked_for():
    values = draw(normal(0.5, mean=3.0), np.arange(50_000), shape=(8,), dtype=np.float64)
    scaled = (values - 3.0) / 0.5
    error = 5 / math.sqrt(values.size)

    assert abs(scaled.mean()) < error
    assert abs(scaled.var() - 1) < error * math.sqrt(2)
    assert abs((scaled**4).mean() - 3) < error * math.sqrt(96)
    assert np.abs(scaled).max() < 4.325


def test_the_quantiles_have_the_bound_and_deviation_stated():
    table = standard_quantiles()

    assert table[-1] == pytest.approx(4.3249, abs=1e-4)
    assert table.std() == pytest.approx(0.99999, abs=1e-5)
    np.testing.assert_array_equal(table, -table[::-1])
    assert (np.diff(table) > 0).all()


def test_uniform_values_fill_their_interval_evenly():
    values = draw(uniform(2, 4), np.arange(50_000), shape=(8,))
    counts = np.histogram(values, bins=100, range=(2, 4))[0]

    assert values.min() >= 2
    assert values.max() < 4
    # Chi-square with 99 degrees of freedom: 99 + 5 standard deviations.
    assert ((counts - 4000) ** 2 / 4000).sum() < 99 + 5 * math.sqrt(198)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("low", "high"), [(1000, 1016), (-1016, -1000), (0, 1), (-1, 0)])
def test_rounding_never_gives_the_upper_bound(dtype, low, high):
    values = draw(uniform(low, high), np.arange(20_000), dtype=dtype)

    assert values.dtype == np.dtype(dtype)
    assert values.min() >= np.dtype(dtype).type(low)
    assert values.max() < np.dtype(dtype).type(high)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("initializer", [uniform(-1, 1), normal(1.0), constant(0.5)])
def test_another_float_dtype_rounds_the_same_values(initializer, dtype):
    rows = draw(initializer, range(100), dtype=dtype)
    exact = draw(initializer, range(100), dtype=np.float64)

    assert rows.dtype == np.dtype(dtype)
    np.testing.assert_allclose(rows.astype(np.float64), exact, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(7, "int64"), (2**60 + 1, "int64"), (-3.0, "int8"), (255, "uint8"), (True, "bool")],
)
def test_constants_fill_integer_fields_exactly(value, dtype):
    rows = draw(constant(value), [1, 2], shape=(2,), dtype=dtype)

    assert rows.dtype == np.dtype(dtype)
    assert rows.tolist() == [[value, value], [value, value]]


def test_zeros_fit_every_numeric_dtype():
    for dtype in ("bool", "int8", "uint64", "float16", ml_dtypes.bfloat16):
        assert not draw(zeros(), [1], dtype=dtype).any()


@pytest.mark.parametrize("initializer", RANDOM)
@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_random_values_are_refused_for_integer_fields(initializer, dtype):
    with pytest.raises(DtypeError, match=r"use zeros\(\) or constant\(value\)"):
        draw(initializer, [1], dtype=dtype)


@pytest.mark.parametrize(
    ("initializer", "dtype"),
    [
        (constant(0.5), "int32"),
        (constant(256), "uint8"),
        (constant(-1), "uint8"),
        (constant(2), "bool"),
        (constant(1e5), "float16"),
        (constant(0), "U4"),
        (constant(0), object),
        (normal(2e4), "float16"),
        (uniform(-1e39, 0), "float32"),
        (uniform(-1e308, 1e308), "float64"),
        (uniform(1, 1 + 1e-9), "float32"),
    ],
)
def test_a_dtype_that_cannot_hold_the_values_is_refused(initializer, dtype):
    with pytest.raises(DtypeError):
        initializer.check_dtype(dtype)


def test_a_float16_interval_may_be_wider_than_the_largest_float16():
    values = draw(uniform(-6e4, 6e4), np.arange(1000), dtype=np.float16)

    assert np.isfinite(values).all()
    assert values.min() < -5e4
    assert values.max() > 5e4


@pytest.mark.parametrize(
    ("make", "arguments", "received"),
    [
        (uniform, (1, 1), "low=1.0, high=1.0"),
        (uniform, (2, -2), "low=2.0, high=-2.0"),
        (normal, (0,), "received 0.0"),
        (normal, (-1.0,), "received -1.0"),
        (constant, ("1",), "received '1'"),
        (normal, (None,), "received None"),
    ],
)
def test_arguments_that_cannot_work_are_refused(make, arguments, received):
    with pytest.raises(InvalidInputError, match=received):
        make(*arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_arguments_must_be_finite(bad):
    for make in (constant, normal, lambda x: normal(1, x), lambda x: uniform(x, 1)):
        with pytest.raises(NonFiniteError, match="must be finite"):
            make(bad)


@pytest.mark.parametrize("initializer", ALL)
def test_a_description_in_json_makes_an_equal_initializer(initializer):
    description = json.loads(json.dumps(initializer.to_dict()))
    copy = Initializer.from_dict(description)

    assert copy == initializer
    np.testing.assert_array_equal(draw(copy, range(5)), draw(initializer, range(5)))


def test_numpy_numbers_become_plain_ones():
    assert constant(np.float32(0.5)).to_dict() == {"kind": "constant", "value": 0.5}
    assert json.dumps(constant(np.int64(3)).to_dict()) == '{"kind": "constant", "value": 3}'


def test_initializers_are_equal_by_value():
    assert zeros() == constant(0)
    assert uniform(-1, 1) == uniform(-1.0, 1.0)
    assert normal(1.0) != normal(1.0, mean=0.5)
    assert len({normal(1.0), normal(1), uniform(0, 1)}) == 2


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ({"kind": "glorot"}, r"\['constant', 'normal', 'uniform'\], received 'glorot'"),
        ({}, "received None"),
        ({"kind": "uniform", "low": 0.0}, r"\['high', 'low'\], received \['low'\]"),
        ({"kind": "constant", "value": 1, "seed": 3}, r"received \['seed', 'value'\]"),
    ],
)
def test_a_description_that_is_not_understood_is_refused(description, told):
    with pytest.raises(ConfigError, match=told):
        Initializer.from_dict(description)
