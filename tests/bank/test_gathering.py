from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank import changes
from carls_jax.bank.changes import author
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from tests.bank.conftest import rows_of

SGD = optimizer("sgd", learning_rate=1.0)


class Gathered:
    """Holds a table of one lazy field, "x"; pushes to it are only gathered."""

    def __init__(self, *shape: int, dtype: str = "float32", **lazy: Any) -> None:
        self.shard = Shard()
        field = Field(shape, dtype=dtype, optimizer=SGD, lazy=Lazy(**lazy))
        self.shard.apply(changes.create_table(TableSpec("t", {"x": field}, max_rows=1 << 12)))
        self.table, self.dtype = self.shard.table("t"), dtype

    def push(
        self, keys: ArrayLike, gradients: ArrayLike, *, combine: Any = "sum", **by: Any
    ) -> Any:
        sent = {"x": np.asarray(gradients, self.dtype)}
        change = changes.push(
            "t", np.asarray(keys, np.int64), sent, by=author(**by), combine=combine
        )
        return self.shard.apply(change)

    def pending(self, kind: str, *keys: int) -> NDArray[Any]:
        return self.table.columns[f"pending/x/{kind}"][self.table.find(np.array(keys))]

    def counter(self, kind: str) -> int:
        return self.table.counts.read().get(kind, 0)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adds_up_gradients_and_leaves_rows_alone(shape: tuple[int, ...], dtype: str) -> None:
    rows = Gathered(*shape, dtype=dtype)
    first, second = np.random.default_rng(0).normal(size=(2, 3, *shape)).astype(dtype)
    rows.push([7, 1, 9], first, step=3, source="ann", clock="a", updated_at=5.0)
    applied = rows.push([9, 7, 2], second, step=4, source="bob", clock="b", updated_at=6.0)

    assert applied.num_created == 1
    assert_array_equal(
        rows.pending("sum", 7, 1, 9, 2),
        [first[0] + second[1], first[1], first[2] + second[0], second[2]],
    )
    assert rows.pending("count", 7, 1, 9, 2).tolist() == [2, 1, 2, 1]
    assert rows.pending("since", 7, 1, 9, 2).tolist() == [5, 5, 5, 6]
    assert rows.pending("step", 7, 1, 9, 2).tolist() == [4, 3, 4, 4]
    names, clocks = list(rows.table.sources), list(rows.table.clocks)
    assert [names[one] for one in rows.pending("source", 7, 1)] == ["bob", "ann"]
    assert [clocks[one] for one in rows.pending("clock", 7, 1)] == ["b", "a"]
    slots = rows.table.find(np.array([7, 1, 9, 2]))
    assert not rows.table.columns["value/x"][slots].any()
    assert not rows.table.columns["version/x"][slots].any()


def test_many_rows_are_gathered_each_by_itself() -> None:
    """More than one slice of rows."""
    rows, keys = Gathered(2), np.random.default_rng(0).permutation(4096)
    gradients = np.stack([keys, -keys], axis=1)
    rows.push(keys, gradients)
    rows.push(keys[::-1], gradients[::-1])
    assert_array_equal(rows.pending("sum", *keys), 2 * gradients)
    assert (rows.pending("count", *keys) == 2).all()


@pytest.mark.parametrize(("combine", "total"), [("sum", 6.0), ("mean", 3.0)])
def test_a_repeated_key_counts_once_with_what_its_gradients_are_combined_to(
    combine: str, total: float
) -> None:
    rows = Gathered(1)
    rows.push([5, -1, 8, 5], [[2.0], [9.0], [1.0], [4.0]], combine=combine)
    assert rows.pending("sum", 5, 8).ravel().tolist() == [total, 1.0]
    assert rows.pending("count", 5, 8).tolist() == [1, 1]


