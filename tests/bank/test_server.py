from __future__ import annotations

import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import server as server_module
from carls_jax.bank.access import Access
from carls_jax.bank.frames import CALL_METHOD, SERVICE_NAME, STREAM_METHOD
from carls_jax.bank.interface import PROTOCOL_VERSION, BankStats
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import MAX_FRAME_BYTES, BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.tokens import Token
from carls_jax.errors import (
    AccessDeniedError,
    AddressInUseError,
    BankOverloadedError,
    BankUnavailableError,
    InvalidInputError,
)

TOKEN = "t" * 32
SPEC = TableSpec("t", fields={"x": Field(())})
BOTH_WAYS = pytest.mark.parametrize(
    "options", [{}, {"max_same_host_connections": 0}], ids=["same_host", "grpc"]
)


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        yield bank


def answers(address: str) -> bool:
    with RemoteBank(address, access=Access(Token(TOKEN))) as remote:
        return remote.stats().tables == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_port_0_is_a_free_port_and_told(bank: LocalBank, host: str) -> None:
    with BankServer(bank, f"{host}:0", token=TOKEN) as server:
        name, port = server.address.split(":")
        assert name == host
        assert int(port) > 0
        assert answers(server.address)


def test_a_socket_is_its_owners_alone_and_goes_with_the_server(
    bank: LocalBank, tmp_path: Path
) -> None:
    path = tmp_path / "made" / "socket"
    mask = os.umask(0)
    try:
        with BankServer(bank, f"unix:{path}") as server:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert os.umask(0) == 0  # put back
            assert answers(server.address)
    finally:
        os.umask(mask)
    assert not path.exists()


def test_a_live_servers_socket_is_not_taken(bank: LocalBank, tmp_path: Path) -> None:
    with BankServer(bank, f"unix:{tmp_path}/s") as server:
        with pytest.raises(AddressInUseError, match="a live server listens at unix:"):
            BankServer(bank, f"unix:{tmp_path}/s")
        assert answers(server.address)


