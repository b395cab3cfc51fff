from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change
from carls_jax.bank.frames import SERVICE_NAME
from carls_jax.bank.interface import PROTOCOL_VERSION, Applied, BankStats, SnapshotIdentity
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankClosedError,
    BankIdentityError,
    BankInternalError,
    BankStorageError,
    BankTimeoutError,
    BankUnavailableError,
    InvalidInputError,
    ProtocolMismatchError,
    TableNotFoundError,
)

from .cutting_proxy import CuttingProxy

SPEC = TableSpec("t", fields={"x": Field(())})


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/socket"


Serve = Callable[[LocalBank], BankServer]


@pytest.fixture(params=[0, 8], ids=["grpc", "same_host"])
def serve(request: pytest.FixtureRequest, address: str) -> Serve:
    """Starts a server at the address."""
    return partial(BankServer, address=address, max_same_host_connections=request.param)


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        bank.table(SPEC).update([3], {"x": [0.5]})
        yield bank


def test_a_missing_server_is_told_at_once_with_the_way_out(address: str) -> None:
    with (
        RemoteBank(address, timeout_s=3600) as remote,
        pytest.raises(BankUnavailableError, match=f"at {address} .*`carls-jax bank --root"),
    ):
        remote.stats()


def test_wait_ready_waits_for_a_server(bank: LocalBank, address: str, serve: Serve) -> None:
    with RemoteBank(address) as remote, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(remote.wait_ready, 30.0)
        with serve(bank):
            waiting.result(30)
            assert remote.identity.bank_id == bank.identity.bank_id


def test_wait_ready_gives_up(address: str) -> None:
    with RemoteBank(address) as remote, pytest.raises(BankUnavailableError, match="no bank"):
        remote.wait_ready(0.2)


class Log(logging.Handler):
    """Keeps messages, for a test that waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.put(record.getMessage())


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("carls_jax.bank.remote")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_reads_outlast_a_restart_of_the_server(
    bank: LocalBank, address: str, log: Log, serve: Serve
) -> None:
    with RemoteBank(address, timeout_s=30) as remote, ThreadPoolExecutor(1) as pool:
        with serve(bank):
            table = remote.table("t")
        reading = pool.submit(table.lookup, [3])
        assert "trying again for 30 s" in log.messages.get(timeout=10)
        with serve(bank):
            assert reading.result(30)["x"].tolist() == [0.5]
        assert "answers again" in log.messages.get(timeout=10)
        assert log.messages.empty()


class CountingBank(LocalBank):
    """Counts changes, and holds the next one back while `allowed` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.num_applied = 0
        self.asked = threading.Event()
        self.allowed = threading.Event()
        self.done: queue.Queue[Applied] = queue.Queue()

    def apply(self, change: Change) -> Applied:
        self.num_applied += 1
        self.asked.set()
        assert self.allowed.wait(10)
        applied = super().apply(change)
        self.done.put(applied)
        return applied


def versions(bank: LocalBank) -> list[int]:
    rows = bank.table("t").lookup([1, 2], metadata=["version"])
    return np.asarray(rows.version["x"]).tolist()


def test_a_change_whose_server_is_stopped_is_sent_again_and_applied_once(
    address: str, log: Log, serve: Serve
) -> None:
    with CountingBank() as bank, ThreadPoolExecutor(1) as pool:
        bank.allowed.set()
        bank.table(SPEC)
        with RemoteBank(address) as remote:
            server = serve(bank)
            table = remote.table("t")
            bank.allowed.clear()
            bank.asked.clear()
            writing = pool.submit(table.update, [1, 2], {"x": [1.0, 2.0]})
            assert bank.asked.wait(10)
            server.stop(grace_s=0)
            assert "trying again for 30 s" in log.messages.get(timeout=10)
            bank.allowed.set()
            with serve(bank):
                applied = writing.result(20)
                assert "answers again" in log.messages.get(timeout=10)
            assert log.messages.empty()
        assert applied.num_created == 2
        assert versions(bank) == [1, 1]
        assert (bank.stats().sequence, bank.num_applied) == (2, 3)


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[CuttingProxy, CountingBank]]:
    """Gives a proxy before the server of a bank that has a table."""
    with CountingBank() as bank, BankServer(bank, f"unix:{tmp_path}/behind"):
        bank.allowed.set()
        bank.table(SPEC)
        bank.done.get()
        with CuttingProxy(tmp_path / "before", tmp_path / "behind") as proxy:
            yield proxy, bank


