"""Programs of real processes. They run Python without site-packages, which starts in 10 ms."""

from __future__ import annotations

import os
import queue
import signal
import sys

import psutil
import pytest

from carls_jax.errors import ConfigError, LaunchError, NotFoundError
from carls_jax.launch import (
    LaunchEvent,
    Program,
    RestartPolicy,
    Role,
    is_launched,
    publish,
    read_processes,
    resolve,
    run_program,
    start_program,
)

AT_ONCE = RestartPolicy(max_restarts=2, first_delay_s=0.01, max_delay_s=0.01)

# Each is run with the directory of the test as its working directory in sys.argv[1].
PRELUDE = """
import os, pathlib, signal, subprocess, sys, time
here = pathlib.Path(sys.argv[1])
def append(name, text):
    with open(here / name, "a") as file:
        file.write(text + "\\n")
def wait_for(name, num_lines=1):
    while not (here / name).exists() or len((here / name).read_text().split()) < num_lines:
        time.sleep(0.005)
"""
SERVE = """
def end(*_):
    append("ends", sys.argv[2])
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
append("ready", sys.argv[2])
while True:
    signal.pause()
"""
IGNORE_SIGTERM = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
append("ready", sys.argv[2])
while True:
    signal.pause()
"""


@pytest.fixture
def role(tmp_path):
    """Returns a function that makes a role of a piece of Python."""

    def make(name: str, code: str, **options) -> Role:
        argv = (sys.executable, "-I", "-S", "-c", PRELUDE + code, str(tmp_path), name)
        return Role(name, argv, **{"restarts": AT_ONCE} | options)

    return make


class Events(queue.Queue[LaunchEvent]):
    """Keeps the events of a program, in their order."""

    def next(self, kind: str, replica: str) -> LaunchEvent:
        """Waits for an event of this kind and replica, and drops those before it."""
        while True:
            event = self.get(timeout=10)
            if (event.kind, event.replica) == (kind, replica):
                return event

    def all(self) -> list[LaunchEvent]:
        """Returns the events that nobody has taken."""
        return [self.get_nowait() for _ in range(self.qsize())]


def pid_of(event: LaunchEvent) -> int:
    """Reads the process id from the text of a `started` event."""
    return int(event.text.removeprefix("started, pid "))


def test_a_program_ends_when_all_replicas_have_finished(tmp_path, role):
    program = Program(
        (
            role("trainer", "append('done', 'trainer')"),
            role("maker", "append('done', 'maker'); print('made')", count=2),
        )
    )
    outcome = run_program(program, workdir=tmp_path / "run")
    assert outcome.exit_code == 0
    assert outcome.restarts == {"trainer-0": 0, "maker-0": 0, "maker-1": 0}
    assert sorted((tmp_path / "done").read_text().split()) == ["maker", "maker", "trainer"]
    assert (tmp_path / "run/logs/maker-1.log").read_text().endswith("\nmade\n")


def test_services_are_stopped_in_their_order_after_the_finite_roles(tmp_path, role):
    program = Program(
        (
            role("bank", SERVE, is_service=True, stop_order=2),
            role("trainer", "wait_for('ready', 3); append('ends', 'trainer')"),
            role("maker", SERVE, is_service=True, stop_order=1, count=2),
        )
    )
    assert run_program(program, workdir=tmp_path).exit_code == 0
    assert (tmp_path / "ends").read_text().split() == ["trainer", "maker", "maker", "bank"]
    assert [replica.state for replica in read_processes(tmp_path)] == [
        "stopped",
        "done",
        "stopped",
        "stopped",
    ]


def test_a_killed_service_is_started_again_and_the_program_completes(tmp_path, role, wait_until):
    events = Events()
    program = Program(
        (
            role("maker", SERVE, is_service=True),
            role("trainer", "wait_for('ready', 2)"),
        )
    )
    with start_program(program, workdir=tmp_path, on_event=events.put) as launched:
        wait_until((tmp_path / "ready").exists)
        (pid,) = launched.pids()["maker"]
        os.kill(pid, signal.SIGKILL)
        assert events.next("ended", "maker-0").text == "ended with signal SIGKILL"
        assert events.next("restarting", "maker-0").text == "starts again in 0.01 s"
        assert pid_of(events.next("started", "maker-0")) != pid
        assert launched.wait(timeout_s=10).restarts == {"maker-0": 1, "trainer-0": 0}


def test_a_finite_role_that_fails_is_started_again(tmp_path, role):
    program = Program(
        (role("trainer", "append('starts', 'x'); sys.exit((here / 'starts').stat().st_size < 4)"),)
    )
    outcome = run_program(program, workdir=tmp_path)
    assert (outcome.exit_code, outcome.restarts) == (0, {"trainer-0": 1})


def test_a_service_that_ends_by_itself_is_started_again(tmp_path, role):
    end_once = "append('starts', 'x')\nif (here / 'starts').stat().st_size > 2: signal.pause()"
    program = Program(
        (
            role("bank", end_once, is_service=True),
            role("trainer", "wait_for('starts', 2)"),
        )
    )
    assert run_program(program, workdir=tmp_path).restarts == {"bank-0": 1, "trainer-0": 0}


def test_a_crash_loop_stops_all_and_shows_the_end_of_the_log(tmp_path, role, is_gone):
    crash = "for line in range(30): print('line', line)\nappend('starts', 'x'); sys.exit(3)"
    program = Program(
        (
            role("bank", SERVE, is_service=True),
            role("maker", "wait_for('ready')\n" + crash, is_service=True),
            role("trainer", "signal.pause()"),
        )
    )
    events = Events()
    with pytest.raises(LaunchError) as caught:
        run_program(program, workdir=tmp_path, on_event=events.put)
    message = str(caught.value)
    assert message.startswith("maker-0 died with exit code 3 after 2 restarts within 600 s")
    assert "line 10\n" in message
    assert "line 9\n" not in message  # the last 20 of 30 lines
    assert len((tmp_path / "starts").read_text().split()) == 3
    pids = [pid_of(event) for event in events.all() if event.kind == "started"]
    assert len(pids) == 5
    assert all(map(is_gone, pids))
    states = {replica.role: replica.state for replica in read_processes(tmp_path)}
    assert states == {"bank": "stopped", "maker": "failed", "trainer": "stopped"}


def test_a_replica_that_waits_for_its_restart_is_not_started_by_a_stop(tmp_path, role):
    patient = RestartPolicy(max_restarts=1, first_delay_s=100.0, max_delay_s=100.0)
    events = Events()
    program = Program((role("trainer", "sys.exit(1)", restarts=patient),))
    with start_program(program, workdir=tmp_path, on_event=events.put) as launched:
        events.next("restarting", "trainer-0")
        launched.stop(exit_code=7)
        assert launched.wait(timeout_s=10).exit_code == 7
        assert [replica.state for replica in launched.replicas] == ["stopped"]


def test_a_role_that_may_not_restart_fails_at_once(tmp_path, role):
    program = Program((role("trainer", "sys.exit(1)", restarts=RestartPolicy(max_restarts=0)),))
    with pytest.raises(LaunchError, match="exit code 1 after 0 restarts"):
        run_program(program, workdir=tmp_path)


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_time(tmp_path, role):
    events = Events()
    program = Program(
        (
            role("bank", IGNORE_SIGTERM, is_service=True),
            role("trainer", "wait_for('ready')"),
        )
    )
    outcome = run_program(program, workdir=tmp_path, on_event=events.put, stop_grace_s=0.05)
    assert outcome.exit_code == 0
    assert events.next("killed", "bank-0").text == "did not stop within 0.05 s: killed"
    assert events.next("ended", "bank-0").text == "ended with signal SIGKILL"


def test_a_stop_at_once_ends_the_grace_time(tmp_path, role, wait_until):
    program = Program((role("trainer", IGNORE_SIGTERM),))
    with start_program(program, workdir=tmp_path, stop_grace_s=1000.0) as launched:
        wait_until((tmp_path / "ready").exists)
        launched.stop(exit_code=5)
        launched.stop(at_once=True)
        assert launched.wait(timeout_s=10).exit_code == 5


def test_workers_that_a_replica_leaves_behind_are_killed(tmp_path, role, is_gone, wait_until):
    fork_worker = """
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
append("worker", str(worker.pid))
"""
    assert run_program(Program((role("trainer", fork_worker),)), workdir=tmp_path).exit_code == 0
    worker = int((tmp_path / "worker").read_text())
    wait_until(lambda: is_gone(worker))


def test_leaving_with_stops_what_runs(tmp_path, role, is_gone):
    program = Program((role("trainer", "signal.pause()"),))
    events = Events()
    with start_program(program, workdir=tmp_path, on_event=events.put) as launched:
        events.next("started", "trainer-0")
        (pid,) = launched.pids()["trainer"]
        assert psutil.pid_exists(pid)
        assert is_launched(tmp_path)
        with pytest.raises(TimeoutError, match="still runs after 0 s"):
            launched.wait(timeout_s=0)
    assert is_gone(pid)
    assert not is_launched(tmp_path)
    assert launched.pids() == {"trainer": []}


def test_processes_json_tells_other_processes_what_runs(tmp_path, role):
    program = Program((role("trainer", "signal.pause()"),))
    events = Events()
    with start_program(program, workdir=tmp_path, on_event=events.put) as launched:
        events.next("started", "trainer-0")
        (replica,) = read_processes(tmp_path)
        assert (replica.name, replica.state, replica.restarts) == ("trainer-0", "running", 0)
        assert [replica.pid] == launched.pids()["trainer"]
    (replica,) = read_processes(tmp_path)
    assert (replica.state, replica.pid) == ("stopped", None)


def test_a_role_gets_its_environment_on_top_of_the_launchers(tmp_path, role, monkeypatch):
    monkeypatch.setenv("CARLS_TEST_OUTER", "outer")
    code = "append('seen', os.environ['CARLS_TEST_OUTER'] + os.environ['CARLS_TEST_INNER'])"
    program = Program((role("trainer", code, environment={"CARLS_TEST_INNER": "-{index}"}),))
    run_program(program, workdir=tmp_path)
    assert (tmp_path / "seen").read_text() == "outer-0\n"


def test_a_broken_pipe_ends_a_role_as_it_would_in_a_shell(tmp_path):
    program = Program((Role("trainer", ("sh", "-c", "yes | head -n 1")),))
    run_program(program, workdir=tmp_path)
    assert (tmp_path / "logs/trainer-0.log").read_text().splitlines()[1:] == ["y"]


def test_a_command_that_cannot_be_found_is_refused_before_anything_starts(tmp_path, role):
    program = Program((role("bank", SERVE, is_service=True), Role("trainer", ("no-such-program",))))
    with pytest.raises(ConfigError, match="'no-such-program', which is not a program"):
        start_program(program, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_launcher_in_the_same_workdir_is_refused(tmp_path, role):
    program = Program((role("trainer", "signal.pause()"),))
    with start_program(program, workdir=tmp_path) as launched:
        with pytest.raises(LaunchError, match="another launcher"):
            start_program(program, workdir=tmp_path)
        assert is_launched(tmp_path)
        with pytest.raises(TimeoutError):
            launched.wait(timeout_s=0)


def test_addresses_of_an_earlier_launch_are_gone(tmp_path, role):
    publish(tmp_path, "bank", "unix:/old")
    run_program(Program((role("trainer", ""),)), workdir=tmp_path)
    with pytest.raises(NotFoundError):
        resolve(tmp_path, "bank", timeout_s=0)


def test_an_error_of_the_callers_own_stops_the_program(tmp_path, role, is_gone):
    pids = []

    def fail(event: LaunchEvent) -> None:
        pids.extend(replica.pid for replica in read_processes(tmp_path) if replica.pid)
        raise RuntimeError("mine")

    program = Program((role("bank", SERVE, is_service=True), role("trainer", "signal.pause()")))
    with pytest.raises(RuntimeError, match="mine"):
        run_program(program, workdir=tmp_path, on_event=fail)
    assert pids
    assert all(map(is_gone, pids))
    assert not is_launched(tmp_path)
