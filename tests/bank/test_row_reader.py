from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.index import NO_KEYS_INDEX, SEQUENCE
from carls_jax.bank.row_access import read_rows
from carls_jax.keys import PADDING

from .guarded_rows import GuardedRows

ALL = ("value/x", "value/y", "step/x")


@pytest.fixture
def rows() -> GuardedRows:
    rows = GuardedRows()
    rows.put(np.arange(1, 1001))
    return rows


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 129, 1000])
def test_any_number_of_keys_is_read(rows: GuardedRows, n: int) -> None:
    keys = np.random.default_rng(n).permutation(np.arange(1, 1001))[:n]
    (x, y, step), found = rows.read(keys, *ALL)
    assert found.all()
    assert_array_equal(x, np.repeat(keys[:, None], 3, axis=1))
    assert_array_equal(y, keys % 100)
    assert_array_equal(step, keys % 10)
    assert (x.dtype, y.dtype, step.dtype) == (np.float32, np.int8, np.int64)


def test_keys_without_a_row_are_blank(rows: GuardedRows) -> None:
    keys = np.array([0, 5, PADDING, -(2**63), 5, 2**63 - 1, PADDING])
    (x, y, step), found = rows.read(keys, *ALL)
    assert found.tolist() == [False, True, False, False, True, False, False]
    assert x[:, 1].tolist() == [0, 5, 0, 0, 5, 0, 0]
    assert y.tolist() == [0, 5, 0, 0, 5, 0, 0]
    assert step.tolist() == [-1, 5, -1, -1, 5, -1, -1]


def test_padding_is_not_found_though_it_is_the_key_of_slots_without_a_row() -> None:
    """As when a row goes between the reader's look at the index and at the key."""
    rows = GuardedRows()
    rows.index.insert(np.array([PADDING]), np.array([0]))
    rows.columns["key"][0] = PADDING
    (x,), found = rows.read(np.array([PADDING, 7]), "value/x")
    assert not found.any()
    assert not x.any()


def test_no_column_may_be_asked_for(rows: GuardedRows) -> None:
    copies, found = rows.read(np.array([1, 5000]))
    assert copies == []
    assert found.tolist() == [True, False]


def test_no_key_may_be_asked_for(rows: GuardedRows) -> None:
    (x, _, _), found = rows.read(np.empty(0, np.int64), *ALL)
    assert x.shape == (0, 3)
    assert found.shape == (0,)


def test_an_index_without_keys_finds_nothing(rows: GuardedRows) -> None:
    (step,), found = rows.reader.read(np.arange(100), ("step/x",), NO_KEYS_INDEX)
    assert not found.any()
    assert (step == -1).all()


def test_wide_rows_are_read_whole() -> None:
    rows = GuardedRows(width=10_001)
    rows.put(np.arange(1, 71))
    keys = np.array([70, 3, 99] * 40)
    (x, y), found = rows.read(keys, "value/x", "value/y")
    assert_array_equal(x, np.where(found, keys, 0)[:, None].repeat(10_001, axis=1))
    assert_array_equal(y, [70, 3, 0] * 40)


def test_a_column_may_be_asked_for_often(rows: GuardedRows) -> None:
    copies, _ = rows.read(np.array([7, 8]), *["value/y", "value/x"] * 100)
    assert len(copies) == 200
    for y, x in zip(copies[::2], copies[1::2], strict=True):
        assert_array_equal(x, np.repeat(y[:, None], 3, axis=1))


def test_what_was_read_is_the_callers_own(rows: GuardedRows) -> None:
    (first,), _ = rows.read(np.array([7]), "value/x")
    (second,), _ = rows.read(np.array([7]), "value/x")
    first[:] = 99
    assert second.tolist() == [[7, 7, 7]]
    assert rows.columns["value/x"][6].tolist() == [7, 7, 7]


def read_only(keys: np.ndarray) -> np.ndarray:
    keys.flags.writeable = False
    return keys


@pytest.mark.parametrize(
    "keys",
    [
        read_only(np.array([3, 0, 4])),
        np.array([3, 9, 0, 9, 4])[::2],
        np.array([4, 0, 3])[::-1],
        np.array([[3, 1], [0, 1], [4, 1]])[:, 0],
        np.broadcast_to(np.array(3), (3,)),
        np.frombuffer(b"x" + np.array([3, 0, 4]).tobytes(), np.int64, offset=1),
    ],
    ids=["read_only", "strided", "reversed", "column", "broadcast", "unaligned"],
)
def test_keys_of_any_layout_need_no_other_machine_code(rows: GuardedRows, keys: np.ndarray) -> None:
    rows.read(np.array([1]), "value/x")
    compiled = len(read_rows.signatures)
    (x,), found = rows.read(keys, "value/x")
    assert x[:, 0].tolist() == keys.tolist()
    assert_array_equal(found, keys > 0)
    assert len(read_rows.signatures) == compiled


def test_a_row_that_stays_half_written_is_given_up_at_the_deadline(rows: GuardedRows) -> None:
    rows.guards[499] += 1
    keys = np.arange(1, 1001)
    assert rows.read(keys, "value/x") is None
    (x,), found = rows.read(keys[keys != 500], "value/x")  # the others can be read
    assert found.all()
    start = time.monotonic()
    assert rows.reader.read(keys, ALL, rows.index.memory, longest_s=0.05) is None
    assert time.monotonic() - start >= 0.05
    rows.guards[499] += 1
    (x,), _ = rows.read(keys, "value/x")
    assert_array_equal(x[:, 0], keys)


def test_an_index_that_stays_half_made_is_given_up_only_for_keys_not_found(
    rows: GuardedRows,
) -> None:
    rows.index.memory.state[SEQUENCE] += 1
    assert rows.read(np.array([1, 5000]), "value/x") is None
    assert rows.read(np.array([1, 1000]), "value/x")[1].all()


def test_a_slot_that_went_to_another_key_is_not_read_as_the_first_keys(rows: GuardedRows) -> None:
    """As when a row goes, and another comes, after the reader found its slot."""
    rows.columns["key"][4] = 5005
    assert rows.read(np.array([5]), "value/x")[1].tolist() == [False]
    assert rows.read(np.array([4]), "value/x")[1].tolist() == [True]
