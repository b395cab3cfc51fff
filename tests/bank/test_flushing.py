from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from carls_jax.bank import changes, flushing
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import author
from carls_jax.bank.initializers import constant
from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import METADATA, Rows
from carls_jax.bank.schedules import schedule
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import FieldNotFoundError, InvalidInputError

SGD = optimizer("sgd", learning_rate=1.0)
SUM = Lazy(combine="sum")


def shard_of(*, per_source: bool = False, **fields: Field) -> Shard:
    shard = Shard()
    spec = TableSpec("t", fields, per_source=per_source, max_rows=1 << 15)
    shard.apply(changes.create_table(spec))
    return shard


def push(shard: Shard, keys: Any, by: Any = None, **gradients: Any) -> None:
    spec = shard.table("t").spec
    sent = {name: np.asarray(value, spec.field(name).dtype) for name, value in gradients.items()}
    by = by or author()
    shard.apply(changes.push("t", np.asarray(keys, np.int64), sent, by=by))


def lookup(shard: Shard, keys: Any, *fields: str, **more: Any) -> Rows:
    request = pb.Lookup(table="t", fields=fields or ["x"], metadata=METADATA, **more)
    return shard.lookup(request, np.asarray(keys, np.int64))


def count(shard: Shard, *keys: int, name: str = "x") -> list[int]:
    table = shard.table("t")
    found: NDArray[Any] = table.columns[f"pending/{name}/count"][table.find(np.array(keys))]
    return found.tolist()


@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_one_push_of_the_sum_or_the_mean(name: str, dtype: str, combine: Any) -> None:
    kind = optimizer(name, learning_rate=0.1, clip=0.9)
    start = constant(1.0)
    lazy = shard_of(
        x=Field((3,), dtype, start, kind, history=2, lazy=Lazy(combine=combine)),
    )
    eager = shard_of(x=Field((3,), dtype, start, kind, history=2))
    rng = np.random.default_rng(0)
    for step in range(3):
        several = rng.normal(size=(4, 5, 3)).astype(dtype)
        for gradients in several:
            push(lazy, range(5), author(step=step, updated_at=1.0), x=gradients)
        total = several[0]
        for gradients in several[1:]:
            total = total + gradients
        if combine == "mean":
            total /= total.dtype.type(4)
        push(eager, range(5), author(step=step, updated_at=2.0), x=total)
        flush = changes.flush("t", np.arange(5), ["x"], by=author(updated_at=2.0))
        lazy.apply(flush)
    one, other = lazy.table("t"), eager.table("t")
    for column, rows in other.columns.items():
        assert_array_equal(one.columns[column][:5], rows[:5], err_msg=column)
    assert count(lazy, *range(5)) == [0] * 5


@pytest.mark.parametrize("compact", [None, "bfloat16", "int8"])
def test_where_each_push_is_read_before_the_next_laziness_makes_no_difference(
    compact: Any,
) -> None:
    adam = optimizer("adam", learning_rate=0.1, clip_row_norm=2.0)
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 4, 3)).astype(np.float32)
    seen = []
    for lazy in (None, Lazy(), SUM):
        shard = shard_of(x=Field((3,), optimizer=adam, compact=compact, lazy=lazy))
        seen.append([])
        for step, one in enumerate(gradients):
            push(shard, range(4), author(step=step), x=one)
            rows = lookup(shard, range(4))
            seen[-1].append((rows["x"].tobytes(), rows.version["x"].tolist()))
    assert seen[0] == seen[1] == seen[2]


def test_notes_the_author_of_the_last_gradient_and_the_time_of_the_flush() -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM))
    push(shard, [1, 2], author(step=5, source="ann", clock="a", updated_at=1.0), x=[1, 1])
    push(shard, [2, 3], author(step=3, source="bob", clock="b", updated_at=2.0), x=[1, 1])
    shard.apply(changes.flush("t", np.arange(9), ["x"], by=author(updated_at=9.0)))
    rows = lookup(shard, [1, 2, 3])
    assert rows["x"].tolist() == [-1, -2, -1]
    assert rows.step["x"].tolist() == [5, 3, 3]
    assert rows.source["x"].tolist() == ["ann", "bob", "bob"]
    assert rows.clock["x"].tolist() == ["a", "b", "b"]
    assert rows.updated_at["x"].tolist() == [9.0] * 3
    assert rows.version["x"].tolist() == [1] * 3


