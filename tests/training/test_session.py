"""What a training loop can rely on: order, errors, resources. Resuming: tests/integration."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_array_equal

import carls_jax as carls
from carls_jax import hooks
from carls_jax import metrics as metrics_files
from carls_jax.bank import Applied, Bank, BankServer, Change, LocalBank
from carls_jax.errors import (
    BankError,
    BankUnavailableError,
    ConfigError,
    FieldNotFoundError,
    InvalidInputError,
    NonFiniteError,
    TableNotFoundError,
)
from carls_jax.metrics import MetricsWriter
from carls_jax.training import WhenAway

DEADLINE_S = 10.0

# A gradient of -1 adds 1 to a row.
COUNTS = carls.TableSpec(
    "counts",
    {
        "n": carls.Field(optimizer=carls.optimizer("sgd", learning_rate=1.0)),
        "belief": carls.Field((2,)),
    },
)
BATCHES = [{"id": np.array([0, 1])} for _ in range(6)]
PLAN = {"own": carls.Lookup(COUNTS, "n", keys="id", create=True)}
WRITES = {"gradient": carls.Push(COUNTS, "n", keys="id")}
ADD_ONE = {"gradient": np.array([-1.0, -1.0])}
STATE = {"model": {"w": jnp.zeros(2)}}
LOCKSTEP = carls.SessionConfig(carls.lockstep(every_steps=100))

Open = Callable[..., AbstractContextManager[carls.Session]]


@pytest.fixture
def open_session(bank: Bank, tmp_path: Path) -> Open:
    """Returns what opens a session on a bank of either kind, in one work directory."""
    bank.table(COUNTS)

    @contextmanager
    def opened(config: carls.SessionConfig | None = None) -> Iterator[carls.Session]:
        with (
            MetricsWriter(tmp_path / "metrics", "trainer-0") as metrics,
            carls.Session(bank, tmp_path, config or carls.SessionConfig(), metrics=metrics) as one,
        ):
            yield one

    return opened


# Order


@pytest.mark.parametrize(("depth", "seen"), [(1, [0, 1, 2, 3, 4, 5]), (3, [0, 0, 0, 1, 2, 3])])
def test_in_lockstep_a_lookup_sees_the_pushes_of_depth_steps_before(
    open_session: Open, depth: int, seen: list[int]
) -> None:
    with open_session(LOCKSTEP) as session:
        session.begin(STATE)
        found = []
        for step, _, know in session.look_ahead(BATCHES, PLAN, depth=depth, writes=WRITES):
            found.append(know["own"]["n"].tolist())
            session.write(step, ADD_ONE)
        assert found == [[count, count] for count in seen]


def test_after_a_checkpoint_what_was_looked_ahead_is_looked_up_again(open_session: Open) -> None:
    with open_session(carls.SessionConfig(carls.lockstep(every_steps=2))) as session:
        state = session.begin(STATE)
        found = []
        for step, _, know in session.look_ahead(BATCHES, PLAN, depth=3, writes=WRITES):
            found.append(int(know["own"]["n"][0]))
            session.write(step, ADD_ONE)
            assert session.checkpoint(step, state) == (step % 2 == 0)
        # Steps 3, 4 and 5 are fetched with 2 pushes, then 5 again and 6 with 4.
        assert found == [0, 0, 2, 2, 4, 4]


def test_in_the_background_all_writes_are_there_after_a_flush(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES, PLAN, writes=WRITES):
            session.write(step, ADD_ONE)
        session.flush()
        assert_array_equal(session.bank.table("counts").lookup([0, 1])["n"], [6.0, 6.0])


def test_the_bank_is_told_the_step_of_a_checkpoint(open_session: Open) -> None:
    config = carls.SessionConfig(checkpoint_every_steps=3)
    with open_session(config) as session:
        state = session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES, {}, num_steps=5):
            assert session.checkpoint(step, state) == (step in (3, 5))
        assert session.bank.stats().clocks["main"] == 5
        assert {one.label for one in session.bank.snapshots()} == {"step-0", "step-3", "step-5"}


# What a step gets


def test_knowledge_is_on_the_device_and_not_shared_with_the_bank(open_session: Open) -> None:
    with open_session(LOCKSTEP) as session:
        table = session.bank.table("counts")
        table.update([0, 1], {"n": [3.0, 4.0], "belief": [[1, 2], [3, 4]]})
        session.begin(STATE)
        plan = {"own": carls.Lookup(COUNTS, ("n", "belief"), keys="id")}
        held = []
        for _, _, know in session.look_ahead(BATCHES, plan, num_steps=3):
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(know))
            held.append((know["own"], jax.tree.map(np.array, know["own"])))
            table.update([0, 1], {"n": [0.0, 0.0], "belief": np.zeros((2, 2))})
        for known, copy in held:
            jax.tree.map(assert_array_equal, known, copy)
        assert_array_equal(held[0][0]["belief"], [[1, 2], [3, 4]])


def test_jax_takes_over_aligned_numpy_arrays_on_cpu() -> None:
    """Pins why each lookup must have arrays of its own: a reused buffer would change under JAX."""
    memory = np.empty(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    aligned = memory[start : start + 4096].view(np.float32)
    aligned[:] = 1.0
    on_device = jax.block_until_ready(jax.device_put(aligned))
    aligned[:] = 2.0
    assert on_device[0] == 2.0, "JAX copies now: knowledge need not have arrays of its own"


def test_knowledge_is_put_where_it_is_asked_for(open_session: Open) -> None:
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    with open_session() as session:
        session.begin(STATE)
        for _, _, know in session.look_ahead(BATCHES[:1], PLAN, sharding=sharding):
            assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(know))


def test_ages_and_shares_are_counted(open_session: Open) -> None:
    with open_session(LOCKSTEP) as session:
        session.bank.table("counts").update([0], {"n": [1.0]}, step=0)
        session.begin(STATE)
        for _ in session.look_ahead(BATCHES[:4], {"own": carls.Lookup(COUNTS, "n", keys="id")}):
            pass
        # Row 0 is 1, 2, 3, then 4 steps old; row 1 is not there.
        assert session.staleness.summary() == {"age_p50": 2, "age_p95": 4, "found_share": 0.5}


# What a step is told of the loop's own writes


@pytest.mark.parametrize(
    ("depth", "behind"), [(1, [0] * 6), (2, [0, 1, 1, 1, 1, 1]), (3, [0, 1, 2, 2, 2, 2])]
)
def test_a_row_that_was_pushed_to_after_it_was_looked_up_says_so(
    open_session: Open, depth: int, behind: list[int]
) -> None:
    with open_session(LOCKSTEP) as session:
        session.begin(STATE)
        session.bank.table("counts").update([0, 1], {"n": [0.0, 0.0]}, step=0)
        told, counted = [], []
        for step, _, know in session.look_ahead(BATCHES, PLAN, depth=depth, writes=WRITES):
            own = know["own"]
            assert isinstance(own.behind["n"], jax.Array)
            told.append(int(own.behind["n"][0]))
            # Of the pushes 1 to step - 1, each of which adds 1, the value lacks the last.
            counted.append(step - 1 - int(own["n"][0]))
            # Its own age shows that too: the bank's is 1 step old.
            assert own.age["n"].tolist() == [told[-1] + 1] * 2
            session.write(step, ADD_ONE)
        assert told == counted == behind
        summary = session.staleness.summary()
    assert summary.get("behind_p95") == max(behind)
    assert summary["behind_share"] == pytest.approx(np.mean(np.array(behind) > 0))


def test_only_rows_and_fields_that_were_written_are_behind(open_session: Open) -> None:
    plan = {"own": carls.Lookup(COUNTS, ("n", "belief"), keys="id", create=True)}
    batches = [{"id": np.array([0, 1])}, {"id": np.array([2, -1])}, {"id": np.array([0, 2])}]
    with open_session(LOCKSTEP) as session:
        session.begin(STATE)
        told = []
        for step, _, know in session.look_ahead(batches, plan, depth=3, writes=WRITES):
            assert list(know["own"].behind) == ["n"]
            told.append(know["own"].behind["n"].tolist())
            if step == 1:
                session.write(step, ADD_ONE)
            session.bank.table("counts").update([2], {"n": [9.0]}, step=step, source="another")
        assert told == [[0, 0], [0, 0], [2, 0]]


def test_knowledge_that_the_loop_does_not_write_is_not_compared(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
        for _, _, know in session.look_ahead(BATCHES, PLAN):
            assert know["own"].behind == {}
        assert "behind_share" not in session.staleness.summary()


class StoppableBank(LocalBank):
    """Applies pushes only while it may."""

    may_push: threading.Event

    def apply(self, change: Change) -> Applied:
        if change.kind == "push":
            assert self.may_push.wait(DEADLINE_S)
        return super().apply(change)


def test_in_the_background_what_the_bank_has_not_acknowledged_is_missing(tmp_path: Path) -> None:
    with (
        StoppableBank(tmp_path / "bank", source="trainer") as bank,
        MetricsWriter(tmp_path, "trainer-0") as metrics,
    ):
        bank.may_push = threading.Event()
        bank.table(COUNTS)
        with carls.Session(bank, tmp_path, carls.SessionConfig(), metrics=metrics) as session:
            session.begin(STATE)
            told = []
            for step, _, know in session.look_ahead(BATCHES, PLAN, writes=WRITES, num_steps=5):
                lacked = int(know["own"].behind["n"][0])
                told.append((lacked, step - 1 - int(know["own"]["n"][0])))
                session.write(step, ADD_ONE)
                if step == 3:
                    bank.may_push.set()
                    session.flush()
                    bank.may_push.clear()
            bank.may_push.set()
        # Rows are read for the steps 1, 3 and 5 and shared by those that follow; those of step 5
        # hold all but what step 4 wrote.
        assert told == [(0, 0), (1, 1), (2, 2), (3, 3), (1, 1)]


# Metrics


def metrics_of(directory: Path, role: str = "trainer-0") -> list[dict[str, Any]]:
    return metrics_files.read(directory / f"metrics/{role}.jsonl")[0]


def test_a_line_of_metrics_is_written_when_due_and_at_the_end(
    open_session: Open, tmp_path: Path
) -> None:
    config = carls.SessionConfig(log_every_steps=2, schedule=carls.lockstep(100))
    with open_session(config) as session:
        session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES, PLAN, num_steps=5, writes=WRITES):
            session.write(step, ADD_ONE)
            session.log(step, {"loss": jnp.float32(step / 2)})
    lines = metrics_of(tmp_path)

    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["loss"] for line in lines] == [1.0, 2.0, 2.5]
    # Rows of step 1 are looked up before anything is written; later ones 2 steps after a push.
    assert [line.get("age_p50") for line in lines] == [None, 2, 2]
    assert all(line["found_share"] == 1.0 for line in lines)
    assert all(line["steps_per_second"] > 0 for line in lines)
    assert [line["pending_writes"] for line in lines] == [0, 0, 0]
    assert [line["moved_share"] for line in lines] == [1.0, 1.0, 1.0]
    # Rows are looked up two steps ahead, so that they lack what the step before wrote.
    assert [line["behind_p95"] for line in lines] == [1, 1, 1]
    assert [line["behind_share"] for line in lines] == [0.5, 1.0, 1.0]
    for line in lines:
        assert line["fetch_s"] > 0
        assert 0 < line["look_ahead_wait_s"] <= line["look_ahead_wait_max_s"]
        assert line["write_s"] > 0


def test_metrics_tell_how_far_writes_lag(tmp_path: Path) -> None:
    config = carls.SessionConfig(log_every_steps=1)
    with (
        StoppableBank(tmp_path / "bank", source="trainer") as bank,
        MetricsWriter(tmp_path / "metrics", "trainer-0") as metrics,
        carls.Session(bank, tmp_path, config, metrics=metrics) as session,
    ):
        bank.may_push = threading.Event()
        bank.table(COUNTS)
        session.begin(STATE)
        repeated = [{"id": np.array([0, 1, 1, 0])} for _ in range(4)]
        ones = {"gradient": -np.ones(4)}
        for step, _, _ in session.look_ahead(repeated, PLAN, writes=WRITES, num_steps=4):
            session.write(step, ones)
            if step == 3:
                bank.may_push.set()
                session.flush()
            session.log(step)
    lines = metrics_of(tmp_path)

    told = [[line[name] for name in ("pending_writes", "write_lag_steps")] for line in lines]
    assert told[:3] == [[1, 0], [2, 1], [0, 0]]
    assert ["write_s" in line for line in lines[:3]] == [False, False, True]
    # Rows of 2 distinct keys, of 4, travel for the steps 1 and 3; the steps 2 and 4 share them, and
    # look up padding.
    assert [line["moved_share"] for line in lines] == [0.5, 0.25, 0.5, 0.25]


# Mistakes and errors


def test_methods_before_begin_say_so(open_session: Open) -> None:
    with open_session() as session:
        with pytest.raises(InvalidInputError, match=r"call state = session.begin\(state\) before"):
            session.look_ahead(BATCHES, PLAN)
        with pytest.raises(InvalidInputError, match="which is none yet"):
            session.checkpoint(1, STATE)
        with pytest.raises(InvalidInputError, match="which is none yet"):
            session.write(1, {})


def test_a_session_has_one_loop(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
        with pytest.raises(InvalidInputError, match=r"begin\(\) was called before"):
            session.begin(STATE)
        session.look_ahead(BATCHES, PLAN)
        with pytest.raises(InvalidInputError, match=r"look_ahead\(\) was called before"):
            session.look_ahead(BATCHES, PLAN)


def test_another_step_than_the_present_is_refused(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES[:1], PLAN, writes=WRITES):
            with pytest.raises(InvalidInputError, match=r"step=2: .* which is 1"):
                session.write(step + 1, ADD_ONE)
            with pytest.raises(InvalidInputError, match=r"step=0: .* which is 1"):
                session.checkpoint(step - 1, STATE)
            with pytest.raises(InvalidInputError, match="outputs loss are not among the writes"):
                session.write(step, {**ADD_ONE, "loss": 1.0})
        assert_array_equal(session.bank.table("counts").lookup([0])["n"], [0.0])


@pytest.mark.parametrize(
    ("plan", "writes", "error"),
    [
        ({"a": carls.Lookup("nowhere", "n", keys="id")}, {}, TableNotFoundError),
        ({"a": carls.Lookup("counts", "m", keys="id")}, {}, FieldNotFoundError),
        ({}, {"a": carls.Update("counts", "m", keys="id")}, FieldNotFoundError),
    ],
)
def test_a_wrong_plan_is_refused_before_a_batch_is_drawn(
    open_session: Open, plan: Any, writes: Any, error: type[Exception]
) -> None:
    drawn: list[int] = []
    with open_session() as session:
        session.begin(STATE)
        with pytest.raises(error):
            session.look_ahead((drawn.append(n) for n in range(3)), plan, writes=writes)
    assert drawn == []


def test_keys_that_the_batch_lacks_are_named_at_the_first_step(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
        writes = {"g": carls.Push(COUNTS, "n", keys="user")}
        with pytest.raises(InvalidInputError, match="keys='user': the batch has id"):
            next(session.look_ahead(BATCHES, PLAN, writes=writes))


class LateNan:
    """Becomes an array that the bank refuses, once it may."""

    def __init__(self) -> None:
        self.may_come = threading.Event()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert self.may_come.wait(DEADLINE_S)
        return np.array([np.nan, 0.0])


@pytest.fixture
def fail_late(open_session: Open) -> Callable[[Callable[[carls.Session], None]], None]:
    """Returns what opens a session, and calls a function while its first write will yet fail."""

    def fail(then: Callable[[carls.Session], None]) -> None:
        with open_session() as session:
            session.begin(STATE)
            late = LateNan()
            for step, _, _ in session.look_ahead(BATCHES, PLAN, num_steps=1, writes=WRITES):
                session.write(step, {"gradient": late})
                late.may_come.set()
                then(session)

    return fail


def test_a_failed_write_is_raised_by_close_at_the_latest(fail_late: Any) -> None:
    with pytest.raises(NonFiniteError):
        fail_late(lambda session: None)


def test_no_checkpoint_is_saved_after_a_failed_write(fail_late: Any) -> None:
    def check(session: carls.Session) -> None:
        with pytest.raises(NonFiniteError):
            session.checkpoint(1, STATE)
        assert [one.label for one in session.bank.snapshots()] == ["step-0"]

    fail_late(check)


def test_an_error_of_the_loop_is_not_hidden_by_a_failed_write(fail_late: Any) -> None:
    def fail(session: carls.Session) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        fail_late(fail)
    assert any("NonFiniteError" in note for note in caught.value.__notes__)


def test_an_error_of_a_hook_is_raised_before_a_checkpoint(local_bank: Bank, tmp_path: Path) -> None:
    table = local_bank.table(COUNTS)
    with MetricsWriter(tmp_path, "trainer-0") as metrics:
        session = carls.Session(local_bank, tmp_path, carls.SessionConfig(), metrics=metrics)
        state = session.begin(STATE)
        for step, batch, _ in session.look_ahead(BATCHES, {}, num_steps=1):
            bad = {"n": jnp.array([jnp.nan, 0.0])}
            jax.jit(lambda ids, values: hooks.update(table, ids, values))(
                jnp.asarray(batch["id"], jnp.int32), bad
            )
            with pytest.raises(NonFiniteError):
                session.checkpoint(step, state)
        session.close()


def test_a_bank_that_is_away_ends_the_loop_if_it_shall(tmp_path: Path) -> None:
    config = carls.SessionConfig(carls.lockstep(every_steps=100), when_away=WhenAway("fail"))
    with LocalBank(tmp_path / "bank") as held, MetricsWriter(tmp_path, "trainer-0") as metrics:
        server = BankServer(held, f"unix:{tmp_path}/socket")
        with carls.connect(server.address, source="trainer", timeout_s=0.3) as bank:
            bank.table(COUNTS)
            with carls.Session(bank, tmp_path, config, metrics=metrics) as session:
                session.begin(STATE)
                steps = session.look_ahead(BATCHES, PLAN, writes=WRITES)
                step, _, _ = next(steps)
                server.stop(0)
                with pytest.raises(BankUnavailableError):
                    session.write(step, ADD_ONE)
                with pytest.raises(BankUnavailableError):
                    list(steps)


@pytest.fixture
def last_seen(tmp_path: Path) -> Iterator[tuple[carls.Session, Callable[[bool], None]]]:
    """Gives a session that goes on without its bank, and what stops and starts the server."""
    config = carls.SessionConfig(
        when_away=WhenAway("last_seen"), checkpoint_every_steps=2, log_every_steps=1
    )
    with LocalBank(tmp_path / "bank") as held, ExitStack() as servers:
        address = f"unix:{tmp_path}/socket"
        server = servers.enter_context(BankServer(held, address))

        def serve(is_there: bool) -> None:
            if is_there:
                servers.enter_context(BankServer(held, address))
            else:
                server.stop(0)

        held.table(COUNTS).push([0, 1], {"n": [0.0, 0.0]}, step=0)
        with (
            carls.connect(address, source="trainer", timeout_s=0.6) as bank,
            MetricsWriter(tmp_path / "metrics", "trainer-0") as metrics,
        ):
            bank.wait_ready(DEADLINE_S)
            with carls.Session(bank, tmp_path, config, metrics=metrics) as session:
                yield session, serve


def test_a_loop_goes_on_without_its_bank_and_nothing_of_it_is_silent(
    last_seen: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session, serve = last_seen
    state = session.begin(STATE)
    told, saved = [], []
    for step, _, know in session.look_ahead(BATCHES, PLAN, depth=1, writes=WRITES, num_steps=6):
        own = know["own"]
        told.append([float(own["n"][0]), int(own.age["n"][0]), int(own.behind["n"][0])])
        session.write(step, ADD_ONE)
        if step < 3:
            session.flush()
        if step == 3:
            serve(False)
        if step in (4, 5):
            session._writes.flush()  # until they are kept
        if step == 6:
            serve(True)
        session.log(step)
        saved.append(session.checkpoint(step, state))

    # From step 4 on rows are as they were for step 3, which had the pushes of the steps 1 and 2.
    assert told[:3] == [[0.0, 1, 0], [1.0, 1, 0], [2.0, 1, 0]]
    assert [one[0] for one in told[4:]] == [told[3][0]] * 2
    assert [age for _, age, _ in told[4:]] == [told[3][1] + 1, told[3][1] + 2]
    assert told[4][2] >= 2
    assert told[5][2] == told[4][2] + 1
    assert saved == [False, True, False, False, False, True]
    assert "no checkpoint is saved after step 4: " in caplog.text
    absences = session.absences
    assert absences["times"] == 1
    assert absences["checkpoints_skipped"] == 1
    assert absences["changes_dropped"] == 0
    assert absences["rows_last_seen"] >= 2 * 2
    lines = metrics_of(tmp_path)
    assert not any(name.startswith("away/") for name in lines[0])
    assert sum(line.get("away/times", 0) for line in lines) == 1
    assert lines[4]["away/rows_last_seen"] == 2
    assert lines[4]["away/changes_waiting"] >= 2
    # The last checkpoint waited for the bank, which has got all pushes.
    assert_array_equal(session.bank.table("counts").lookup([0, 1])["n"], [6.0, 6.0])


def test_the_last_checkpoint_waits_for_a_bank_of_which_nobody_knew_that_it_was_away(
    last_seen: Any,
) -> None:
    session, serve = last_seen
    state = session.begin(STATE)
    is_away, logger = threading.Event(), logging.getLogger("carls_jax.training.away.absence")
    note = lambda record: is_away.set() or True  # noqa: E731
    logger.addFilter(note)
    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(lambda: is_away.wait(DEADLINE_S) and serve(True))
        for step, _, _ in session.look_ahead(BATCHES, {}, num_steps=1):
            serve(False)
            assert session.checkpoint(step, state)
        served.result(DEADLINE_S)
    logger.removeFilter(note)
    assert session.absences["checkpoints_skipped"] == 0
    assert session.bank.snapshots()[-1].label == "step-1"


def test_an_error_of_the_loop_does_not_wait_for_a_bank_that_is_away(last_seen: Any) -> None:
    session, serve = last_seen
    session.begin(STATE)
    for step, _, _ in session.look_ahead(BATCHES, PLAN, writes=WRITES, num_steps=1):
        serve(False)
        session.write(step, ADD_ONE)
    with pytest.raises(KeyError, match="mine") as caught, session:
        raise KeyError("mine")
    # The push was under way, or was kept already.
    is_told = any("BankUnavailableError" in note for note in getattr(caught.value, "__notes__", ()))
    assert is_told or session.absences["changes_dropped"] == 1


def test_a_bank_that_waits_is_the_default_and_costs_nothing_else(
    open_session: Open, tmp_path: Path
) -> None:
    with open_session() as session:
        session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES, PLAN, writes=WRITES):
            session.write(step, ADD_ONE)
            session.log(step)
        session.flush()
        assert session.config.when_away.policy == "wait"
        assert session.absences == {}
    assert not any("away/times" in line for line in metrics_of(tmp_path))


def test_in_lockstep_a_bank_that_was_put_back_ends_the_run(open_session: Open) -> None:
    with open_session(carls.SessionConfig(carls.lockstep(every_steps=2))) as session:
        state = session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES, PLAN, writes=WRITES):
            session.write(step, ADD_ONE)
            if step == 3:
                session.bank.restore("step-2")  # as a restarted server does
            if step == 4:
                with pytest.raises(BankError, match=r"before step 4 .* resumes from checkpoint 2"):
                    session.checkpoint(step, state)
                break
            session.checkpoint(step, state)


def test_otherwise_a_bank_that_was_put_back_is_reported(
    open_session: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with open_session(carls.SessionConfig(checkpoint_every_steps=1)) as session:
        state = session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES[:3], PLAN):
            if step == 2:
                session.bank.restore("step-1")
            session.checkpoint(step, state)
    reports = [one for one in caplog.records if "was put back" in one.message]
    assert [one.message for one in reports] == [
        "before step 2 the bank was put back to an earlier state; changes since then are lost"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps=0"),
        ({"log_every_steps": 0}, "log_every_steps=0"),
        ({"max_pending_writes": 0}, "max_pending_writes=0"),
        ({"lockstep_timeout_s": 0.0}, "lockstep_timeout_s=0.0"),
        ({"checkpoints_kept": 4}, "checkpoints_kept=4: allowed is 5 and more"),
        ({"schedule": carls.lockstep(2, delay=5)}, "keep at least 6"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        carls.SessionConfig(**values)


# Resuming


def test_tables_of_today_stay_when_the_bank_is_put_back(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
        session.bank.table("counts").update([7], {"n": [1.0]})
    with open_session() as session:
        session.bank.table(carls.TableSpec("new", {"x": carls.Field()}))
        assert session.begin(STATE)["model"]["w"].tolist() == [0.0, 0.0]
        assert session.begun_at == 0
        assert len(session.bank.table("counts")) == 0
        session.bank.table("new").update([1], {"x": [1.0]})


def test_a_finished_run_has_no_steps_left(open_session: Open) -> None:
    for begun_at, num_seen in ((0, 3), (3, 0)):
        with open_session() as session:
            state = session.begin({"model": {"w": jnp.zeros(2)}})
            assert session.begun_at == begun_at
            seen = 0
            for step, _, _ in session.look_ahead(BATCHES, PLAN, num_steps=3):
                state = {"model": {"w": state["model"]["w"] + 1}}
                session.checkpoint(step, state)
                seen += 1
            assert seen == num_seen
            assert state["model"]["w"].tolist() == [3.0, 3.0]


def test_a_state_of_another_form_is_refused(open_session: Open) -> None:
    with open_session() as session:
        session.begin(STATE)
    with open_session() as session, pytest.raises(InvalidInputError, match="does not fit step 0"):
        session.begin({"model": {"w": jnp.zeros(3)}})


# carls.session


@carls.maker(writes={"counts": "belief"})
def believe(ctx: carls.Context) -> Iterator[Any]:
    yield np.arange(2), {"belief": np.full((2, 2), ctx.step + 0.5)}


def test_a_session_in_a_temporary_directory_leaves_nothing() -> None:
    before = set(threading.enumerate())
    with carls.session(tables=[COUNTS], makers=[believe]) as session:
        directory = session.workdir
        session.begin(STATE)
        for step, _, _ in session.look_ahead(BATCHES, PLAN, writes=WRITES):
            session.write(step, ADD_ONE)
        assert_array_equal(session.bank.table("counts").lookup([0])["belief"], [[0.5, 0.5]])
        assert any(one.name.startswith("carls-") for one in threading.enumerate())
    assert not directory.exists()
    assert {one for one in threading.enumerate() if one.name.startswith("carls-")} <= before


def test_makers_run_at_each_checkpoint_and_leave_their_metrics(tmp_path: Path) -> None:
    config = carls.SessionConfig(carls.lockstep(every_steps=2, delay=1))
    plan = {"own": carls.Lookup(COUNTS, "belief", keys="id")}
    with carls.session(
        workdir=tmp_path, tables=[COUNTS], makers=[believe], config=config
    ) as session:
        state = session.begin(STATE)
        found = []
        for step, _, know in session.look_ahead(BATCHES, plan, num_steps=5):
            found.append(float(know["own"]["belief"][0, 0]))
            session.checkpoint(step, state)
    # Made at checkpoint 2 from checkpoint 0, at 4 from 2, and at 5, which is no period, not at all.
    assert found == [0, 0, 0.5, 0.5, 2.5]
    assert [line["step"] for line in metrics_of(tmp_path, "believe-0")] == [0, 2]


def test_a_maker_may_have_several_workers(tmp_path: Path) -> None:
    @carls.maker(writes={"counts": "belief"}, keys=lambda data: data)
    def split(ctx: carls.Context, keys: Any) -> Any:
        return {"belief": np.full((len(keys), 2), float(ctx.worker))}

    keys = np.arange(8)
    with carls.session(
        workdir=tmp_path, tables=[COUNTS], makers=[split], num_workers={"split": 2}, data=keys
    ) as session:
        session.begin(STATE)
        rows = session.bank.table("counts").lookup(keys, metadata=("source",))
    assert set(rows["belief"][:, 0].tolist()) == {0.0, 1.0}
    assert set(rows.source["belief"].tolist()) == {"split/0", "split/1"}
