"""Whole experiments as real processes, by the launcher and by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest

from carls_jax.checkpoints import CheckpointWatcher
from carls_jax.errors import NotFoundError
from carls_jax.launch import is_launched, read_processes
from carls_jax.launch.experiment import load
from carls_jax.launch.explaining import explain
from carls_jax.launch.inspecting import bank_of, describe_run
from carls_jax.launch.running import run_experiment

TESTS = Path(__file__).parents[1]
TINY = TESTS / "launch" / "tiny_experiment.py"
MINIMAL = TESTS.parent / "experiments" / "minimal" / "config.py"
COMMAND = (sys.executable, "-m", "carls_jax.cli")
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.02)


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def tiny_result(*, num_steps: int, every_steps: int) -> float:
    """Works out what the tiny experiment must give in lockstep without delay."""
    w, w_of_makers = 0.0, 0.0
    for step in range(num_steps):
        keys = [key % 8 for key in range(step, step + 3)]
        w += 0.5 * sum(2 * key + w_of_makers for key in keys) + 3 * sum(keys)
        if (step + 1) % every_steps == 0:
            w_of_makers = w
    return w


@pytest.fixture
def start():
    """Returns a function that starts a `carls-jax` command."""
    processes = []

    def started(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            (*COMMAND, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_an_experiment_in_processes_gives_what_it_gives_inline(tmp_path):
    overrides = ["num_steps=40", "run.session.schedule.every_steps=20"]
    run_experiment(load(MINIMAL, overrides), tmp_path / "processes")
    # This process is stricter than the others; a user's is not.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_experiment(load(MINIMAL, [*overrides, "run.mode=inline"]), tmp_path / "inline")
    one, other = result_of(tmp_path / "processes"), result_of(tmp_path / "inline")
    assert one["test_accuracy"] == other["test_accuracy"]
    assert one["staleness"] == other["staleness"]
    assert one["rows_written"]["smooth/0"] == other["rows_written"]["smooth/0"]
    params, inline_params = (
        CheckpointWatcher(tmp_path / mode / "checkpoints").load(40).variables
        for mode in ("processes", "inline")
    )
    jax.tree.map(np.testing.assert_array_equal, params, inline_params)


def test_a_launch_over_tcp_with_shards_and_workers_outlives_the_kill_of_one(tmp_path):
    loaded = load(
        TINY,
        [
            "kills=each-1",
            "run.transport=tcp",
            "run.num_shards=2",
            "run.num_workers.each=2",
            "run.session.schedule.every_steps=2",
        ],
    )
    outcome = run_experiment(loaded, tmp_path)
    assert outcome.exit_code == 0
    assert {name for name, count in outcome.restarts.items() if count} == {"each-1"}
    assert set(outcome.restarts) == {"bank-0", "bank-1", "whole-0", "each-0", "each-1", "trainer-0"}
    assert result_of(tmp_path)["w"] == tiny_result(num_steps=6, every_steps=2)
    with bank_of(tmp_path) as bank:  # the snapshots of both shards
        assert bank.identity.num_shards == 2
        rows = bank.table("numbers").lookup(range(8), metadata=("source",))
        np.testing.assert_array_equal(rows["triple"], 3 * np.arange(8))
        assert set(rows.source["triple"]) == {"each/0", "each/1"}
    token = tmp_path / "token"
    secret = token.read_bytes().strip()
    holding = [one for one in tmp_path.rglob("*") if one.is_file() and secret in one.read_bytes()]
    assert holding == [token]


def test_a_launched_run_can_be_looked_at_and_ctrl_c_leaves_no_process(tmp_path, start):
    launcher = start(
        *("launch", "--config", str(TINY), "--workdir", str(tmp_path)),
        *("--config.num_steps=1000000", "--config.run.session.checkpoint_every_steps=10"),
    )

    def explained() -> str:
        try:
            with bank_of(tmp_path) as bank:
                return explain(bank, "numbers", "3")
        except NotFoundError:
            return ""

    def num_snapshots_taken() -> int:
        with bank_of(tmp_path) as bank:
            return int(bank.snapshots()[-1].label.removeprefix("step-")) // 10

    wait_until(lambda: "by whole/0" in explained() and "by each/0" in explained())
    before = num_snapshots_taken()
    wait_until(lambda: num_snapshots_taken() > before + 1)  # one that began after that
    assert describe_run(tmp_path).splitlines()[0] == f"{tmp_path}: running"
    assert "trainer-0  running, pid" in describe_run(tmp_path)
    pids = [replica.pid for replica in read_processes(tmp_path)]
    assert all(map(psutil.pid_exists, pids))

    launcher.send_signal(signal.SIGINT)
    told, _ = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 130
    assert told.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in told
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))
    assert not is_launched(tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert "double = [3 " in explained()  # from the newest snapshot


def test_roles_that_are_started_by_hand_work_together(tmp_path, start):
    run = ("--config", str(TINY), "--workdir", str(tmp_path))
    lockstep = "--config.run.session.schedule.every_steps=3"
    trainer = start("train", *run, lockstep)  # in any order
    services = [start("make", *run, lockstep, "--maker", name) for name in ("whole", "each")]
    services.append(start("bank", "--workdir", str(tmp_path)))
    assert trainer.wait(DEADLINE_S) == 0, trainer.communicate()
    assert result_of(tmp_path)["w"] == tiny_result(num_steps=6, every_steps=3)
    assert describe_run(tmp_path).splitlines()[0] == f"{tmp_path}: running"
    for service in services:
        service.terminate()
        assert service.wait(DEADLINE_S) == 0, service.communicate()
    assert describe_run(tmp_path).splitlines()[0] == f"{tmp_path}: stopped"
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert config["overrides"] == ["run.session.schedule.every_steps=3"]