def test_each_gradient_is_clipped_before_it_is_added() -> None:
    rows = Gathered(2, clip_row_norm=5.0)
    rows.push([1], [[30.0, 40.0]])
    assert_allclose(rows.pending("sum", 1), [[3.0, 4.0]], rtol=1e-6)
    rows.push([1], [[3.0, 0.0]])
    assert_allclose(rows.pending("sum", 1), [[6.0, 4.0]], rtol=1e-6)


def test_a_gradient_far_above_the_usual_norm_is_left_out_and_counted() -> None:
    rows = Gathered(2, reject_above=3.0)
    rows.push([1, 2], [[3.0, 4.0], [1.0, 0.0]], step=1)  # norms 5 and 1
    rows.push([1, 2], [[9.0, 12.0], [0.0, 3.1]], step=2)  # 15 is 3 times 5, 3.1 is more
    assert rows.pending("count", 1, 2).tolist() == [2, 1]
    assert_array_equal(rows.pending("sum", 1, 2), [[12.0, 16.0], [1.0, 0.0]])
    assert rows.pending("step", 1, 2).tolist() == [2, 1]
    assert rows.counter("gradients_rejected") == 1
    # 5 + (15 - 5) / 10, and 1 + (3 - 1) / 10: what is rejected counts as 3 times the usual.
    assert_allclose(rows.pending("norm", 1, 2), [6.0, 1.2])


def test_the_usual_norm_outlasts_a_flush_and_follows_a_lasting_change() -> None:
    rows = Gathered(reject_above=4.0)
    rows.push([1], [1.0])
    rows.shard.apply(changes.flush("t", np.array([1]), ["x"], by=author()))
    num_pushed = 0
    while not rows.pending("count", 1)[0]:
        rows.push([1], [100.0])
        num_pushed += 1
    # The average grows by 30 % each time, from 1 to above 25.
    assert num_pushed == 14
    assert rows.counter("gradients_rejected") == 13


def test_zeros_say_nothing_of_the_usual_norm() -> None:
    rows = Gathered(reject_above=2.0)
    for gradient in (0.0, 1.0, 0.0, 1.5):
        rows.push([1], [gradient])
    assert rows.pending("count", 1).tolist() == [4]
    assert rows.pending("sum", 1).tolist() == [2.5]
    assert rows.counter("gradients_rejected") == 0


def test_what_would_overflow_is_left_out_and_counted() -> None:
    rows, most = Gathered(2), np.finfo(np.float32).max
    rows.push([1], [[most, 1.0]], step=1)
    rows.push([1, 2], [[most, 1.0], [1.0, 1.0]], step=2)
    rows.push([3, 3], [[most, 1.0], [most, 1.0]], step=2)
    assert_array_equal(rows.pending("sum", 1, 2), [[most, 1.0], [1.0, 1.0]])
    assert rows.pending("count", 1, 2, 3).tolist() == [1, 1, 0]
    assert rows.pending("step", 1).tolist() == [1]
    assert rows.counter("rows_overflowed") == 2


def test_a_deleted_row_takes_along_what_it_gathered() -> None:
    rows = Gathered(reject_above=2.0)
    rows.push([1], [1.0])
    rows.shard.apply(changes.delete("t", np.array([1]), by=author()))
    rows.push([1], [50.0])
    assert rows.pending("sum", 1).tolist() == [50.0]
    assert rows.pending("count", 1).tolist() == [1]
    assert rows.pending("norm", 1).tolist() == [50.0]


def test_a_snapshot_that_is_under_way_holds_what_was_gathered_before_it() -> None:
    rows = Gathered()
    rows.push([1], [1.0])
    with rows.shard.frozen() as ((image,), *_):
        rows.push([1], [2.0])
        rows.shard.apply(changes.flush("t", np.array([1]), ["x"], by=author()))
        kept = rows_of(image)
    assert (kept["pending/x/sum"], kept["pending/x/count"]) == (1.0, 1)
    assert (kept["value/x"], kept["version/x"]) == (0.0, 0)
    assert rows.pending("count", 1).tolist() == [0]
