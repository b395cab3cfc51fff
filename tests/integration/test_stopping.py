"""A bank's server that is told to stop: it ends in time, and loses nothing."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD
from carls_jax.bank.interface import PROTOCOL_VERSION
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankUnavailableError

# What `carls-jax bank` promises.
STOP_S = 10.0
SPEC = TableSpec("t", {"x": Field((4,), optimizer=optimizer("sgd", learning_rate=1.0))})
KEYS = np.arange(50)
JOURNALS = pytest.mark.parametrize("journal", ["process", "off"])


@contextmanager
def serving(directory: Path, journal: str = "process") -> Iterator[subprocess.Popen[str]]:
    """Runs a server until the block ends."""
    command = [sys.executable, "-m", "carls_jax.cli", "bank", "--root", str(directory / "root")]
    command += ["--address", f"unix:{directory}/s", "--journal", journal]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "connect with" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """Tells a server to stop, and returns its exit code."""
    process.send_signal(number)
    return process.wait(STOP_S)


def labels(directory: Path) -> list[str]:
    with LocalBank(directory / "root") as bank:
        return [one.label for one in bank.snapshots()]


def wait_until_away(address: str) -> None:
    """Connects again and again until nobody answers."""
    with suppress(BankUnavailableError):
        while True:
            with RemoteBank(address) as bank:
                bank.stats()


class Pushing:
    """Pushes 1 to the same rows from a thread of its own, and counts what was acknowledged."""

    def __init__(self, bank: RemoteBank, key: int) -> None:
        self.num_acknowledged = 0
        self.going = threading.Event()
        self.stop = threading.Event()
        self._bank, self._keys = bank, KEYS + key * KEYS.size

    def run(self) -> int:
        table = self._bank.table(SPEC)
        gradients = {"x": np.full((KEYS.size, 4), -1.0)}
        while not self.stop.is_set():
            table.push(self._keys, gradients, create=True)
            self.num_acknowledged += 1
            self.going.set()
        return self.num_acknowledged

    def check(self) -> None:
        rows = self._bank.table("t").lookup(self._keys)
        np.testing.assert_array_equal(rows["x"], np.full((KEYS.size, 4), self.num_acknowledged))


@contextmanager
def idle_streams(address: str) -> Iterator[list[grpc.Call]]:
    """Opens calls whose clients send nothing, or stop in the middle, and one that only listens."""
    request = pb.Request(
        protocol_version=PROTOCOL_VERSION,
        lookup=pb.Lookup(table="t", fields=["x"]),
        arrays=[pb.ArrayHeader(name="keys", dtype="int64", shape=[8])],
    )
    frames = queue.Queue[pb.RequestFrame | None]()
    half = queue.Queue[pb.RequestFrame | None]()
    half.put(pb.RequestFrame(request=request))
    with grpc.insecure_channel(address) as channel:
        calls: list[Any] = [
            channel.stream_stream(
                method, pb.RequestFrame.SerializeToString, pb.ReplyFrame.FromString
            )(iter(one.get, None))
            for method in (CALL_METHOD, STREAM_METHOD)
            for one in (frames, half)
        ]
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        yield [*calls, watching]
        for _ in calls:
            frames.put(None)
            half.put(None)


@JOURNALS
def test_under_load_and_with_idle_streams_it_ends_in_time_and_loses_nothing(
    tmp_path: Path, journal: str
) -> None:
    address = f"unix:{tmp_path}/s"
    with RemoteBank(address, timeout_s=60) as one, RemoteBank(address, timeout_s=60) as two:
        load = [Pushing(one, 0), Pushing(one, 1), Pushing(two, 2), Pushing(two, 3)]
        with ThreadPoolExecutor(4) as pool:
            with serving(tmp_path, journal) as process:
                one.wait_ready()
                working = [pool.submit(pushing.run) for pushing in load]
                with idle_streams(address):
                    assert all(pushing.going.wait(30) for pushing in load)
                    assert stopped(process) == 0
            assert not (tmp_path / "s").exists()
            assert not (tmp_path / "s.same-host").exists()
            assert labels(tmp_path) == ["automatic"]
            with serving(tmp_path, journal):
                for pushing in load:
                    pushing.going.clear()
                    assert pushing.going.wait(30)  # each goes on by itself
                    pushing.stop.set()
                for done in working:
                    done.result(30)
                for pushing in load:
                    pushing.check()


def test_a_snapshot_is_taken_only_if_something_changed(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with RemoteBank(address) as bank:
        with serving(tmp_path) as process:
            bank.wait_ready()
            assert stopped(process) == 0
        assert labels(tmp_path) == []
        with serving(tmp_path) as process:
            bank.table(SPEC)
            bank.snapshot("mine")
            assert stopped(process) == 0
        assert labels(tmp_path) == ["mine"]
        with serving(tmp_path) as process:
            bank.advance(3)
            assert stopped(process, signal.SIGINT) == 0
        assert labels(tmp_path) == ["mine", "automatic"]
        with serving(tmp_path) as process:
            assert bank.stats().clocks == {"main": 3}
            assert stopped(process) == 0
        assert labels(tmp_path) == ["mine", "automatic"]


def test_new_calls_find_no_server_while_one_under_way_is_finished(tmp_path: Path) -> None:
    address, num_rows = f"unix:{tmp_path}/s", 500_000
    keys = np.arange(num_rows)
    request = pb.Request(
        protocol_version=PROTOCOL_VERSION,
        lookup=pb.Lookup(table="t", fields=["x"]),
        arrays=[pb.ArrayHeader(name="keys", dtype="int64", shape=[num_rows])],
    )
    with serving(tmp_path) as process, grpc.insecure_channel(address) as channel:
        with RemoteBank(address) as bank:
            bank.wait_ready()
            bank.table(SPEC).update(keys[:1], {"x": np.ones((1, 4))})
        frames = [pb.RequestFrame(request=request), pb.RequestFrame(data=keys.tobytes())]
        call = channel.stream_stream(
            STREAM_METHOD, pb.RequestFrame.SerializeToString, pb.ReplyFrame.FromString
        )(iter(frames), timeout=20)
        num_bytes = len(next(call).data)  # of 8 MB and more, so the server waits for its client
        process.send_signal(signal.SIGTERM)
        wait_until_away(address)
        num_bytes += sum(len(frame.data) for frame in call)
        assert num_bytes > num_rows * 16
        assert process.wait(STOP_S) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with serving(tmp_path) as process, RemoteBank(address) as bank:
        bank.wait_ready()
        bank.table(SPEC)
        with idle_streams(address):  # for which it would wait
            process.send_signal(signal.SIGTERM)
            wait_until_away(address)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_S) == -signal.SIGTERM
    assert labels(tmp_path) == []
