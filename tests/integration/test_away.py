"""Servers and makers that are killed or stopped, as real processes, beside a training loop."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from numpy.testing import assert_array_equal

import carls_jax as carls
from carls_jax.bank import Bank, RemoteBank, ShardedBank
from carls_jax.checkpoints import Checkpointer, CheckpointWatcher
from carls_jax.keys import shard_of
from carls_jax.makers import MakerLoop, MakerRunner, asynchronous, maker, progress, wait_until_done
from carls_jax.metrics import MetricsWriter
from carls_jax.training import WhenAway

from .stopping_maker import MADE, NUM_ROWS

DEADLINE_S = 60.0
COMMAND = (sys.executable, "-m", "carls_jax.cli", "bank", "--bank-id", "b")
MAKER = Path(__file__).with_name("stopping_maker.py")
KEYS = np.arange(20)
ROWS = carls.TableSpec(
    "rows",
    {
        "n": carls.Field((4,), optimizer=carls.optimizer("adagrad", learning_rate=1.0)),
        "count": carls.Field(optimizer=carls.optimizer("sgd", learning_rate=1.0)),
    },
)
PLAN = {"own": carls.Lookup(ROWS, ("n", "count"), keys="id", create=True)}
WRITES = {
    "n": carls.Push(ROWS, "n", keys="id"),
    "count": carls.Push(ROWS, "count", keys="id"),
}


class Server:
    """Is a server's process, which can be killed and started again on what it left."""

    def __init__(self, directory: Path, *, shard: str = "0/1", journal: str = "process") -> None:
        self.address = f"unix:{directory}/{shard[0]}"
        options = ("--root", str(directory / f"root-{shard[0]}"), "--shard", shard)
        self._command = (*COMMAND, *options, "--address", self.address, "--journal", journal)
        self.start()

    def start(self) -> None:
        """Starts it, and does not wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(held: ExitStack) -> Callable[..., Server]:
    """Returns what starts a server that is killed at the end."""

    def started(*arguments: Any, **options: Any) -> Server:
        server = Server(*arguments, **options)
        held.callback(lambda: server.kill())
        return server

    return started


@contextmanager
def opened(bank: Bank, workdir: Path, config: carls.SessionConfig) -> Iterator[carls.Session]:
    with (
        MetricsWriter(workdir / "metrics", "trainer-0") as metrics,
        carls.Session(bank, workdir, config, metrics=metrics) as session,
    ):
        session.bank.table(ROWS)
        yield session


def train(
    session: carls.Session, *, num_steps: int, then: Callable[[int], None] = lambda step: None
) -> list[float]:
    """Trains rows so that each step depends on all before it; returns what the steps found."""
    state = session.begin({"model": {"w": jnp.zeros(2)}})
    batches = ({"id": (KEYS * step) % 23} for step in range(1, 1000))
    found = []
    for step, _, know in session.look_ahead(batches, PLAN, writes=WRITES, num_steps=num_steps):
        found.append(float(know["own"]["n"].sum()))
        gradient = know["own"]["n"] * 0.1 + step
        session.write(step, {"n": gradient, "count": -np.ones(KEYS.size)})
        then(step)
        session.checkpoint(step, state)
    return found


@contextmanager
def when_away(act: Callable[[], None]) -> Iterator[None]:
    """Acts each time that the training loop says that the bank is away."""
    logger = logging.getLogger("carls_jax.training.away.absence")

    def listen(record: logging.LogRecord) -> bool:
        if " is away" in record.getMessage():
            act()
        return True

    logger.addFilter(listen)
    yield
    logger.removeFilter(listen)


def test_a_run_in_lockstep_whose_bank_is_killed_ends_as_if_it_was_not(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    config = carls.SessionConfig(carls.lockstep(every_steps=4))
    results = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        server = serve(tmp_path / name)

        def kill(step: int, server: Server = server, name: str = name) -> None:
            if name == "killed" and step in (3, 9):
                server.kill()

        with (
            when_away(server.start),
            RemoteBank(server.address, source="trainer", timeout_s=4.0) as bank,
        ):
            bank.wait_ready(DEADLINE_S)
            with opened(bank, tmp_path / name, config) as session:
                found = train(session, num_steps=12, then=kill)
                results[name] = found, session.bank.table("rows").to_numpy()
                if name == "killed":
                    assert session.absences["times"] == 2
    assert results["killed"][0] == results["whole"][0]
    for column, values in results["whole"][1].items():
        assert_array_equal(results["killed"][1][column], values)


def test_a_loop_goes_on_while_one_of_two_servers_is_killed_and_loses_nothing(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    servers = [serve(tmp_path, shard=f"{index}/2") for index in range(2)]
    config = carls.SessionConfig(when_away=WhenAway("last_seen"), checkpoint_every_steps=1000)
    is_away = shard_of(KEYS, 2) == 1
    batches = ({"id": KEYS} for _ in range(1000))
    shards = [
        RemoteBank(one.address, source="trainer", timeout_s=3.0, num_shards=2) for one in servers
    ]
    with ShardedBank(shards, source="trainer") as bank:
        bank.wait_ready(DEADLINE_S)
        with opened(bank, tmp_path, config) as session:
            state = session.begin({"model": {"w": jnp.zeros(2)}})
            counts, ages = {}, {}
            for step, _, know in session.look_ahead(
                batches, PLAN, writes=WRITES, depth=1, num_steps=30
            ):
                counts[step] = np.array(know["own"]["count"])
                ages[step] = np.array(know["own"].age["count"])
                session.write(step, {"n": np.ones((20, 4)), "count": -np.ones(20)})
                session._writes.flush()  # until the bank, or what outlasts it, has them
                if step == 10:
                    servers[1].kill()
                if step == 28:
                    servers[1].start()
                session.checkpoint(step, state)
            session.flush()
            rows = session.bank.table("rows").lookup(KEYS)
            absences = session.absences
    # The last pushes were seen on the server that was there, and none on the other.
    for step in range(12, 29):
        assert_array_equal(counts[step][~is_away], np.full((~is_away).sum(), step - 1))
        assert_array_equal(counts[step][is_away], counts[12][is_away])
        assert_array_equal(ages[step][is_away], ages[12][is_away] + step - 12)
    assert_array_equal(rows["count"], np.full(20, 30.0))
    assert absences["times"] == 1
    assert absences["changes_dropped"] == absences["changes_refused"] == 0
    assert absences["rows_never_seen"] == 0
    assert absences["rows_last_seen"] >= is_away.sum() * 17


# Makers


@contextmanager
def writing_makers(
    num: int, address: str, checkpoints: Path
) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs makers' processes that write all the time, from when all have begun to."""
    command = [sys.executable, str(MAKER), address, str(checkpoints)]
    with ExitStack() as held:
        processes = []
        for _ in range(num):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            held.enter_context(process)
            held.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            for _ in range(3):
                assert process.stdout.readline() == "writing\n"
        yield processes


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_makers_that_stop_or_die_while_they_write_never_hold_the_loop_up(
    tmp_path: Path, serve: Callable[..., Server], number: signal.Signals
) -> None:
    server = serve(tmp_path)
    # A call that is not answered within 30 s ends the loop.
    config = carls.SessionConfig(when_away=WhenAway("fail"), checkpoint_every_steps=10)
    plan = {**PLAN, "made": carls.Lookup(MADE, "number", keys="made")}
    batches = ({"id": KEYS, "made": np.arange(NUM_ROWS)} for _ in range(1000))
    with RemoteBank(server.address, source="trainer") as bank:
        bank.wait_ready(DEADLINE_S)
        bank.table(MADE).load(np.arange(NUM_ROWS), {"number": np.zeros((NUM_ROWS, 64))})
        with opened(bank, tmp_path, config) as session:
            state = session.begin({"model": {"w": jnp.zeros(2)}})
            makers = writing_makers(3, server.address, tmp_path / "checkpoints")
            with makers as alive:
                gone = []
                for step, _, know in session.look_ahead(
                    batches, plan, writes=WRITES, depth=1, num_steps=30
                ):
                    if step in (5, 10, 15):
                        gone.append(alive.pop())
                        gone[-1].send_signal(number)
                    assert know["own"].mask.all()
                    made = np.array(know["made"]["number"])
                    assert (made == made[:, :1]).all()  # whole rows
                    session.write(step, {"n": np.ones((20, 4)), "count": -np.ones(20)})
                    session.checkpoint(step, state)
                session.flush()
                if number == signal.SIGSTOP:
                    states = {psutil.Process(one.pid).status() for one in gone}
                    assert states == {psutil.STATUS_STOPPED}
            made = bank.table(MADE).lookup(np.arange(NUM_ROWS))["number"]
            rows = session.bank.table("rows").lookup(KEYS)
            labels = [one.label for one in bank.snapshots()]
    assert np.unique(made).size == 1  # no update was applied in part
    assert_array_equal(rows["count"], np.full(20, 30.0))
    assert "step-30" in labels