def test_a_change_whose_answer_is_cut_off_is_answered_again_and_applied_once(
    proxied: tuple[CuttingProxy, CountingBank],
) -> None:
    proxy, bank = proxied
    with RemoteBank(proxy.address) as remote, ThreadPoolExecutor(1) as pool:
        table = remote.table("t")
        for number in range(1, 4):
            proxy.hold_answers()
            writing = pool.submit(table.update, [1, 2], {"x": [1.0, 2.0]})
            applied = bank.done.get(timeout=10)
            before = proxy.num_connections
            proxy.cut()
            answer = writing.result(20)
            assert proxy.num_connections > before
            assert bank.done.get(timeout=10).is_repeated
            assert (answer.is_repeated, answer.sequence) == (True, applied.sequence)
            assert answer.num_created == (2 if number == 1 else 0)
            assert versions(bank) == [number, number]


def test_a_try_has_a_deadline_of_its_own(proxied: tuple[CuttingProxy, CountingBank]) -> None:
    proxy, bank = proxied
    with (
        RemoteBank(proxy.address, try_timeout_s=0.2) as remote,
        ThreadPoolExecutor(1) as pool,
    ):
        table = remote.table("t")
        proxy.hold_answers()
        writing = pool.submit(table.update, [1, 2], {"x": [1.0, 2.0]})
        assert not bank.done.get(timeout=10).is_repeated
        assert bank.done.get(timeout=10).is_repeated  # the try after the first
        proxy.let_answers_through()
        assert writing.result(20).sequence == 2
    assert versions(bank) == [1, 1]


def test_a_change_that_was_not_answered_is_resumed(
    proxied: tuple[CuttingProxy, CountingBank],
) -> None:
    proxy, bank = proxied
    values = np.array([1.0, 2.0], np.float32)
    with RemoteBank(proxy.address, timeout_s=0.6) as remote:
        table = remote.table("t")
        proxy.hold_answers()
        with pytest.raises(BankTimeoutError, match=r"did not answer within 0\.6 s") as caught:
            table.update([1, 2], {"x": values})
        proxy.cut()
        values[:] = 9
        bank.done.get(timeout=10)
        remote.wait_ready()
        assert remote.resume(caught.value).sequence == 2
        assert remote.resume(caught.value).is_repeated
        assert bank.table("t").lookup([1, 2])["x"].tolist() == [1.0, 2.0]
        assert versions(bank) == [1, 1]
        with pytest.raises(InvalidInputError, match="nothing is left of it to resume"):
            remote.resume(BankTimeoutError("another"))


def test_a_change_that_is_refused_is_not_sent_again(
    proxied: tuple[CuttingProxy, CountingBank],
) -> None:
    proxy, bank = proxied
    with RemoteBank(proxy.address) as remote:
        with pytest.raises(TableNotFoundError) as caught:
            remote.apply(changes.delete("nowhere", np.array([1]), by=changes.author()))
        assert bank.num_applied == 2
        with pytest.raises(InvalidInputError, match="refused whole"):
            remote.resume(caught.value)


def test_each_client_numbers_its_changes(address: str, serve: Serve) -> None:
    class Watching(LocalBank):
        seen: ClassVar[list[tuple[str, int]]] = []

        def apply(self, change: Change) -> Applied:
            self.seen.append((change.header.client, change.header.number))
            return super().apply(change)

    with Watching() as bank, serve(bank), RemoteBank(address) as one, RemoteBank(address) as two:
        own = changes.advance(by=changes.author(step=1))
        for remote in (one, one, two):
            remote.apply(own)
        assert not own.header.client
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: one.advance(2), range(20)))
    (first, _), (_, _), (second, _), *others = bank.seen
    assert bank.seen[:3] == [(first, 1), (first, 2), (second, 1)]
    assert sorted(others) == [(first, number) for number in range(3, 23)]
    assert len({first, second}) == 2


