"""Tests of columns over reserved addresses."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import psutil
import pytest

from carls_jax.bank import columns
from carls_jax.bank.columns import MAX_RESERVED_BYTES, reservable_rows, reserve
from carls_jax.errors import BankFullError, DtypeError, InvalidInputError

MIB = 1 << 20
DTYPES = ["f2", "f4", "f8", "i4", "i8", "u1", "u2", "u4", "u8", "bool", ml_dtypes.bfloat16]

needs_reservation = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reserves")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_column_starts_as_zeros_and_keeps_what_is_written(dtype):
    column = reserve(1000, (3,), dtype)

    assert column.shape == (1000, 3)
    assert column.dtype == np.dtype(dtype)
    assert not column.any()
    column[[0, 999]] = 1
    assert column.sum(axis=1).nonzero()[0].tolist() == [0, 999]


@pytest.mark.parametrize(("num_rows", "shape"), [(0, (4,)), (5, (0,)), (0, ())])
def test_a_column_may_be_empty(num_rows, shape):
    assert reserve(num_rows, shape, np.float32).shape == (num_rows, *shape)


@needs_reservation
def test_a_column_may_be_far_larger_than_memory():
    before = _resident_bytes()
    column = reserve(MAX_RESERVED_BYTES // 256, (64,), np.float32)

    column[0] = 1.5
    column[-1] = 2.5

    assert column.nbytes == MAX_RESERVED_BYTES
    assert column[[0, -1], 63].tolist() == [1.5, 2.5]
    assert column[len(column) // 2].sum() == 0
    assert _resident_bytes() - before < 16 * MIB


@needs_reservation
def test_memory_is_given_back_with_the_last_view():
    column = reserve(64 * MIB, (), np.uint8)
    column[:] = 1
    view = column[-3:]
    filled = _resident_bytes()

    del column
    assert view.tolist() == [1, 1, 1]
    assert _resident_bytes() > filled - 16 * MIB
    del view
    assert _resident_bytes() < filled - 48 * MIB


def test_rows_are_allocated_where_the_system_refuses_to_reserve(monkeypatch):
    def refuse(*_):
        raise OSError("as with vm.overcommit_memory=2")

    monkeypatch.setattr(columns.mmap, "mmap", refuse)

    column = reserve(10, (2,), np.int64)
    column[3] = 7
    assert column.sum() == 14


@pytest.mark.parametrize("num_rows", [1 << 50, 1 << 62])
def test_more_than_the_system_can_give_is_an_error(num_rows):
    with pytest.raises(BankFullError, match="lower the table's max_rows"):
        reserve(num_rows, (8,), np.float64)


def test_negative_sizes_are_refused():
    with pytest.raises(InvalidInputError, match=r"received \(-1, 2\)"):
        reserve(-1, (2,), np.float32)


def test_python_objects_are_refused():
    with pytest.raises(DtypeError, match="received object"):
        reserve(3, (), object)


def test_a_reservation_is_capped_at_one_tebibyte():
    assert reservable_rows(1000, row_bytes=256) == 1000
    assert reservable_rows(1 << 40, row_bytes=256) == 1 << 32
    assert reservable_rows(10, row_bytes=0) == 10


def _resident_bytes():
    return psutil.Process().memory_info().rss