def test_reads_the_schedule_at_the_step_of_each_rows_last_gradient() -> None:
    rate = schedule("linear", init_value=1.0, end_value=0.0, transition_steps=10)
    shard = shard_of(x=Field(optimizer=optimizer("sgd", learning_rate=rate), lazy=SUM))
    push(shard, [1, 2], author(step=0), x=[1, 1])
    push(shard, [2], author(step=6), x=[1])
    assert_allclose(lookup(shard, [1, 2])["x"], [-1.0, -0.8])


def test_every_way_of_reading_finds_what_was_pushed_before() -> None:
    def shard() -> Shard:
        made = shard_of(x=Field(optimizer=SGD, history=2, lazy=SUM), y=Field(dtype="int64"))
        push(made, [1, 2], x=[1, 2])
        push(made, [1], x=[1])
        return made

    assert lookup(shard(), [2, 1, 1])["x"].tolist() == [-2, -2, -2]
    assert lookup(shard(), [3, 1], create=True)["x"].tolist() == [0, -2]
    scanned, _ = shard().scan(pb.Scan(table="t", fields=["x"], num_rows=8))
    assert dict(zip(scanned.keys.tolist(), scanned["x"].tolist(), strict=True)) == {1: -2, 2: -2}
    history = shard().history(pb.History(table="t", field="x"), np.array([1]))
    assert [(one.version, one.value.item()) for one in history[0]] == [(1, -2.0)]
    aged = lookup(shard(), [1], max_age_steps=0, now=0)
    assert aged.found.tolist() == [False]  # pushed without a step


def test_reading_other_rows_or_fields_flushes_nothing() -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM), z=Field(optimizer=SGD, lazy=SUM), y=Field())
    push(shard, [1, 2], x=[1, 1], z=[1, 1])
    before = shard.stats().sequence
    lookup(shard, [1, 2], "y")
    lookup(shard, [3, -1])
    assert shard.stats().sequence == before
    lookup(shard, [1], "x", "y")
    assert count(shard, 1, 2) == [0, 1]
    assert count(shard, 1, 2, name="z") == [1, 1]
    assert shard.stats().sequence == before + 1
    lookup(shard, [1], "x", "y")
    assert shard.stats().sequence == before + 1
    assert shard.table("t").counts.read()["rows_flushed"] == 1


def test_an_update_comes_after_what_was_gathered() -> None:
    adagrad = optimizer("adagrad", learning_rate=1.0)
    lazy = shard_of(x=Field(optimizer=adagrad, lazy=SUM))
    eager = shard_of(x=Field(optimizer=adagrad))
    for shard in (lazy, eager):
        push(shard, [1], author(step=9, updated_at=1.0), x=[2])
        for step, if_newer in ((5, True), (5, False)):
            by = author(step=step, updated_at=1.0)
            values = {"x": np.array([7.0, 8.0], np.float32)}
            change = changes.update("t", np.array([1, 2]), values, by=by, if_newer=if_newer)
            assert shard.apply(change).num_kept == int(if_newer)
        push(shard, [1], author(step=9, updated_at=1.0), x=[2])
    assert count(lazy, 1) == [1]
    one, other = lookup(lazy, [1, 2]), lookup(eager, [1, 2])
    assert_array_equal(one["x"], other["x"])
    assert_array_equal(one.version["x"], other.version["x"])
    assert one.version["x"].tolist() == [3, 2]


def test_a_push_to_lazy_and_other_fields_does_each_its_own_way() -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM), z=Field((2,), optimizer=SGD))
    push(shard, [1], x=[1], z=[[1, 2]])
    assert count(shard, 1) == [1]
    assert lookup(shard, [1], "z")["z"].tolist() == [[-1, -2]]
    assert count(shard, 1) == [1]
    assert lookup(shard, [1])["x"].tolist() == [-1]
    assert shard.table("t").counts.read()["push_calls"] == 1


