"""Compact values: what the round trip costs, which is what `compact` says."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from carls_jax.bank import changes
from carls_jax.bank.changes import author
from carls_jax.bank.compact import FORMS, SCALE_BYTES, decode, decoded_rows, encode, finite_rows
from carls_jax.bank.initializers import constant
from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.layout import columns_of
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import Rows
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import DtypeError, SpecMismatchError

LARGEST = float(np.finfo(np.float32).max)
NORMAL = float(np.finfo(np.float32).smallest_normal)  # 2**-126
TINY = float(np.finfo(np.float32).smallest_subnormal)  # 2**-149

# Of the same size in a row, as rows are; or any at all, beside one another.
_numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, TINY, -NORMAL, NORMAL / 2, LARGEST, -LARGEST, LARGEST / 127]),
)
rows_of_floats = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=_numbers
)


def field_of(form: str | None, *shape: int, **more: Any) -> Field:
    return Field(shape, compact=form, **more)


def round_trip(form: str, values: NDArray[Any]) -> NDArray[Any]:
    field = field_of(form, *values.shape[1:])
    return decode(field, encode(field, values))


def rows(*of: list[float]) -> NDArray[np.float32]:
    return np.array(of, np.float32)


# What comes back


@settings(deadline=None)
@given(rows_of_floats)
@example(rows([LARGEST, -LARGEST, 3.39e38, 0.0]))
@example(rows([TINY, NORMAL, 3 * TINY, -0.0]))
def test_bfloat16_differs_by_at_most_2_to_the_minus_8_of_each_number(values: Any) -> None:
    exact = values.astype(np.float64)
    error = np.abs(round_trip("bfloat16", values) - exact)
    is_normal = np.abs(exact) >= 2.0**-126
    assert (error[is_normal] <= np.abs(exact[is_normal]) * 2.0**-8).all()
    assert (error[~is_normal] <= 2.0**-134).all()


@settings(deadline=None)
@given(rows_of_floats)
@example(rows([LARGEST, -LARGEST, 1.0]))
@example(rows([2.0**-127, 2.0**-128, TINY]))
@example(rows([127 * NORMAL, 64.5 * NORMAL, TINY]))
@example(rows([1.0, 0.5, 1 / 254, -1.0]))
def test_int8_differs_by_at_most_a_254th_of_the_largest_of_the_row(values: Any) -> None:
    exact = values.astype(np.float64)
    error = np.abs(round_trip("int8", values) - exact)
    most = np.abs(exact).max(axis=1, keepdims=True)
    assert (error <= np.maximum(most / 254 * (1 + 2.0**-14), 2.0**-127)).all()


def test_these_bounds_are_reached() -> None:
    nearly = 1 + 2.0**-8  # half-way between two bfloat16
    assert round_trip("bfloat16", rows([nearly])).item() == 1.0
    assert abs(round_trip("int8", rows([127.0, 0.5]))[0, 1] - 0.5) == 127 / 254


def test_bfloat16_is_that_of_ml_dtypes_but_for_what_would_be_infinite() -> None:
    """Of all upper halves, with lower ones at and beside the middle and the ends."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (upper | lower).view(np.float32)
    values = values[np.isfinite(values).all(axis=1)]
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    is_finite = np.isfinite(expected.astype(np.float32))
    stored = encode(field_of("bfloat16", len(lower)), values)
    assert_array_equal(stored[is_finite], expected.view(np.uint16)[is_finite])
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    came_back = round_trip("bfloat16", values)
    assert_array_equal(came_back[~is_finite], np.copysign(largest, values[~is_finite]))
    assert (~is_finite).sum() == 6


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300, deadline=None)
@given(values=rows_of_floats)
@example(values=rows([LARGEST, 1.0]))
@example(values=rows([2.0**-127, 2.0**-126]))
def test_what_was_decoded_is_encoded_to_the_same_bytes(form: str, values: Any) -> None:
    field = field_of(form, values.shape[1])
    stored = encode(field, values)
    assert_array_equal(encode(field, decode(field, stored)), stored)
    assert finite_rows(field, stored).all()


@pytest.mark.parametrize("form", FORMS)
def test_scales_of_any_last_bits_come_back_exactly(form: str) -> None:
    values = np.random.default_rng(0).uniform(1, 2, (4096, 3)).astype(np.float32)
    once = round_trip(form, values)
    assert_array_equal(round_trip(form, once), once)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(value=_numbers, width=st.integers(1, 9))
def test_a_constant_row_stays_constant(form: str, value: float, width: int) -> None:
    came_back = round_trip(form, np.full((1, width), value, np.float32))
    assert (came_back == came_back[0, 0]).all()


@pytest.mark.parametrize("form", FORMS)
def test_zero_is_zero_bytes(form: str) -> None:
    stored = encode(field_of(form, 3), np.zeros((2, 3), np.float32))
    assert not stored.any()
    assert not round_trip(form, np.zeros((2, 3), np.float32)).any()


