"""One slow call holds no other: reads and writes of other tables go on."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from carls_jax.bank import altering, reading
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD
from carls_jax.bank.interface import PROTOCOL_VERSION, Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import DEFAULT_WORKERS, BankServer
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.bank.specs import Field, TableSpec

FIELD = Field((2,), optimizer=optimizer("sgd", learning_rate=1.0))
SLOW, OTHER = (TableSpec(name, {"x": FIELD}) for name in ("slow", "other"))
WIDER = TableSpec("slow", {"x": FIELD, "y": Field(())})
KEYS = np.arange(10)


class Gate:
    """Stops whoever comes to it until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def before(self, function: Callable[..., Any], *, on: str = "") -> Callable[..., Any]:
        """Returns a function with the gate before it, where an argument is the table `on`."""

        def gated(*args: Any, **kwargs: Any) -> Any:
            if not on or any(getattr(getattr(one, "spec", None), "name", "") == on for one in args):
                self.reached.set()
                assert self.open.wait(30)
            return function(*args, **kwargs)

        return gated


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture(params=["same_host", "grpc"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteBank]:
    options = {} if request.param == "same_host" else {"max_same_host_connections": 0}
    with (
        LocalBank(tmp_path / "root") as bank,
        BankServer(bank, f"unix:{tmp_path}/s", **options) as server,
        RemoteBank(server.address, timeout_s=20) as client,
    ):
        for spec in (SLOW, OTHER):
            client.table(spec).update(KEYS, {"x": np.ones((10, 2))})
        client.snapshot("s")
        yield client


def use(client: Bank) -> None:
    """Reads and writes another table than the slow one, in each way that there is."""
    table = client.table("other")
    before = table.lookup([3])["x"]
    table.push([3], {"x": np.ones((1, 2))})
    table.update([4], {"x": np.ones((1, 2))})
    table.update([99], {"x": np.ones((1, 2))})
    table.delete([99])
    np.testing.assert_array_equal(table.lookup([3], metadata=["source"])["x"], before - 1)
    assert len(table.to_numpy()["keys"]) == 10


@contextmanager
def under_way(gate: Gate, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Makes a call that the gate stops, and lets it end after the block."""
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(call)
        try:
            assert gate.reached.wait(20)
            yield slow
            assert not slow.done()
        finally:
            gate.open.set()
        slow.result(20)


def test_a_long_scan_holds_nobody(
    client: RemoteBank, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "scan", gate.before(reading.scan, on="slow"))
    with under_way(gate, client.table("slow").to_numpy):
        use(client)


def test_a_long_snapshot_holds_nobody(
    client: RemoteBank, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SnapshotStore, "write", gate.before(SnapshotStore.write))
    with under_way(gate, lambda: client.snapshot("another")):
        use(client)
        client.table("slow").push([3], {"x": np.ones((1, 2))})


def test_a_restore_that_reads_for_long_holds_nobody(
    client: RemoteBank, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SnapshotStore, "read", gate.before(SnapshotStore.read))
    with under_way(gate, lambda: client.restore("s")):
        use(client)


def test_a_long_alter_holds_only_writers_of_its_table(
    client: RemoteBank, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altering, "prepare", gate.before(altering.prepare, on="slow"))
    with under_way(gate, lambda: client.alter(WIDER)):
        use(client)
        assert client.table("slow").lookup(KEYS).found.all()


def test_a_snapshot_that_waits_for_a_long_alter_holds_nobody(
    client: RemoteBank, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altering, "prepare", gate.before(altering.prepare, on="slow"))
    with ThreadPoolExecutor(1) as pool:
        with under_way(gate, lambda: client.alter(WIDER)):
            taking = pool.submit(client.snapshot, "another")
            for _ in range(20):
                use(client)
            assert not taking.done()
        assert taking.result(20).label == "another"


def test_clients_that_begin_calls_and_say_no_more_hold_nobody(client: RemoteBank) -> None:
    """They leave one of the server's threads."""
    lookup = pb.Lookup(table="slow", fields=["x"])
    header = pb.ArrayHeader(name="keys", dtype="int64", shape=[8])
    request = pb.Request(protocol_version=PROTOCOL_VERSION, lookup=lookup, arrays=[header])
    ends, half = queue.Queue[pb.RequestFrame | None](), queue.Queue[pb.RequestFrame | None]()
    half.put(pb.RequestFrame(request=request))
    kinds = [(CALL_METHOD, ends), (STREAM_METHOD, ends), (STREAM_METHOD, half)]
    with grpc.insecure_channel(str(client._address)) as channel:
        calls = [
            channel.stream_stream(
                method, pb.RequestFrame.SerializeToString, pb.ReplyFrame.FromString
            )(iter(frames.get, None))
            for method, frames in itertools.islice(itertools.cycle(kinds), DEFAULT_WORKERS - 1)
        ]
        use(client)
        assert not any(call.done() for call in calls)
        for _ in calls:
            ends.put(None)
            half.put(None)
