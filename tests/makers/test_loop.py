"""Makers' loops keep step with the trainer, and outlive bank, checkpoints and themselves."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import Applied, BankServer, Change, LocalBank, RemoteBank
from carls_jax.checkpoints import Checkpointer, CheckpointWatcher, HostCheckpoint
from carls_jax.errors import ConfigError
from carls_jax.makers import (
    Maker,
    MakerLoop,
    MakerRunner,
    Schedule,
    asynchronous,
    lockstep,
    maker,
    progress,
    run_inline,
    wait_until_done,
)

TIMEOUT_S = 30.0
LOOP = "carls_jax.makers.loop"
IDS = np.arange(4)


def weight(step: int) -> dict[str, Any]:
    """Returns the trainer's state at a step: one variable, which is the step."""
    return {"model": {"weight": np.float64(step)}}


@maker(writes={"nodes": "label"})
def first(ctx):
    yield IDS[:2], {"label": np.full(2, ctx.variables["weight"])}
    yield IDS[2:], {"label": np.full(2, -ctx.variables["weight"])}


@maker(reads="nodes", writes={"nodes": ("score", "rounds")})
def second(ctx):
    ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
    rows = ctx.table("nodes").lookup(IDS, fields=("label",))
    score = np.stack([rows["label"], rows.step["label"]], axis=1)
    yield IDS, {"score": score, "rounds": np.full(4, ctx.state["rounds"])}


