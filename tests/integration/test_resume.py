"""In lockstep a run that was killed, at whatever moment, ends as one that was not.

A copy of a run's directory is what a kill would have left at that moment. So one run is copied
again and again, and each copy is resumed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import carls_jax as carls
from carls_jax.bank import Bank, BankServer, LocalBank, SnapshotIdentity
from carls_jax.launch.experiment import Loaded, load
from carls_jax.makers import MakerRunner
from carls_jax.metrics import MetricsWriter

EXPERIMENT = Path(__file__).with_name("resume_experiment.py")

Moment = Callable[[str], None]


class Killed(BaseException):
    """Ends a training loop, as nothing else would."""


def ignore(moment: str) -> None:
    """Lets a moment pass."""


class WatchedBank(LocalBank):
    """Tells of the moment between a snapshot and the checkpoint that names it."""

    moment: Moment = staticmethod(ignore)

    def snapshot(self, label: str, *, uuid: str | None = None) -> SnapshotIdentity:
        taken = super().snapshot(label, uuid=uuid)
        self.moment(f"after the snapshot {label}")
        return taken


class WatchedSession(carls.Session):
    """Tells of the moments after each step, and after each checkpoint."""

    moment: Moment = staticmethod(ignore)

    def checkpoint(self, step: int, state: Any) -> bool:
        self.moment(f"after step {step}")
        is_saved = super().checkpoint(step, state)
        if is_saved:
            self.moment(f"after the checkpoint of step {step}")
        return is_saved


def experiment(*, delay: int = 1, depth: int = 3) -> Loaded:
    return load(EXPERIMENT, (f"run.session.schedule.delay={delay}", f"depth={depth}"))


def run(
    loaded: Loaded, workdir: Path, *, bank: Bank | None = None, moment: Moment = ignore
) -> dict[str, Any]:
    """Runs, or resumes, the experiment in this process and returns its outcome."""
    with ExitStack() as held:
        if bank is None:
            bank = held.enter_context(WatchedBank(workdir / "bank", source="trainer"))
            bank.moment = moment
        for table in loaded.experiment.tables:
            bank.table(table)
        runners = [
            MakerRunner(
                maker,
                bank,
                data=moment,
                predict=loaded.experiment.predict,
                state_directory=workdir / "makers" / f"{maker.name}-0",
            )
            for maker in loaded.experiment.makers
        ]
        metrics = held.enter_context(MetricsWriter(workdir / "metrics", "trainer-0"))
        session = WatchedSession(
            bank, workdir, loaded.run.session, runners=runners, metrics=metrics
        )
        session.moment = moment
        return dict(loaded.experiment.train(held.enter_context(session)))


@pytest.mark.parametrize(("delay", "depth"), [(0, 3), (1, 1)])
def test_a_copy_of_any_moment_ends_like_the_run_itself(
    tmp_path: Path, delay: int, depth: int
) -> None:
    loaded = experiment(delay=delay, depth=depth)
    copies: list[tuple[str, Path]] = []

    def copy(moment: str) -> None:
        copies.append((moment, tmp_path / f"copy-{len(copies)}"))
        shutil.copytree(tmp_path / "run", copies[-1][1])

    expected = run(loaded, tmp_path / "run", moment=copy)

    assert len(copies) >= 12 + 2 * 5
    assert [moment for moment, directory in copies if run(loaded, directory) != expected] == []


def test_a_trainer_that_dies_again_and_again_beside_a_living_bank_ends_like_another(
    tmp_path: Path,
) -> None:
    loaded = experiment()
    deaths = ["after step 2", "after the checkpoint of step 3", "in a maker", "after step 11"]

    def die(moment: str) -> None:
        if deaths and moment == deaths[0]:
            deaths.pop(0)
            raise Killed

    with (
        LocalBank(tmp_path / "bank") as held,
        BankServer(held, f"unix:{tmp_path}/socket") as server,
        carls.connect(server.address, source="trainer") as bank,
    ):
        for _ in range(4):
            with pytest.raises(Killed):
                run(loaded, tmp_path / "killed", bank=bank, moment=die)
        found = run(loaded, tmp_path / "killed", bank=bank, moment=die)

    assert deaths == []
    assert found == run(loaded, tmp_path / "whole")


# Real processes


@contextmanager
def launched(workdir: Path, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
    """Launches the experiment; at the end of the block the launcher and all its roles die."""
    arguments = ["launch", "--config", str(EXPERIMENT), "--workdir", str(workdir)]
    assigned = [f"--config.{one}" for one in overrides]
    command = [sys.executable, "-m", "carls_jax.cli", *arguments, *assigned]
    with subprocess.Popen(command) as launcher:
        try:
            yield launcher
        finally:
            launcher.kill()


def result_of(workdir: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those parts of a launched run's result that are expected."""
    result = json.loads((workdir / "result.json").read_text())
    return {name: result[name] for name in expected}


def test_processes_that_are_killed_are_restarted_and_the_run_ends_like_another(
    tmp_path: Path,
) -> None:
    expected = run(experiment(), tmp_path / "whole")
    kills = ("kill.trainer=5", "kill.bank=8", "kill.aim=10")
    with launched(tmp_path / "killed", *kills) as launcher:
        assert launcher.wait(timeout=100) == 0

    assert {path.name for path in (tmp_path / "killed").glob("killed-*")} == {
        "killed-trainer",
        "killed-bank",
        "killed-aim",
    }
    assert result_of(tmp_path / "killed", expected) == expected


def test_a_program_that_is_killed_goes_on_when_it_is_launched_again(tmp_path: Path) -> None:
    expected = run(experiment(), tmp_path / "whole")
    killed = tmp_path / "killed"
    with launched(killed, "kill.pause=7"):
        deadline = time.monotonic() + 100
        while not (killed / "killed-pause").exists():
            assert time.monotonic() < deadline, "the run did not come to step 7"
            time.sleep(0.05)
    with launched(killed, "kill.pause=7") as launcher:
        assert launcher.wait(timeout=100) == 0

    assert result_of(killed, expected) == expected