def test_a_snapshot_whose_answer_is_cut_off_is_taken_once(tmp_path: Path) -> None:
    taken = queue.Queue[str]()

    class Watching(LocalBank):
        def snapshot(self, label: str, **options: Any) -> SnapshotIdentity:
            identity = super().snapshot(label, **options)
            taken.put(identity.uuid)
            return identity

    with (
        Watching(tmp_path / "root") as bank,
        BankServer(bank, f"unix:{tmp_path}/behind"),
        CuttingProxy(tmp_path / "before", tmp_path / "behind") as proxy,
        RemoteBank(proxy.address) as remote,
        ThreadPoolExecutor(1) as pool,
    ):
        remote.wait_ready()
        proxy.hold_answers()
        taking = pool.submit(remote.snapshot, "s")
        uuid = taken.get(timeout=20)
        proxy.cut()
        assert taking.result(20).uuid == uuid
        assert [one.uuid for one in bank.snapshots()] == [uuid]


def test_a_restore_is_sent_once(tmp_path: Path) -> None:
    restored = queue.Queue[str]()

    class Watching(LocalBank):
        def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
            identity = super().restore(snapshot)
            restored.put(identity.uuid)
            return identity

    with (
        Watching(tmp_path / "root") as bank,
        BankServer(bank, f"unix:{tmp_path}/behind"),
        CuttingProxy(tmp_path / "before", tmp_path / "behind") as proxy,
        RemoteBank(proxy.address) as remote,
        ThreadPoolExecutor(1) as pool,
    ):
        remote.snapshot("s")
        proxy.hold_answers()
        restoring = pool.submit(remote.restore, "s")
        restored.get(timeout=20)
        proxy.cut()
        with pytest.raises(BankUnavailableError):
            restoring.result(20)
        assert restored.empty()
        assert remote.stats().sequence == bank.stats().sequence


def test_a_call_has_a_deadline(address: str, serve: Serve) -> None:
    with CountingBank() as bank, serve(bank):
        with (
            RemoteBank(address, timeout_s=0.2) as remote,
            pytest.raises(BankTimeoutError, match=r"did not answer within 0\.2 s"),
        ):
            remote.advance(1)
        bank.allowed.set()


def test_close_ends_a_call_under_way(address: str, serve: Serve) -> None:
    with CountingBank() as bank, serve(bank), ThreadPoolExecutor(1) as pool:
        remote = RemoteBank(address)
        writing = pool.submit(remote.advance, 1)
        assert bank.asked.wait(10)
        remote.close()
        with pytest.raises(BankClosedError, match="during the call"):
            writing.result(10)
        bank.allowed.set()


def test_the_bank_that_was_meant_must_answer(bank: LocalBank, address: str, serve: Serve) -> None:
    with serve(bank):
        with RemoteBank(address, bank_id=bank.identity.bank_id) as remote:
            assert remote.identity == bank.identity
        with RemoteBank(address, bank_id="abc") as remote:
            with pytest.raises(BankIdentityError, match="bank abc was meant"):
                remote.stats()
            with pytest.raises(BankIdentityError, match="bank abc was meant"):
                remote.wait_ready()


def test_another_bank_at_the_address_is_refused(
    bank: LocalBank, address: str, serve: Serve
) -> None:
    with RemoteBank(address) as remote:
        with serve(bank):
            remote.stats()
        with (
            LocalBank() as other,
            serve(other),
            pytest.raises(BankIdentityError, match=f"bank {bank.identity.bank_id} was meant"),
        ):
            remote.stats()


def test_one_shard_is_not_taken_for_a_bank(address: str, serve: Serve) -> None:
    with (
        LocalBank(shard_index=1, num_shards=3) as shard,
        serve(shard),
        RemoteBank(address) as remote,
        pytest.raises(BankIdentityError, match="shard 1 of a bank that has 3, and 1 were expected"),
    ):
        remote.stats()


