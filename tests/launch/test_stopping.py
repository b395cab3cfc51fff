"""What a process does when it is told to stop; servers under load are in `tests/integration`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import carls_jax as carls
from carls_jax.launch.stopping import stopped_by_signals

# A server whose snapshots never end, and which has two seconds in place of ten.
STUCK = """
import sys, threading
from pathlib import Path
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.launch import stopping
from carls_jax.launch.serving import ServerConfig, run_bank

stopping.STOP_S = 2.0
SnapshotStore.write = lambda *_, **__: threading.Event().wait()
root = Path(sys.argv[1])
run_bank(ServerConfig(root, f"unix:{root}/s", journal=sys.argv[2]))
"""
# A process that the signal finds stuck in machine code, which no handler interrupts.
DEAF = """
import ctypes
from carls_jax.launch.stopping import stopped_by_signals

with stopped_by_signals(within_s=0.2) as stop:
    print("ready", flush=True)
    stop.wait()
    while True:
        ctypes.PyDLL(None).pause()
"""
SPEC = carls.TableSpec("t", {"x": carls.Field()})


def test_signals_set_an_event_and_get_their_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals() as stop:
        assert not stop.is_set()
        assert not stop.wait(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        assert stop.wait()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # once more ends the process
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("journal", "exit_code"), [("process", 0), ("off", 1)])
def test_a_snapshot_that_does_not_end_is_given_up(tmp_path, journal, exit_code):
    root = tmp_path / "root"
    command = [sys.executable, "-c", STUCK, str(root), journal]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert "connect with" in server.stdout.readline()
            with carls.connect(f"unix:{root}/s") as bank:
                bank.table(SPEC).update([1], {"x": [5]})
            server.terminate()
            _, told = server.communicate(timeout=10)
        finally:
            server.kill()
    assert server.returncode == exit_code
    assert ("the journal holds all changes" if journal == "process" else "are lost") in told
    with carls.connect(f"local:{root}") as bank:
        assert bank.tables().keys() == ({"t"} if journal == "process" else set())
        assert bank.snapshots() == []


def test_a_process_that_is_stuck_is_ended_by_the_system():
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            assert process.wait(10) == -signal.SIGALRM
        finally:
            process.kill()