def test_a_dead_servers_socket_is_replaced(bank: LocalBank, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")
    assert (tmp_path / "s").is_socket()

    with BankServer(bank, f"unix:{tmp_path}/s") as server:
        assert answers(server.address)


def test_a_file_is_not_replaced(bank: LocalBank, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")

    with pytest.raises(AddressInUseError, match="is a file and no socket"):
        BankServer(bank, f"unix:{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_a_port_is_not_shared(bank: LocalBank) -> None:
    with BankServer(bank, "127.0.0.1:0", token=TOKEN) as server:
        with pytest.raises(AddressInUseError, match=f"{server.address} is taken"):
            BankServer(bank, server.address, token=TOKEN)
        assert answers(server.address)


def test_an_address_of_another_machine_is_refused(bank: LocalBank) -> None:
    with pytest.raises(InvalidInputError, match=r"192\.0\.2\.1:0.*cannot listen there"):
        # Reserved for documentation: RFC 5737.
        BankServer(bank, "192.0.2.1:0", token=TOKEN, insecure=True)


def test_an_address_is_free_again_after_stop(bank: LocalBank) -> None:
    server = BankServer(bank, "127.0.0.1:0", token=TOKEN)
    server.stop()
    server.stop()

    with BankServer(bank, server.address, token=TOKEN) as second:
        assert second.address == server.address


def test_the_health_service_says_serving(bank: LocalBank, tmp_path: Path) -> None:
    with (
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE_NAME):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE_NAME == "carls_jax.bank.KnowledgeBank"


class SlowBank(LocalBank):
    """Answers `stats` when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.allowed = threading.Event()

    def stats(self) -> BankStats:
        self.asked.set()
        assert self.allowed.wait(10)
        return super().stats()


@BOTH_WAYS
def test_stop_lets_a_request_under_way_end(tmp_path: Path, options: dict[str, int]) -> None:
    with SlowBank() as bank:
        server = BankServer(bank, f"unix:{tmp_path}/s", **options)
        answered: queue.Queue[BankStats] = queue.Queue()
        with RemoteBank(server.address) as remote:
            client = threading.Thread(target=lambda: answered.put(remote.stats()))
            client.start()
            assert bank.asked.wait(10)
            stopping = threading.Thread(target=server.stop, kwargs={"grace_s": 10.0})
            stopping.start()
            bank.allowed.set()
            assert answered.get(timeout=10).tables == {}
            stopping.join(10)
            client.join(10)
        assert not stopping.is_alive()


@BOTH_WAYS
def test_a_request_beyond_the_bound_is_refused(
    bank: LocalBank, tmp_path: Path, options: dict[str, int]
) -> None:
    with (
        BankServer(bank, f"unix:{tmp_path}/s", max_staged_bytes=4_000_000, **options) as server,
        RemoteBank(server.address) as remote,
    ):
        table = remote.table(SPEC)
        for num_rows in (10_000_000, 400_000):  # 12 bytes a row
            with pytest.raises(BankOverloadedError, match=r"4000000.*fewer rows per call"):
                table.update(np.arange(num_rows), {"x": np.zeros(num_rows)})
        assert len(table) == 0
        # Room that was held is given back.
        for _ in range(3):
            table.update(np.arange(300_000), {"x": np.zeros(300_000)})
        assert len(table) == 300_000


def stream_of(channel: grpc.Channel) -> Callable[..., Any]:
    """Returns the method as another program would call it, by protobuf's own encoding."""
    return channel.stream_stream(
        STREAM_METHOD, pb.RequestFrame.SerializeToString, pb.ReplyFrame.FromString
    )


def overload(call: Callable[[], object]) -> str:
    """Returns the message of the BankOverloadedError that a call raises, or ""."""
    try:
        call()
    except BankOverloadedError as error:
        return str(error)
    return ""


def test_the_bound_is_on_all_requests_together(bank: LocalBank, tmp_path: Path) -> None:
    bank.table(SPEC)
    header = pb.ArrayHeader(name="keys", dtype="int64", shape=[75])
    request = pb.Request(
        protocol_version=PROTOCOL_VERSION,
        lookup=pb.Lookup(table="t", fields=["x"]),
        arrays=[header],
    )

    def begin() -> tuple[queue.Queue[pb.RequestFrame | None], Any]:
        """Sends half of a request of 600 bytes."""
        frames: queue.Queue[pb.RequestFrame | None] = queue.Queue()
        frames.put(pb.RequestFrame(request=request, data=bytes(300)))
        return frames, stream_of(channel)(iter(frames.get, None), timeout=20)

    with (
        BankServer(bank, f"unix:{tmp_path}/s", max_staged_bytes=1000) as server,
        grpc.insecure_channel(server.address) as channel,
        RemoteBank(server.address, timeout_s=0.5) as remote,
    ):
        frames, replies = begin()
        table = remote.table("t")
        deadline = time.monotonic() + 10
        # Then one of 600 bytes from another client.
        while not (message := overload(lambda: table.lookup(np.arange(75), metadata=["source"]))):
            assert time.monotonic() < deadline  # the server has not read the first frame yet
            if not replies.is_active():  # the other one was there first
                frames.put(None)
                frames, replies = begin()
        assert "has room for 400 of 1000 now" in message

        frames.put(pb.RequestFrame(data=bytes(300)))
        frames.put(None)
        assert next(replies).reply.WhichOneof("answer") == "looked_up"
        replies.cancel()
        assert table.lookup(np.arange(75), metadata=["source"]).found.shape == (75,)


def test_a_request_cut_short_is_not_applied(bank: LocalBank, tmp_path: Path) -> None:
    bank.table(SPEC)
    change = pb.Change(table="t", author=pb.Author(clock="main"), update=pb.Update())
    request = pb.Request(protocol_version=PROTOCOL_VERSION, change=change)
    for name, dtype in (("keys", "int64"), ("value/x", "float32")):
        request.arrays.append(pb.ArrayHeader(name=name, dtype=dtype, shape=[10]))
    with (
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stream = stream_of(channel)
        frames = [pb.RequestFrame(request=request), pb.RequestFrame(data=bytes(119))]
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter(frames), timeout=10))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "119 bytes came: the headers say 120" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter([]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert bank.stats().tables["t"].num_rows == 0


def test_both_sockets_are_their_owners_alone_and_so_is_a_directory_that_is_made(
    bank: LocalBank, tmp_path: Path
) -> None:
    mask = os.umask(0)
    try:
        with BankServer(bank, f"unix:{tmp_path}/made/socket"):
            made = tmp_path / "made"
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in made.iterdir()}
            assert modes == {"socket": 0o600, "socket.same-host": 0o600}
    finally:
        os.umask(mask)


def test_a_directory_where_others_may_replace_the_socket_is_refused(
    bank: LocalBank, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(InvalidInputError, match=r"every user can replace files in .*mode 0777"):
        BankServer(bank, f"unix:{tmp_path}/open/socket")
    (tmp_path / "open").chmod(0o1777)  # as /tmp is
    with BankServer(bank, f"unix:{tmp_path}/open/socket") as server:
        assert answers(server.address)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a socket away")
def test_a_socket_of_another_user_is_not_used(bank: LocalBank, tmp_path: Path) -> None:
    with BankServer(bank, f"unix:{tmp_path}/s", max_same_host_connections=0) as server:
        os.chown(tmp_path / "s", 12345, -1)
        with pytest.raises(AccessDeniedError, match="is of user 12345, and no bank of yours"):
            answers(server.address)
        os.chown(tmp_path / "s", 0, -1)
        assert answers(server.address)


def test_connections_have_a_number(bank: LocalBank, tmp_path: Path) -> None:
    options = {"max_connections": 2, "max_same_host_connections": 0}
    with (
        BankServer(bank, f"unix:{tmp_path}/s", **options) as server,
        RemoteBank(server.address) as first,
        RemoteBank(server.address) as second,
        RemoteBank(server.address) as third,
    ):
        for remote in (first, second):
            assert remote.stats().tables == {}
        with pytest.raises(BankUnavailableError, match="no bank answers"):
            third.wait_ready(0.2)
        first.close()
        third.wait_ready(60)
        assert third.stats().tables == {}


def when_there_is_room(call: Callable[[], Any]) -> Any:
    """Makes a call; one before it may count for a moment after it was answered."""
    while True:
        with suppress(BankOverloadedError):
            return call()


def test_calls_have_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CALLS", 2)
    address = f"unix:{tmp_path}/s"
    with (
        SlowBank() as bank,
        BankServer(bank, address, max_same_host_connections=0),
        RemoteBank(address) as remote,
        grpc.insecure_channel(address) as channel,
        ThreadPoolExecutor(2) as pool,
    ):
        slow = []
        for _ in range(2):
            slow.append(pool.submit(when_there_is_room, remote.stats))
            assert bank.asked.wait(10)
            bank.asked.clear()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(CALL_METHOD)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limit exceeded" in caught.value.details()
        bank.allowed.set()
        assert [one.result(10).tables for one in slow] == [{}, {}]
        assert when_there_is_room(remote.snapshots) == []


def test_messages_and_metadata_have_a_size(bank: LocalBank, tmp_path: Path) -> None:
    with (
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.unary_unary(CALL_METHOD)
        for message, metadata in ((bytes(MAX_FRAME_BYTES + 1), ()), (b"", (("x", "y" * 40_000),))):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, timeout=10, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in caught.value.details() or "size" in caught.value.details()
        assert answers(server.address)


def test_whoever_pings_without_end_is_cut_off(bank: LocalBank, tmp_path: Path) -> None:
    settings, ping = frame_of_http2(4), frame_of_http2(6, bytes(8))
    with (
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        socket.socket(socket.AF_UNIX) as link,
    ):
        link.settimeout(10)
        link.connect(f"{tmp_path}/s")
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + 20 * ping)
        told = b""
        while chunk := link.recv(1 << 16):
            told += chunk
        assert b"too_many_pings" in told
        assert answers(server.address)


def frame_of_http2(kind: int, data: bytes = b"") -> bytes:
    """Returns a frame of stream 0 without flags: RFC 9113, section 4.1."""
    return len(data).to_bytes(3) + bytes([kind, 0]) + bytes(4) + data
