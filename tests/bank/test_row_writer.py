from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from .guarded_rows import MAX_ROWS, GuardedRows


@pytest.fixture
def rows() -> GuardedRows:
    return GuardedRows()


@pytest.mark.parametrize("n", [0, 1, 8, 9, 1000])
def test_rows_are_written_where_they_belong_and_nothing_else_is(rows: GuardedRows, n: int) -> None:
    rng = np.random.default_rng(n)
    slots = rng.permutation(MAX_ROWS)[:n]
    expected = {name: column.copy() for name, column in rows.columns.items()}
    expected["value/x"][slots] = x = rng.standard_normal((n, 3), np.float32)
    expected["value/y"][slots] = y = rng.integers(-128, 127, n, np.int8)
    rows.writer.write(slots, {"value/x": x, "value/y": y})
    for name, column in rows.columns.items():
        assert_array_equal(column, expected[name])
    assert_array_equal(np.flatnonzero(rows.guards), np.sort(slots))
    assert (rows.guards[slots] == 2).all()  # each row once, and all its columns together


def test_one_value_may_stand_for_all(rows: GuardedRows) -> None:
    rows.writer.write(np.array([3, 1]), {"value/x": 7, "step/x": -1, "value/y": np.array([1, 2])})
    assert rows.columns["value/x"][:4, 0].tolist() == [0, 7, 0, 7]
    assert rows.columns["step/x"][:4].tolist() == [0, -1, 0, -1]
    assert rows.columns["value/y"][:4].tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize(
    "x",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2],
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.broadcast_to(np.float32(5), (2, 3)),
    ],
    ids=["float64", "strided", "fortran", "broadcast"],
)
def test_values_of_any_layout_are_written(rows: GuardedRows, x: np.ndarray) -> None:
    x.flags.writeable = False
    rows.writer.write(np.array([5, 2]), {"value/x": x})
    assert_array_equal(rows.columns["value/x"][[5, 2]], x)


@pytest.mark.parametrize("shape", [(2,), (2, 4), (3, 3), (1, 3)])
def test_values_of_another_shape_are_our_own_mistake(
    rows: GuardedRows, shape: tuple[int, ...]
) -> None:
    with pytest.raises(AssertionError, match="value/x"):
        rows.writer.write(np.array([0, 1]), {"value/x": np.ones(shape)})
    assert not rows.columns["value/x"].any()
    assert not rows.guards.any()