class Recorder:
    """Is a maker's function that notes each refresh and writes one row."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.maker = maker(writes={"nodes": "label"}, name="record")(self._refresh)

    def _refresh(self, ctx) -> Iterator[Any]:
        self.steps.append(ctx.step)
        yield [0], {"label": [1.0 + ctx.step]}


@contextmanager
def running(
    bank,
    directory: Path,
    schedule: Schedule,
    *makers: Maker,
    watcher: CheckpointWatcher | None = None,
    state: Path | None = None,
) -> Iterator[threading.Event]:
    """Runs the loop of each maker in a thread; raises at the end what ended one of them."""
    stop = threading.Event()
    earlier: dict[str, int] = {}
    with ThreadPoolExecutor() as threads:
        loops = []
        for one in makers:
            loop = MakerLoop(
                MakerRunner(one, bank, state_directory=state and state / one.name),
                watcher or CheckpointWatcher(directory),
                schedule=schedule,
                earlier=dict(earlier),
                stop=stop,
            )
            loops.append(threads.submit(loop.run))
            earlier[one.name] = 1
        try:
            yield stop
        finally:
            stop.set()
        for ended in loops:
            ended.result(TIMEOUT_S)


def wait_for(bank, *makers: Maker, step: int) -> None:
    wait_until_done(bank, {one.name: 1 for one in makers}, step=step, timeout_s=TIMEOUT_S)


def label(bank) -> tuple[float, int]:
    """Returns value and step of the row that `Recorder` writes."""
    rows = bank.table("nodes").lookup([0], fields=("label",))
    return float(rows["label"][0]), int(rows.step["label"][0])


class TestLockstep:
    def test_makers_refresh_one_after_another_from_each_checkpoint(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        with running(bank, checkpointer.directory, lockstep(10), first, second):
            for step in (0, 10, 20):
                checkpointer.save(step, weight(step))
                wait_for(bank, second, step=step)
                rows = bank.table("nodes").lookup(IDS)
                expected = [[step, step], [step, step], [-step, step], [-step, step]]
                np.testing.assert_array_equal(rows["score"], expected)
                np.testing.assert_array_equal(rows["rounds"], np.full(4, 1 + step // 10))

    def test_the_order_is_the_programs_whatever_they_read(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        with running(bank, checkpointer.directory, lockstep(10), second, first):
            for step, seen in ((0, [0, -1]), (10, [0, 0]), (20, [10, 10])):
                checkpointer.save(step, weight(step))
                wait_for(bank, first, step=step)
                np.testing.assert_array_equal(bank.table("nodes").lookup([0])["score"], [seen])

    def test_a_later_maker_waits_for_all_workers_of_an_earlier_one(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder, stop = Recorder(), threading.Event()
        loop = MakerLoop(
            MakerRunner(recorder.maker, bank),
            CheckpointWatcher(checkpointer.directory),
            schedule=lockstep(10),
            earlier={"early": 2},
            stop=stop,
        )
        checkpointer.save(0, weight(0))
        with ThreadPoolExecutor() as threads:
            ended = threads.submit(loop.run)
            for worker in (0, 1):
                assert recorder.steps == []
                incarnation = progress.incarnation_of(bank)
                progress.tell(bank, f"early/{worker}", done_step=0, incarnation=incarnation)
            wait_for(bank, recorder.maker, step=0)
            stop.set()
            ended.result(TIMEOUT_S)
        assert recorder.steps == [0]

    def test_they_refresh_again_when_the_bank_was_put_back(
        self, bank: LocalBank, checkpointer: Checkpointer, tmp_path: Path
    ) -> None:
        with running(bank, checkpointer.directory, lockstep(10), first, second, state=tmp_path):
            for step in (0, 10):
                bank.snapshot(f"step-{step}")  # as a trainer does: before the makers run
                checkpointer.save(step, weight(step))
                wait_for(bank, first, second, step=step)
            before = bank.table("nodes").to_numpy()
            bank.restore("step-10")
            assert set(bank.table("nodes").lookup(IDS)["rounds"]) == {1}  # lost
            wait_for(bank, first, second, step=10)
            after = bank.table("nodes").to_numpy()
        for name, values in before.items():
            np.testing.assert_array_equal(after[name], values)

    def test_a_refresh_does_not_count_if_the_bank_was_put_back_meanwhile(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        is_midway, may_go_on = threading.Event(), threading.Event()

        @maker(writes={"nodes": "label"})
        def slow(ctx):
            yield [0], {"label": [1.0]}
            is_midway.set()
            may_go_on.wait(TIMEOUT_S)
            yield [1], {"label": [1.0]}

        bank.snapshot("empty")
        with running(bank, checkpointer.directory, lockstep(10), slow):
            checkpointer.save(0, weight(0))
            assert is_midway.wait(TIMEOUT_S)
            bank.restore("empty")  # row 0 is lost
            may_go_on.set()
            wait_for(bank, slow, step=0)
            assert bank.table("nodes").lookup([0, 1], fields=("label",)).found.all()

    def test_makers_that_start_again_do_nothing_twice(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder = Recorder()
        for step in (0, 10, 20):
            with running(bank, checkpointer.directory, lockstep(10), recorder.maker):
                checkpointer.save(step, weight(step))
                wait_for(bank, recorder.maker, step=step)
        assert recorder.steps == [0, 10, 20]

    @pytest.mark.parametrize("inline", [False, True])
    def test_a_delay_beyond_the_kept_checkpoints_is_an_error(
        self, bank: LocalBank, checkpointer: Checkpointer, inline: bool
    ) -> None:
        recorder = Recorder()
        for step in range(0, 70, 10):
            checkpointer.save(step, weight(step))  # 5 are kept
        runner, schedule = MakerRunner(recorder.maker, bank), lockstep(10, delay=5)
        watcher = CheckpointWatcher(checkpointer.directory)
        loop = MakerLoop(runner, watcher, schedule=schedule, stop=threading.Event())
        inline_run = partial(run_inline, [runner], watcher, schedule=schedule, step=60)
        message = "delay=5: at step 60 makers need checkpoint 10, .*keep more than 5"
        with pytest.raises(ConfigError, match=message):
            (inline_run if inline else loop.run)()

    @pytest.mark.parametrize("delay", [0, 1, "once", "never"])
    def test_inline_makers_write_the_same(
        self, bank: LocalBank, other_bank: LocalBank, checkpointer: Checkpointer, delay
    ) -> None:
        schedule, directory = lockstep(10, delay=delay), checkpointer.directory
        runners = [MakerRunner(one, other_bank) for one in (first, second)]
        with running(bank, directory, schedule, first, second):
            for step in (0, 10, 20, 25):
                checkpointer.save(step, weight(step))
                watcher = CheckpointWatcher(directory)
                run_inline(runners, watcher, schedule=schedule, step=step)
                wait_for(bank, first, second, step=step)
                assert everything(other_bank) == everything(bank)
        newest = {0: 25, 1: 10, "once": 0, "never": -1}[delay]
        rows = bank.table("nodes").lookup([0], fields=("label",))
        assert rows.step["label"].tolist() == [newest]


class TestAsynchronous:
    def test_it_waits_for_the_directory_and_never_makes_it(
        self, bank: LocalBank, tmp_path: Path
    ) -> None:
        recorder, directory = Recorder(), tmp_path / "later"
        watcher = Watched(directory)
        with running(bank, directory, asynchronous(), recorder.maker, watcher=watcher):
            watcher.looks.wait_for(2)
            assert not directory.exists()
            with Checkpointer(directory) as checkpointer:
                checkpointer.save(30, weight(30))
            wait_for(bank, recorder.maker, step=30)
        assert recorder.steps == [30]
        assert label(bank) == (31.0, 30)

    def test_it_uses_the_newest_checkpoint_and_leaves_out_what_it_missed(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder = Recorder()
        for step in (0, 10, 20):
            checkpointer.save(step, weight(step))
        with running(bank, checkpointer.directory, asynchronous(), recorder.maker):
            wait_for(bank, recorder.maker, step=20)
            checkpointer.save(30, weight(30))
            wait_for(bank, recorder.maker, step=30)
        assert recorder.steps == [20, 30]

    def test_it_goes_on_when_a_checkpoint_is_deleted_under_it(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder = Recorder()
        for step in (0, 10, 20):
            checkpointer.save(step, weight(step))
        watcher = Deleting(checkpointer.directory)
        with running(bank, checkpointer.directory, asynchronous(), recorder.maker, watcher=watcher):
            wait_for(bank, recorder.maker, step=10)
        assert recorder.steps == [10]

    def test_it_outlives_a_bank_that_is_away_and_says_so_once(
        self, bank: LocalBank, checkpointer: Checkpointer, tmp_path: Path, caplog
    ) -> None:
        caplog.set_level(logging.WARNING, LOOP)
        recorder, address = Recorder(), f"unix:{tmp_path}/bank.sock"
        server = BankServer(bank, address)
        with ExitStack() as held:
            remote = held.enter_context(Called(address, source="record/0"))
            away = held.enter_context(heard("the bank is away"))
            checkpointer.save(0, weight(0))
            after = held.enter_context(ExitStack())  # ends after the loop
            held.enter_context(
                running(remote, checkpointer.directory, asynchronous(), recorder.maker)
            )
            wait_for(bank, recorder.maker, step=0)
            server.stop()
            assert away.wait(TIMEOUT_S)
            remote.changes.wait_for(2)
            checkpointer.save(10, weight(10))
            after.enter_context(BankServer(bank, address))
            wait_for(bank, recorder.maker, step=10)
            checkpointer.save(20, weight(20))
            wait_for(bank, recorder.maker, step=20)
        assert label(bank) == (21.0, 20)
        said = [one.getMessage() for one in caplog.records if one.name == LOOP]
        assert len(said) == 2
        assert said[0].startswith("the bank is away, waiting for it: no bank answers at unix:/")
        assert said[1] == "the bank is back"

    def test_a_bank_that_was_put_back_gets_its_rows_again(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder = Recorder()
        bank.snapshot("empty")
        with running(bank, checkpointer.directory, asynchronous(), recorder.maker):
            checkpointer.save(10, weight(10))
            wait_for(bank, recorder.maker, step=10)
            bank.restore("empty")
            wait_for(bank, recorder.maker, step=10)
            assert label(bank) == (11.0, 10)
        assert recorder.steps == [10, 10]

    def test_a_maker_that_runs_once_uses_the_first_checkpoint_that_there_is(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder, schedule = Recorder(), asynchronous(delay="once")
        for step in (10, 20):
            checkpointer.save(step, weight(step))
        with running(bank, checkpointer.directory, schedule, recorder.maker):
            wait_for(bank, recorder.maker, step=20)
            checkpointer.save(30, weight(30))
            wait_for(bank, recorder.maker, step=30)
            bank.snapshot("after")  # it holds the rows, so nothing is lost
            bank.restore("after")
            wait_for(bank, recorder.maker, step=30)
        with running(bank, checkpointer.directory, schedule, recorder.maker):
            checkpointer.save(40, weight(40))
            wait_for(bank, recorder.maker, step=40)
        assert recorder.steps == [10]
        assert label(bank) == (11.0, 10)

    def test_a_maker_that_never_runs_writes_nothing(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder = Recorder()
        checkpointer.save(10, weight(10))
        with running(bank, checkpointer.directory, asynchronous(delay="never"), recorder.maker):
            wait_for(bank, recorder.maker, step=10)
        assert recorder.steps == []

    def test_it_stops_before_the_next_block_and_then_is_not_done(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        is_midway = threading.Event()

        @maker(writes={"nodes": "label"})
        def endless(ctx):
            while True:
                yield [0], {"label": [1.0]}
                is_midway.set()

        checkpointer.save(0, weight(0))
        with running(bank, checkpointer.directory, asynchronous(), endless):
            assert is_midway.wait(TIMEOUT_S)
        assert progress.done_step(bank, "endless/0") == -1

    def test_what_the_maker_raises_ends_the_loop(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        @maker(writes={"nodes": "label"})
        def fails(ctx):
            raise ZeroDivisionError("mine")

        checkpointer.save(0, weight(0))
        loop = MakerLoop(
            MakerRunner(fails, bank),
            CheckpointWatcher(checkpointer.directory),
            schedule=asynchronous(),
            stop=threading.Event(),
        )
        with pytest.raises(ZeroDivisionError, match="mine"):
            loop.run()

    def test_other_makers_are_not_waited_for(
        self, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        recorder, stop = Recorder(), threading.Event()
        checkpointer.save(0, weight(0))
        loop = MakerLoop(
            MakerRunner(recorder.maker, bank),
            CheckpointWatcher(checkpointer.directory),
            schedule=asynchronous(),
            earlier={"absent": 1},
            stop=stop,
        )
        with ThreadPoolExecutor() as threads:
            ended = threads.submit(loop.run)
            wait_for(bank, recorder.maker, step=0)
            stop.set()
            ended.result(TIMEOUT_S)


class Calls:
    """Counts calls and waits for more of them."""

    def __init__(self) -> None:
        self._calls = threading.Semaphore(0)

    def note(self) -> None:
        self._calls.release()

    def wait_for(self, number: int) -> None:
        """Waits for so many calls from now on."""
        while self._calls.acquire(blocking=False):
            pass
        for _ in range(number):
            assert self._calls.acquire(timeout=TIMEOUT_S)


class Watched(CheckpointWatcher):
    """Is a watcher that counts its looks at the directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.looks = Calls()

    def steps(self) -> tuple[int, ...]:
        self.looks.note()
        return super().steps()


