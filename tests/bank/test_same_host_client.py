from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.address import Address, parse_address
from carls_jax.bank.changes import Change
from carls_jax.bank.connect import connect
from carls_jax.bank.interface import PROTOCOL_VERSION, Applied, Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.same_host_client import SameHostTransport, open_transport
from carls_jax.bank.same_host_connection import MAX_MESSAGE_BYTES, SEGMENT_BYTES, Kind
from carls_jax.bank.same_host_handshake import new_socket, welcome
from carls_jax.bank.same_host_server import SameHostServer
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.staging import Staging
from carls_jax.bank.transport import Answer, GrpcTransport
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    BankClosedError,
    BankInternalError,
    BankTimeoutError,
    BankUnavailableError,
    TableNotFoundError,
)

SPEC = TableSpec("t", fields={"x": Field(())})


class OtherTransport:
    """Stands for gRPC: answers every request by saying that it was asked."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.is_closed = False

    def call(
        self,
        request: pb.Request,
        arrays: Arrays,
        *,
        timeout_s: float,
        expected_bytes: int | None = None,
    ) -> Answer:
        assert 0 < timeout_s <= 20
        if self.is_closed:
            raise BankClosedError("closed")
        self.num_calls += 1
        return pb.Reply(incarnation="other"), {}

    def close(self) -> None:
        self.is_closed = True


class SlowBank(LocalBank):
    """Applies the changes of clock "slow" when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)
        self.allowed = threading.Event()
        self.num_applied = 0

    def apply(self, change: Change) -> Applied:
        self.num_applied += 1
        if change.header.author.clock == "slow":
            self.asked.release()
            assert self.allowed.wait(20)
        return super().apply(change)


@pytest.fixture
def bank() -> Iterator[SlowBank]:
    with SlowBank() as bank:
        bank.table(SPEC).update(range(10), {"x": np.arange(10.0)})
        bank.num_applied = 0
        yield bank


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return parse_address(f"unix:{tmp_path}/s")


@contextmanager
def served(bank: Bank, address: Address, *, max_connections: int = 8) -> Iterator[SameHostServer]:
    staging = Staging(bank, max_bytes=100 << 20)
    server = SameHostServer(staging, address.same_host_path, max_connections=max_connections)
    try:
        yield server
    finally:
        server.turn_away()
        server.wait(10)


@pytest.fixture
def other() -> OtherTransport:
    return OtherTransport()


@pytest.fixture
def transport(address: Address, other: OtherTransport) -> Iterator[SameHostTransport]:
    transport = SameHostTransport(address, otherwise=other)
    yield transport
    transport.close()
    assert other.is_closed


def advance(step: int, *, clock: str = "main") -> pb.Request:
    by = pb.Author(step=step, clock=clock)
    return pb.Request(
        protocol_version=PROTOCOL_VERSION, change=pb.Change(author=by, advance=pb.Advance())
    )


def lookup(table: str = "t") -> pb.Request:
    call = pb.Lookup(table=table, fields=["x"])
    return pb.Request(protocol_version=PROTOCOL_VERSION, lookup=call)


def values(transport: SameHostTransport, keys: list[int]) -> list[float]:
    _, arrays = transport.call(lookup(), {"keys": np.array(keys)}, timeout_s=20)
    return list(arrays["value/x"].tolist())