def test_authors_gather_apart() -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM), per_source=True)
    push(shard, [1], author(source="ann"), x=[1])
    push(shard, [1, 2], author(source="bob"), x=[2, 3])
    push(shard, [2], author(source="eve"), x=[4])
    sums = lookup(shard, [1, 2], sources=["bob"])["x"]
    assert sums.tolist() == [[-2], [-3]]
    table = shard.table("t")
    slot = table.find(np.array([1]), source="ann")
    assert table.columns["pending/x/count"][slot].tolist() == [1]
    assert lookup(shard, [1, 2], sources=["*"])["x"].tolist() == [[-1, -2, 0], [0, -3, -4]]
    push(shard, [1], author(source="ann"), x=[4])
    push(shard, [2], author(source="bob"), x=[4])
    scanned, _ = shard.scan(pb.Scan(table="t", fields=["x"], num_rows=8))
    assert sorted(scanned["x"].tolist()) == [-7, -5, -4, -2]


def test_a_row_that_would_overflow_stays_and_gathers_anew() -> None:
    shard = shard_of(x=Field(optimizer=optimizer("sgd", learning_rate=9.0), lazy=SUM))
    most = np.finfo(np.float32).max
    push(shard, [1, 2], x=[most, 1])
    rows = lookup(shard, [1, 2])
    assert rows["x"].tolist() == [0, -9]
    assert rows.version["x"].tolist() == [0, 1]
    assert shard.table("t").counts.read()["rows_overflowed"] == 1
    push(shard, [1], x=[1])
    assert lookup(shard, [1])["x"].tolist() == [-9]


def test_what_has_waited_long_enough_is_flushed() -> None:
    shard = shard_of(
        x=Field(optimizer=SGD, lazy=Lazy(max_wait_s=10.0)),
        z=Field(optimizer=SGD, lazy=Lazy(max_wait_s=1.0)),
    )
    assert shard.shortest_wait_s == 1.0
    push(shard, [1], author(updated_at=100.0), x=[1], z=[1])
    push(shard, [1, 2], author(updated_at=105.0), x=[1, 1])
    shard.flush_overdue(105.5)
    assert (count(shard, 1, 2), count(shard, 1, name="z")) == ([2, 1], [0])
    shard.flush_overdue(109.9)
    assert count(shard, 1, 2) == [2, 1]
    shard.flush_overdue(110.0)
    assert count(shard, 1, 2) == [0, 1]
    before = shard.stats().sequence
    shard.flush_overdue(114.9)
    assert shard.stats().sequence == before


def test_many_rows_are_flushed_in_blocks() -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM))
    keys = np.random.default_rng(0).permutation(flushing.BLOCK_ROWS + 5)
    push(shard, keys, author(updated_at=1.0), x=keys)
    before = shard.stats().sequence
    shard.flush_overdue(1e9)
    assert shard.stats().sequence == before + 2
    rows = lookup(shard, keys)
    assert_array_equal(rows["x"], -keys.astype(np.float32))
    assert shard.stats().sequence == before + 2


def test_padding_and_keys_without_a_row_are_left_out_of_a_flush() -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM))
    push(shard, [1], x=[1])
    shard.apply(changes.flush("t", np.array([-1, 8, 1, 1]), ["x"], by=author()))
    assert lookup(shard, [1])["x"].tolist() == [-1]
    assert shard.table("t").num_rows == 1


def test_refuses_to_flush_what_gathers_nothing(unchanged: Any) -> None:
    shard = shard_of(x=Field(optimizer=SGD, lazy=SUM), y=Field())
    push(shard, [1], x=[1])
    with unchanged(shard):
        with pytest.raises(InvalidInputError, match="field 'y' of table 't' gathers no gradients"):
            shard.apply(changes.flush("t", np.array([1]), ["x", "y"], by=author()))
        with pytest.raises(FieldNotFoundError, match="'q'"):
            shard.apply(changes.flush("t", np.array([1]), ["q"], by=author()))