class Called(RemoteBank):
    """Is a bank that counts the changes which are sent to it."""

    def __init__(self, address: str, *, source: str) -> None:
        super().__init__(address, source=source, timeout_s=2.0)
        self.changes = Calls()

    def apply(self, change: Change) -> Applied:
        self.changes.note()
        return super().apply(change)


class Deleting(CheckpointWatcher):
    """Is a watcher whose trainer deletes the first checkpoint that it loads, just before."""

    _has_deleted = False

    def load(self, step: int, **options: Any) -> HostCheckpoint:
        if not self._has_deleted:
            shutil.rmtree(self.directory / str(step))
        self._has_deleted = True
        return super().load(step, **options)


@contextmanager
def heard(beginning: str) -> Iterator[threading.Event]:
    """Gives an event that is set when the loop logs a message with this beginning."""
    event, logger = threading.Event(), logging.getLogger(LOOP)

    def listen(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(beginning):
            event.set()
        return True

    logger.addFilter(listen)
    yield event
    logger.removeFilter(listen)


def everything(bank: LocalBank) -> dict[str, dict[str, list[Any]]]:
    """Returns all that the bank holds but for times and incarnations, ordered by key."""
    held: dict[str, dict[str, list[Any]]] = {}
    for name, spec in bank.tables().items():
        rows = list(bank.table(name).scan(metadata=("version", "step", "source")))
        if not rows:
            continue
        order = np.argsort(np.concatenate([block.keys for block in rows]))
        columns: Mapping[str, list[np.ndarray]] = {
            "keys": [block.keys for block in rows],
            **{field: [block[field] for block in rows] for field in spec.fields},
            **{f"{field} step": [block.step[field] for block in rows] for field in spec.fields},
            **{f"{field} by": [block.source[field] for block in rows] for field in spec.fields},
        }
        held[name] = {
            column: np.concatenate(parts)[order].tolist()
            for column, parts in columns.items()
            if column not in ("seconds", "incarnation")
        }
    return held