def test_requests_go_through_shared_memory(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with served(bank, address) as server:
        for keys in ([3], [], [9, 3, 3, 0]):
            if keys:
                assert values(transport, keys) == keys
        assert server.num_connections == 1
    assert other.num_calls == 0


def test_answers_are_the_callers_own(
    bank: SlowBank, address: Address, transport: SameHostTransport
) -> None:
    with served(bank, address):
        _, first = transport.call(lookup(), {"keys": np.array([3, 4])}, timeout_s=20)
        kept = {name: array.copy() for name, array in first.items()}
        values(transport, [7, 8])
        for name, array in first.items():
            assert_array_equal(array, kept[name])
            assert array.flags.writeable


def test_large_requests_and_answers_pass_in_parts(bank: SlowBank, address: Address) -> None:
    keys = np.arange(2 * SEGMENT_BYTES // 8)
    rng = np.random.default_rng(0)
    with served(bank, address), connect(str(address)) as client:
        table = client.table(SPEC)
        for num_rows in (1, keys.size, keys.size // 8, 7):
            written = rng.standard_normal(num_rows, np.float32)
            table.update(keys[:num_rows], {"x": written})
            assert_array_equal(table.lookup(keys[:num_rows])["x"], written)
            assert_array_equal(bank.table("t").lookup(keys[:num_rows])["x"], written)


def test_threads_have_a_connection_each(bank: SlowBank, address: Address) -> None:
    """And one more, by which the table's memory is shared."""
    num_threads, num_rounds = 6, 30
    with (
        served(bank, address) as server,
        connect(str(address)) as client,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        table = client.table(SPEC)

        def work(number: int) -> None:
            keys = np.arange(1000 * number, 1000 * number + 999)
            for step in range(num_rounds):
                table.update(keys, {"x": keys + step})
                for metadata in ((), ("source",)):  # read here, and by the server
                    rows = table.lookup(keys, metadata=metadata)
                    assert_array_equal(rows["x"], (keys + step).astype(np.float32))

        list(pool.map(work, range(num_threads)))
        assert 2 <= server.num_connections <= num_threads + 1


def test_an_error_arrives_as_it_was_raised_and_the_connection_stays(
    bank: SlowBank, address: Address, transport: SameHostTransport
) -> None:
    with served(bank, address) as server:
        for _ in range(3):
            with pytest.raises(TableNotFoundError, match="no table 'none'; this bank has t"):
                transport.call(lookup("none"), {"keys": np.array([1])}, timeout_s=20)
        assert values(transport, [5]) == [5.0]
        assert server.num_connections == 1


def test_a_late_answer_is_not_taken_for_another_calls(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with served(bank, address) as server:
        with pytest.raises(BankTimeoutError, match=r"s did not answer within 0\.05 s"):
            transport.call(advance(1, clock="slow"), {}, timeout_s=0.05)
        assert bank.asked.acquire(timeout=10)
        assert values(transport, [1, 2]) == [1.0, 2.0]
        assert server.num_connections == 2  # the first still waits for its call to end
        bank.allowed.set()
        assert values(transport, [3]) == [3.0]
    assert other.num_calls == 0


def test_without_a_server_requests_go_the_other_way(
    transport: SameHostTransport, other: OtherTransport
) -> None:
    reply, _ = transport.call(lookup(), {"keys": np.array([1])}, timeout_s=20)

    assert reply.incarnation == "other"
    assert other.num_calls == 1


def test_who_is_turned_away_goes_the_other_way(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with (
        served(bank, address, max_connections=1),
        connect(str(address)) as first,
    ):
        assert first.stats().tables
        for num_calls in (1, 2):
            transport.call(lookup(), {"keys": np.array([1])}, timeout_s=20)
            assert other.num_calls == num_calls


def test_who_finds_a_stranger_goes_the_other_way(
    address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.bind(address.same_host_path)
        stranger.listen()
        transport.call(lookup(), {"keys": np.array([1])}, timeout_s=20)
    assert other.num_calls == 1


def test_a_message_too_long_goes_the_other_way(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with served(bank, address):
        transport.call(lookup("t" * MAX_MESSAGE_BYTES), {}, timeout_s=20)
        assert other.num_calls == 1
        assert values(transport, [1]) == [1.0]


def test_a_stopped_servers_connections_are_left_without_a_loss(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with served(bank, address):
        transport.call(advance(1), {}, timeout_s=20)
    transport.call(advance(2), {}, timeout_s=20)
    assert (bank.num_applied, other.num_calls) == (1, 1)


def test_a_write_is_applied_once_by_a_server_that_came_back(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with served(bank, address):
        transport.call(advance(1), {}, timeout_s=20)
    with served(bank, address):
        transport.call(advance(2), {}, timeout_s=20)
    assert (bank.num_applied, other.num_calls) == (2, 0)


def test_a_server_that_goes_during_a_call_may_have_done_it(
    bank: SlowBank, address: Address, transport: SameHostTransport, other: OtherTransport
) -> None:
    with served(bank, address) as server, ThreadPoolExecutor(1) as pool:
        calling = pool.submit(transport.call, advance(1, clock="slow"), {}, timeout_s=20)
        assert bank.asked.acquire(timeout=10)
        server.turn_away()
        server.wait(0)
        with pytest.raises(BankUnavailableError, match="which it may have done or not"):
            calling.result(10)
        bank.allowed.set()
    assert other.num_calls == 0


def test_close_ends_calls_under_way(
    bank: SlowBank, address: Address, transport: SameHostTransport
) -> None:
    with served(bank, address) as server, ThreadPoolExecutor(2) as pool:
        calling = [
            pool.submit(transport.call, advance(step, clock="slow"), {}, timeout_s=20)
            for step in (1, 2)
        ]
        for _ in calling:
            assert bank.asked.acquire(timeout=10)
        transport.close()
        for one in calling:
            with pytest.raises(BankClosedError, match="closed during the call"):
                one.result(10)
        with pytest.raises(BankClosedError):
            transport.call(advance(3), {}, timeout_s=20)
        bank.allowed.set()
        deadline = time.monotonic() + 10
        while server.num_connections:
            assert time.monotonic() < deadline


def test_a_forked_process_is_refused_and_harms_nothing(
    bank: SlowBank, address: Address, transport: SameHostTransport
) -> None:
    with served(bank, address), ThreadPoolExecutor(1) as pool:
        calling = pool.submit(transport.call, advance(1, clock="slow"), {}, timeout_s=20)
        assert bank.asked.acquire(timeout=10)
        child = os.fork()
        if child == 0:
            # Nothing of pytest may run in the child, whatever happens.
            try:
                transport.close()
                transport.call(lookup(), {"keys": np.array([1])}, timeout_s=20)
            except BankClosedError as error:
                os._exit(0 if "connect in each process" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        bank.allowed.set()
        assert calling.result(10)[0].WhichOneof("answer") == "applied"


@contextmanager
def answering(address: Address, kind: Kind, number: int, message: bytes) -> Iterator[None]:
    """Runs a server that gives one answer to all that it is asked."""

    def serve() -> None:
        peer, _ = listener.accept()
        connection = welcome(peer)
        connection.deadline = time.monotonic() + 20
        connection.content(connection.receive())
        connection.send(kind, number, message, {})
        connection.close()

    with new_socket() as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(address.same_host_path)
        listener.listen()
        serving = pool.submit(serve)
        yield
        serving.result(10)


def malformed() -> bytes:
    header = pb.ArrayHeader(name="x", dtype="object", shape=[1])
    return pb.Reply(arrays=[header]).SerializeToString()


@pytest.mark.parametrize("message", [b"\xff", malformed()])
def test_a_malformed_reply_is_the_servers_defect(
    address: Address, transport: SameHostTransport, message: bytes
) -> None:
    with (
        answering(address, Kind.REPLY, 1, message),
        pytest.raises(BankInternalError, match="reply is malformed"),
    ):
        transport.call(advance(1), {}, timeout_s=20)


@pytest.mark.parametrize(("kind", "number"), [(Kind.REPLY, 2), (Kind.REQUEST, 1)])
def test_an_answer_to_another_call_is_not_taken(
    address: Address, transport: SameHostTransport, kind: Kind, number: int
) -> None:
    with (
        answering(address, kind, number, b""),
        pytest.raises(BankUnavailableError, match="in place of"),
    ):
        transport.call(advance(1), {}, timeout_s=20)


def test_connect_shares_memory_where_it_can(bank: SlowBank, tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    for address, kind in {
        f"unix:{path}": SameHostTransport,
        f"unix:{path.ljust(107, 'x')}": GrpcTransport,
        "127.0.0.1:1": GrpcTransport,
    }.items():
        transport = open_transport(parse_address(address))
        assert type(transport) is kind
        transport.close()
    with BankServer(bank, f"unix:{path}") as server, connect(server.address) as client:
        assert client.table("t").lookup([3])["x"].tolist() == [3.0]
        assert os.path.exists(f"{path}.same-host")
    assert os.listdir(tmp_path) == []


def test_a_server_may_offer_grpc_alone(bank: SlowBank, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with BankServer(bank, address, max_same_host_connections=0), connect(address) as client:
        assert os.listdir(tmp_path) == ["s"]
        assert client.table("t").lookup([3])["x"].tolist() == [3.0]