@pytest.mark.parametrize("journal", ["process", "off"])
def test_a_maker_outlives_a_bank_that_is_killed(
    tmp_path: Path, serve: Callable[..., Server], held: ExitStack, journal: str
) -> None:
    refreshed = []

    @maker(writes={"rows": "count"})
    def count(ctx):
        refreshed.append(ctx.step)
        yield KEYS, {"count": np.full(20, float(ctx.step))}

    server = serve(tmp_path, journal=journal)
    stop = threading.Event()
    with (
        RemoteBank(server.address, source="count/0") as bank,
        Checkpointer(tmp_path / "checkpoints") as checkpointer,
    ):
        bank.wait_ready(DEADLINE_S)
        bank.table(ROWS)
        bank.table(progress.PROGRESS)
        bank.snapshot("begun")
        loop = MakerLoop(
            MakerRunner(count, bank),
            CheckpointWatcher(tmp_path / "checkpoints"),
            schedule=asynchronous(),
            stop=stop,
        )
        thread = threading.Thread(target=loop.run)
        thread.start()
        held.callback(thread.join)
        held.callback(stop.set)
        for step in (10, 20):
            checkpointer.save(step, {"model": {"w": np.zeros(2)}})
            wait_until_done(bank, {"count": 1}, step=step, timeout_s=DEADLINE_S)
            server.kill()
            server.start()
            bank.wait_ready(DEADLINE_S)
            # With a journal nothing is lost; without one the maker makes its rows again.
            wait_until_done(bank, {"count": 1}, step=step, timeout_s=DEADLINE_S)
            assert_array_equal(bank.table("rows").lookup(KEYS)["count"], np.full(20, step))
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert refreshed == ([10, 20] if journal == "process" else [10, 10, 20, 20])