def test_replies_tell_a_new_incarnation(tmp_path: Path, address: str, serve: Serve) -> None:
    with LocalBank(tmp_path / "root") as bank, serve(bank):
        bank.snapshot("s")
        with RemoteBank(address) as remote:
            before = remote.identity
            bank.restore("s")
            remote.stats()
            assert remote.identity.incarnation == bank.identity.incarnation
            assert remote.identity.incarnation != before.incarnation


class Stranger:
    """Answers every call with one reply."""

    def __init__(self) -> None:
        self.reply = pb.Reply()

    def answer(self, frame: pb.RequestFrame, context: grpc.ServicerContext) -> pb.ReplyFrame:
        return pb.ReplyFrame(reply=self.reply)


@pytest.fixture
def stranger(address: str) -> Iterator[Stranger]:
    stranger = Stranger()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        stranger.answer, pb.RequestFrame.FromString, pb.ReplyFrame.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Call": handler}),)
    )
    server.add_insecure_port(address)
    server.start()
    yield stranger
    server.stop(0).wait()


def test_a_server_of_another_version_is_refused(stranger: Stranger, address: str) -> None:
    identity = pb.Identity(protocol_version=PROTOCOL_VERSION + 1, num_shards=1)
    stranger.reply = pb.Reply(identity=identity)

    with (
        RemoteBank(address) as remote,
        pytest.raises(ProtocolMismatchError, match="same carls-jax on both sides"),
    ):
        remote.stats()


def test_a_malformed_reply_is_the_servers_defect(stranger: Stranger, address: str) -> None:
    stranger.reply.arrays.append(pb.ArrayHeader(name="x", dtype="object", shape=[1]))

    with (
        RemoteBank(address) as remote,
        pytest.raises(BankInternalError, match="reply is malformed: array 'x' has dtype"),
    ):
        remote.stats()


def test_a_bank_does_not_survive_a_fork(bank: LocalBank, address: str, serve: Serve) -> None:
    with serve(bank), RemoteBank(address) as remote:
        remote.stats()
        child = os.fork()
        if child == 0:
            # Nothing of pytest may run in the child, whatever happens.
            try:
                remote.stats()
            except BankClosedError as error:
                os._exit(0 if "connect in each process" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert remote.stats().tables


def test_small_and_large_lookups_answer_alike(bank: LocalBank, address: str, serve: Serve) -> None:
    keys = np.arange(400_000)
    with serve(bank), RemoteBank(address) as remote:
        table = remote.table("t")
        table.load(keys, {"x": keys})
        for num_keys in (1, 400_000, 1, 400_000, 10):
            rows = table.lookup(keys[:num_keys])
            np.testing.assert_array_equal(rows["x"], keys[:num_keys].astype(np.float32))


def test_stats_are_the_banks(bank: LocalBank, address: str, serve: Serve) -> None:
    with serve(bank), RemoteBank(address) as remote:
        stats: BankStats = remote.stats()
        assert stats == bank.stats()


def test_that_the_server_is_away_is_told_once_for_all_calls(
    bank: LocalBank, address: str, log: Log, serve: Serve
) -> None:
    with RemoteBank(address, timeout_s=30) as remote, ThreadPoolExecutor(4) as pool:
        with serve(bank):
            table = remote.table("t")
        calls = [pool.submit(table.lookup, [3]) for _ in range(2)]
        calls += [pool.submit(table.update, [3], {"x": [1.0]}) for _ in range(2)]
        assert "trying again for 30 s" in log.messages.get(timeout=10)
        with serve(bank):
            for one in calls:
                one.result(30)
        assert "answers again" in log.messages.get(timeout=10)
        assert log.messages.empty()


def test_a_change_that_the_disk_refused_is_resumed_as_itself(
    proxied: tuple[CuttingProxy, CountingBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For nobody knows whether it is there when the server is started again."""
    proxy, bank = proxied
    shard = bank._open()
    with RemoteBank(proxy.address) as remote:

        def fail(_: int) -> None:
            raise BankStorageError("a sync failed")

        monkeypatch.setattr(shard._log, "wait", fail)
        with pytest.raises(BankStorageError) as caught:
            remote.advance(1)
        monkeypatch.undo()
        assert remote.resume(caught.value).is_repeated