def test_minus_zero_keeps_its_sign_as_bfloat16_alone() -> None:
    minus = rows([-0.0, 1.0])
    assert_array_equal(np.signbit(round_trip("bfloat16", minus)), [[True, False]])
    assert_array_equal(np.signbit(round_trip("int8", minus)), [[False, False]])


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(values=rows_of_floats)
def test_a_row_is_encoded_alone(form: str, values: Any) -> None:
    together = round_trip(form, values)
    for number, row in enumerate(values):
        assert_array_equal(round_trip(form, row[None]), together[number : number + 1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_can_be_told(form: str, bad: float) -> None:
    field = field_of(form, 3)
    stored = encode(field, rows([1, 2, LARGEST], [1, bad, 3], [0, 0, 0]))
    assert finite_rows(field, stored).tolist() == [True, False, True]


def test_an_int8_row_that_nobody_encodes_can_be_told() -> None:
    field = field_of("int8", 2)
    stored = np.repeat(encode(field, rows([1, -1])), 7, axis=0)
    stored[1, SCALE_BYTES] = -128
    for number, scale in enumerate([-1.0, np.nan, np.inf, LARGEST / 126, TINY], start=2):
        stored[number, :SCALE_BYTES] = np.array([scale], "<f4").view(np.int8)
    assert finite_rows(field, stored).tolist() == [True] + 6 * [False]


# Shapes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3)])
@pytest.mark.parametrize("outer", [(0,), (4,), (4, 2)])
def test_rows_have_any_axes(form: str, shape: Any, outer: Any) -> None:
    field = field_of(form, *shape)
    values = np.random.default_rng(1).normal(size=(*outer, *shape)).astype(np.float32)
    stored = encode(field, values)
    assert stored.shape == outer + ((4 + math.prod(shape),) if form == "int8" else shape)
    assert stored.dtype == field.stored_dtype
    came_back = decode(field, stored)
    assert came_back.shape == values.shape
    assert came_back.dtype == np.float32
    np.testing.assert_allclose(came_back, values, atol=0.02)


def test_the_bytes_of_a_row() -> None:
    assert [field_of(form, 8, 16).row_bytes for form in (None, *FORMS)] == [512, 256, 132]
    stored = encode(field_of("int8", 3), rows([127.0, -254.0, 1.0]))
    assert stored[:, :SCALE_BYTES].tobytes() == np.array([2.0], "<f4").tobytes()
    assert stored[:, SCALE_BYTES:].tolist() == [[64, -127, 0]]  # 63.5 and 0.5, to even


def test_arrays_may_lie_in_memory_as_they_like() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-2]
    for form in FORMS:
        field = field_of(form, 3)
        stored = encode(field, values)
        assert_array_equal(stored, encode(field, values.copy()))
        assert_array_equal(decode(field, np.asfortranarray(stored)), decode(field, stored))


def test_fields_that_are_not_compact_are_left_alone() -> None:
    values = np.ones((2, 3))
    field = Field((3,), dtype="float64")
    assert encode(field, values) is values
    assert decode(field, values) is values


def test_rows_are_decoded_field_by_field() -> None:
    spec = TableSpec("t", {"w": field_of("int8", 2), "n": Field(dtype="int8")})
    numbers = np.array([7], np.int8)
    found = np.ones(1, np.bool_)
    values = {"w": encode(spec.field("w"), rows([127, -254])), "n": numbers}
    answered = Rows(np.array([3]), values, found, {"w": found, "n": found})
    decoded = decoded_rows(spec, answered)
    assert_array_equal(decoded["w"], [[128, -254]])
    assert decoded["n"] is numbers
    plain = Rows(np.array([3]), {"n": numbers}, found, {"n": found})
    assert decoded_rows(spec, plain) is plain


# In a bank

SGD = optimizer("sgd", learning_rate=1.0)


def shard_of(field: Field, *, num_rows: int = 8) -> Shard:
    shard = Shard()
    shard.apply(changes.create_table(TableSpec("t", {"w": field}, max_rows=64)))
    shard.apply(changes.create_rows("t", np.arange(num_rows), by=author()))
    return shard


def push(shard: Shard, keys: list[int], gradients: Any) -> None:
    sent = {"w": np.asarray(gradients, np.float32)}
    shard.apply(changes.push("t", np.array(keys), sent, by=author()))


def stored_rows(shard: Shard, *keys: int, name: str = "value/w") -> NDArray[Any]:
    table = shard.table("t")
    return table.columns[name][table.find(np.array(keys))]


@pytest.mark.parametrize("form", FORMS)
def test_a_table_keeps_values_and_their_history_compact_and_state_as_it_is(form: str) -> None:
    field = field_of(form, 8, optimizer=optimizer("adagrad", learning_rate=1.0), history=2)
    shard = shard_of(field)
    columns = columns_of(TableSpec("t", {"w": field}), shard.table("t").optimizers)
    assert columns["value/w"].row_bytes == field.row_bytes < 32
    assert columns["history/w/value"].row_bytes == 2 * field.row_bytes
    assert columns["state/w/sum_of_squares"].row_bytes == 32


@pytest.mark.parametrize("form", FORMS)
def test_initial_values_are_encoded(form: str) -> None:
    field = field_of(form, 3, init=constant(LARGEST))
    stored = stored_rows(shard_of(field), 2, 5)
    assert_array_equal(stored, encode(field, np.full((2, 3), LARGEST, np.float32)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_push_moves_what_was_decoded_and_encodes_what_it_becomes(form: str, name: str) -> None:
    """As in a float32 field that holds the decoded row."""
    rule = optimizer(name, learning_rate=0.1)
    field, plain = field_of(form, 5, optimizer=rule), Field((5,), optimizer=rule)
    generator = np.random.default_rng(2)
    shard, exact = shard_of(field), shard_of(plain)
    start = encode(field, generator.normal(size=(8, 5)).astype(np.float32))
    shard.apply(changes.update("t", np.arange(8), {"w": start}, by=author()))
    for _ in range(3):
        was = decode(field, stored_rows(shard, *range(8)))
        exact.apply(changes.update("t", np.arange(8), {"w": was}, by=author()))
        keys, gradients = [3, 0, 3, 6], generator.normal(size=(4, 5)).astype(np.float32)
        push(shard, keys, gradients)
        push(exact, keys, gradients)
        expected = encode(field, stored_rows(exact, *range(8)))
        assert_array_equal(stored_rows(shard, *range(8)), expected)
        for state in exact.table("t").optimizers["w"].state_fields:
            column = f"state/w/{state}"
            assert_array_equal(
                stored_rows(shard, *range(8), name=column),
                stored_rows(exact, *range(8), name=column),
            )


@pytest.mark.parametrize("form", FORMS)
def test_the_history_of_a_pushed_row_is_compact(form: str) -> None:
    field = field_of(form, 2, optimizer=SGD, history=2)
    shard = shard_of(field)
    push(shard, [1], [[-1, 2]])
    push(shard, [1], [[-1, 2]])
    expected = encode(field, rows([2, -4], [1, -2]))
    assert_array_equal(stored_rows(shard, 1, name="history/w/value")[0][::-1], expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_push_of_zeros_alters_no_byte_and_one_below_half_a_step_is_lost(form: str) -> None:
    field = field_of(form, 2, optimizer=SGD)
    shard = shard_of(field)
    start = encode(field, rows([1.0, 0.6180339]))
    shard.apply(changes.update("t", np.array([1]), {"w": start}, by=author()))
    push(shard, [1], [[0, 0]])
    push(shard, [1], [[0, 2.0**-10]])
    assert_array_equal(stored_rows(shard, 1), start)
    push(shard, [1], [[0, 2.0**-6]])
    assert (stored_rows(shard, 1) != start).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_would_overflow_stays_as_it_was(form: str) -> None:
    shard = shard_of(field_of(form, 2, optimizer=SGD))
    push(shard, [1], [[-LARGEST, 1]])
    before = stored_rows(shard, 1)
    push(shard, [1, 2], [[-LARGEST, 1], [-1, 0]])
    assert_array_equal(stored_rows(shard, 1), before)
    assert stored_rows(shard, 2).any()
    assert shard.stats().tables["t"].counters["rows_overflowed"] == 1


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_split_of_a_push_gives_the_same_bytes(form: str, data: st.DataObject) -> None:
    field = field_of(form, 3, optimizer=optimizer("adam", learning_rate=0.1))
    keys = data.draw(st.lists(st.integers(0, 7), min_size=2, max_size=8, unique=True))
    gradients = data.draw(arrays(np.float32, (len(keys), 3), elements=st.floats(-4, 4, width=32)))
    cut = data.draw(st.integers(1, len(keys) - 1))
    whole, cut_up = shard_of(field), shard_of(field)
    push(whole, keys, gradients)
    push(cut_up, keys[cut:], gradients[cut:])
    push(cut_up, keys[:cut], gradients[:cut])
    assert_array_equal(stored_rows(whole, *range(8)), stored_rows(cut_up, *range(8)))


# The spec


@pytest.mark.parametrize("form", FORMS)
def test_a_spec_says_whether_a_field_is_compact(form: str) -> None:
    field = field_of(form, 3)
    assert Field.from_dict(field.to_dict()) == field != field_of(None, 3)
    with pytest.raises(SpecMismatchError, match=rf"compact: given None, existing {form}"):
        TableSpec("t", {"w": field_of(None, 3)}).check_agrees(TableSpec("t", {"w": field}))


def test_only_float32_can_be_compact_and_only_so() -> None:
    with pytest.raises(DtypeError, match=r"compact='float16'\): allowed are .*bfloat16.*int8"):
        field_of("float16", 3)
    for dtype in ("float64", "int8", "uint16", "bool"):
        with pytest.raises(DtypeError, match=rf"dtype='{dtype}', compact='int8'.*float32"):
            field_of("int8", 3, dtype=dtype)
