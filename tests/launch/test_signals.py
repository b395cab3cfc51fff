"""What happens to the replicas when the launcher itself is told to end, or is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from carls_jax.launch import is_launched, read_processes

LAUNCHER = """
import sys
from carls_jax.launch import Program, Role, open_screen, run_program

workdir = sys.argv[1]
child = '''
import pathlib, signal, subprocess, sys
if sys.argv[2] == "bank":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
draft = pathlib.Path(sys.argv[1], sys.argv[2] + ".draft")
draft.write_text(str(worker.pid))
draft.rename(draft.with_suffix(".worker"))
while True:
    signal.pause()
'''
argv = (sys.executable, "-I", "-S", "-c", child, workdir)
program = Program(
    (Role("trainer", (*argv, "trainer")), Role("bank", (*argv, "bank"), is_service=True))
)
outcome = run_program(
    program, workdir=workdir, screen=open_screen(workdir), stop_grace_s=float(sys.argv[2])
)
sys.exit(outcome.exit_code)
"""


@pytest.fixture
def launch(tmp_path, wait_until):
    """Returns a function that starts a launcher; its bank ignores SIGTERM."""
    launchers = []

    def start(*, stop_grace_s: float) -> tuple[subprocess.Popen, list[int]]:
        launcher = subprocess.Popen(
            (sys.executable, "-c", LAUNCHER, str(tmp_path), str(stop_grace_s)),
            stderr=subprocess.PIPE,
            text=True,
        )
        launchers.append(launcher)
        wait_until(lambda: len(list(tmp_path.glob("*.worker"))) == 2)
        workers = [int(path.read_text()) for path in tmp_path.glob("*.worker")]
        replicas = [replica.pid for replica in read_processes(tmp_path)]
        assert is_launched(tmp_path)
        return launcher, [*workers, *replicas]

    yield start
    for launcher in launchers:
        launcher.kill()
        launcher.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_and_gives_its_exit_code(tmp_path, launch, is_gone, wait_until, number):
    launcher, pids = launch(stop_grace_s=0.1)
    launcher.send_signal(number)
    _, shown = launcher.communicate(timeout=10)
    assert launcher.returncode == 128 + number
    assert "Traceback" not in shown
    assert "bank-0  did not stop within 0.1 s: killed" in shown
    wait_until(lambda: all(map(is_gone, pids)))
    assert not is_launched(tmp_path)


def test_a_second_signal_ends_the_grace_time(launch, is_gone, wait_until):
    launcher, pids = launch(stop_grace_s=1000.0)
    launcher.send_signal(signal.SIGINT)
    for line in launcher.stderr:
        if "bank-0  is asked to stop" in line:
            break
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=10)
    assert launcher.returncode == 130
    wait_until(lambda: all(map(is_gone, pids)))


def test_a_killed_launcher_leaves_no_process(tmp_path, launch, is_gone, wait_until):
    launcher, pids = launch(stop_grace_s=10.0)
    launcher.kill()
    launcher.communicate(timeout=10)
    wait_until(lambda: all(map(is_gone, pids)))
    assert not is_launched(tmp_path)
