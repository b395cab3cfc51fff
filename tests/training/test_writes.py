"""How outputs reach the bank: in order, bounded, and never silently lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Bank, Field, Rows, TableSpec
from carls_jax.bank.optimizers import optimizer
from carls_jax.errors import InvalidInputError, NonFiniteError
from carls_jax.training import Push, Update
from carls_jax.training.away.last_seen import ALL
from carls_jax.training.held import Found
from carls_jax.training.look_ahead import InlineExecutor
from carls_jax.training.writes import Writes

DEADLINE_S = 10.0
NODES = TableSpec(
    "nodes",
    {"z": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0)), "score": Field()},
)
PLAN = {
    "score": Update(NODES, "score", keys="id"),
    "sum": Push(NODES, "z", keys="id"),
    "mean": Push(NODES, "z", keys="id", combine="mean"),
}
KEYS = np.array([[1, 2], [-1, 1]])
TARGETS = dict.fromkeys(PLAN, KEYS)


@pytest.fixture(params=["inline", "background"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with InlineExecutor() if request.param == "inline" else ThreadPoolExecutor(1) as one:
        yield one


def test_updates_overwrite_and_pushes_are_applied(bank: Bank, executor: Executor) -> None:
    table = bank.table(NODES)
    writes = Writes(bank, executor, max_pending=2)
    writes.send(5, {"score": np.array([[1.0, 2.0], [3.0, 4.0]])}, PLAN, TARGETS)
    gradients = jnp.array([[[1.0, 0], [2.0, 0]], [[4.0, 0], [8.0, 0]]])
    writes.send(6, {"sum": gradients}, PLAN, TARGETS)
    writes.flush()
    rows = table.lookup([1, 2], metadata=("step", "source"))

    assert len(table) == 2
    assert_array_equal(rows["score"], [4, 2])  # the last of a repeated key; padding is ignored
    assert_array_equal(rows["z"][:, 0], [-9, -2])
    assert_array_equal(rows.step["score"], [5, 5])
    assert_array_equal(rows.step["z"], [6, 6])
    assert rows.source["z"].tolist() == ["trainer", "trainer"]

    writes.send(7, {"mean": gradients}, PLAN, TARGETS)
    writes.flush()
    assert_array_equal(table.lookup([1])["z"][0, 0], -9 - 4.5)


def test_no_more_steps_than_allowed_are_under_way(local_bank: Bank) -> None:
    local_bank.table(NODES)
    may_run = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        writes = Writes(local_bank, executor, max_pending=2)
        executor.submit(may_run.wait, DEADLINE_S)
        for step in (1, 2):
            writes.send(step, {"score": KEYS.astype(float)}, PLAN, TARGETS)
        assert writes.num_pending == 2
        threading.Timer(0.05, may_run.set).start()
        writes.send(3, {"score": KEYS.astype(float)}, PLAN, TARGETS)  # waits for step 1
        assert may_run.is_set()
        writes.flush()
        assert writes.num_pending == 0


def test_an_error_in_the_background_is_raised_by_a_later_call(local_bank: Bank) -> None:
    table = local_bank.table(NODES)
    bad, good = {"score": np.full((2, 2), np.nan)}, {"score": np.ones((2, 2))}
    may_run = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        writes = Writes(local_bank, executor, max_pending=1)
        executor.submit(may_run.wait, DEADLINE_S)
        writes.send(1, bad, PLAN, TARGETS)
        may_run.set()
        with pytest.raises(NonFiniteError):
            writes.send(2, good, PLAN, TARGETS)
        writes.flush()  # tells of each error once
        assert_array_equal(table.lookup([1])["score"], [1.0])


def test_a_flush_raises_the_error_of_a_write_under_way(local_bank: Bank) -> None:
    local_bank.table(NODES)
    may_run = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        writes = Writes(local_bank, executor, max_pending=1)
        executor.submit(may_run.wait, DEADLINE_S)
        writes.send(1, {"score": np.full((2, 2), np.nan)}, PLAN, TARGETS)
        may_run.set()
        with pytest.raises(NonFiniteError):
            writes.flush()
        writes.flush()


def test_inline_an_error_is_raised_at_once(local_bank: Bank) -> None:
    local_bank.table(NODES)
    writes = Writes(local_bank, InlineExecutor(), max_pending=4)
    with pytest.raises(NonFiniteError):
        writes.send(1, {"score": np.full((2, 2), np.inf)}, PLAN, TARGETS)


def test_unknown_outputs_are_refused_and_nothing_is_sent(local_bank: Bank) -> None:
    table = local_bank.table(NODES)
    writes = Writes(local_bank, InlineExecutor(), max_pending=1)
    message = "outputs no, yes are not among the writes of look_ahead: score, sum, mean"
    with pytest.raises(InvalidInputError, match=message):
        writes.send(1, {"yes": 1, "score": np.ones((2, 2)), "no": 2}, PLAN, TARGETS)
    assert len(table) == 0


def test_an_output_of_wrong_size_names_its_shape(local_bank: Bank) -> None:
    local_bank.table(NODES)
    writes = Writes(local_bank, InlineExecutor(), max_pending=1)
    message = r"output 'sum' has shape \[4, 3\], expected \[2, 2, 2\]"
    with pytest.raises(InvalidInputError, match=message):
        writes.send(1, {"sum": np.ones((4, 3))}, PLAN, TARGETS)


# Which rows lack what was sent


def found(keys: list[int], *, as_of: list[int], places: object = None) -> Found:
    """Returns rows as if they had been looked up when so much was acknowledged."""
    size = len(keys)
    rows = Rows(np.array(keys), {}, np.ones(size, np.bool_), {})
    return Found(rows, np.arange(size) if places is None else np.array(places), np.array(as_of))


@pytest.fixture
def writes(local_bank: Bank) -> Writes:
    """Gives writes of scores: of rows 1 and 2 in step 5, and of 2 and 3 in step 7."""
    local_bank.table(NODES)
    writes = Writes(local_bank, InlineExecutor(), max_pending=4)
    for step, keys in ((5, [2, 1, 2]), (7, [-1, 3, 2])):
        writes.send(step, {"score": np.ones(3)}, PLAN, {"score": np.array(keys)})
    return writes


def test_rows_lack_what_was_sent_after_they_were_looked_up(writes: Writes) -> None:
    assert writes.acknowledged == 2
    keys = [0, 1, 2, 3, -1]
    for as_of, behind in ((0, [0, 5, 5, 3, 0]), (1, [0, 0, 3, 3, 0]), (2, [0, 0, 0, 0, 0])):
        told = writes.behind("nodes", "score", found(keys, as_of=[as_of] * 5), now=10)
        assert_array_equal(told, np.array(behind, np.int32), strict=True)


def test_rows_may_have_been_looked_up_at_different_times(writes: Writes) -> None:
    of = found([2, 3], as_of=[1, 2], places=[[0, 1, 0]])
    assert_array_equal(writes.behind("nodes", "score", of, now=8), [[1, 0, 1]])


def test_other_fields_and_tables_lack_nothing(writes: Writes) -> None:
    for table, field in (("nodes", "z"), ("others", "score")):
        assert not writes.behind(table, field, found([1, 2], as_of=[0, 0]), now=9).any()


def test_what_is_forgotten_is_not_told(writes: Writes) -> None:
    writes.forget(1)
    told = writes.behind("nodes", "score", found([1, 2], as_of=[0, 0]), now=10)
    assert_array_equal(told, [0, 3])


def test_rows_of_other_authors_lack_nothing(writes: Writes) -> None:
    rows = Rows(np.array([1, 2]), {}, np.ones((2, 2), np.bool_), {}, sources=("another", "trainer"))
    of = Found(rows, np.array([1, 0, 1]), np.array([0, 1]))
    assert_array_equal(writes.behind("nodes", "score", of, now=9), [[0, 2], [0, 4], [0, 2]])


def test_a_failed_write_is_missing_until_a_later_one_is_acknowledged(local_bank: Bank) -> None:
    local_bank.table(NODES)
    writes = Writes(local_bank, InlineExecutor(), max_pending=4)
    with pytest.raises(NonFiniteError):
        writes.send(1, {"score": np.full((2, 2), np.nan)}, PLAN, TARGETS)
    assert writes.acknowledged == 0
    writes.send(2, {"score": np.ones((2, 2))}, PLAN, TARGETS)
    assert writes.acknowledged == 2


def test_a_line_tells_how_far_writes_lag(local_bank: Bank) -> None:
    local_bank.table(NODES)
    may_run = threading.Event()
    output = {"score": np.ones((2, 2))}
    with ThreadPoolExecutor(1) as executor:
        writes = Writes(local_bank, executor, max_pending=9)
        writes.send(1, output, PLAN, TARGETS)
        writes.flush()
        assert writes.take_line(2).keys() == {"pending_writes", "write_lag_steps", "write_s"}
        executor.submit(may_run.wait, DEADLINE_S)
        for step in (4, 5):
            writes.send(step, output, PLAN, TARGETS)
        assert writes.take_line(7) == {"pending_writes": 2, "write_lag_steps": 3}
        may_run.set()
        writes.flush()
        line = writes.take_line(8)
    assert (line["pending_writes"], line["write_lag_steps"]) == (0, 0)
    assert line["write_s"] > 0


def test_rows_that_were_remembered_lack_all_since_they_were_seen(writes: Writes) -> None:
    of = found([1, 2, 3], as_of=[2, 2, 1])
    of = replace(of, as_of_step=np.array([3, ALL, 5]))
    # As of step 3 row 1 may lack what step 4 wrote and later ones did; row 2 was just told; row 3
    # lacks what step 7 wrote, and may lack what step 6 did.
    told = writes.behind("nodes", "score", of, now=10)
    assert_array_equal(told, np.array([6, 0, 4], np.int32), strict=True)


def test_what_the_bank_object_keeps_is_not_acknowledged(local_bank: Bank) -> None:
    local_bank.table(NODES)
    is_settled = False
    writes = Writes(local_bank, InlineExecutor(), max_pending=4, is_settled=lambda: is_settled)
    output = {"score": np.ones(2)}
    for step in (5, 6):
        writes.send(step, output, PLAN, {"score": np.array([step, 1])})
    assert (writes.acknowledged, writes.acknowledged_step) == (0, -1)
    is_settled = True
    writes.send(7, output, PLAN, {"score": np.array([7, 1])})
    assert (writes.acknowledged, writes.acknowledged_step) == (3, 7)


def test_what_is_not_acknowledged_for_long_is_known_in_part(local_bank: Bank) -> None:
    local_bank.table(NODES)
    writes = Writes(local_bank, InlineExecutor(), max_pending=4, is_settled=lambda: False)
    for step in range(1, 1001):
        keys = np.array([step, step % 10 + 5000])
        writes.send(step, {"score": np.ones(2)}, PLAN, {"score": keys})
    assert len(writes._recent) <= 128
    behind = writes.behind("nodes", "score", found([*range(1, 1001)], as_of=[0] * 1000), now=1001)
    exact = 1001 - np.arange(1, 1001)
    assert (behind >= exact).all()  # never less than it is
    assert (behind <= 1000).all()
    assert sum(keys.size for sent in writes._recent for keys in sent.keys.values()) <= 3000
    assert_array_equal(behind[-64:], exact[-64:])
    assert_array_equal(
        writes.behind("nodes", "score", found([5000, 4999], as_of=[0, 0]), now=1001) > 900,
        [True, False],
    )
