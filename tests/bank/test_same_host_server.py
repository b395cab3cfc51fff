from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import status, wire
from carls_jax.bank.changes import Change
from carls_jax.bank.interface import PROTOCOL_VERSION, Applied
from carls_jax.bank.local import LocalBank
from carls_jax.bank.same_host_connection import (
    MAX_MESSAGE_BYTES,
    SEGMENT_BYTES,
    Connection,
    Kind,
    LinkError,
    Packet,
)
from carls_jax.bank.same_host_handshake import connect, new_socket
from carls_jax.bank.same_host_segment import map_segment
from carls_jax.bank.same_host_server import SameHostServer, offer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.staging import Staging
from carls_jax.bank.transport import assembled
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    AddressInUseError,
    BankOverloadedError,
    CarlsError,
    InvalidInputError,
    ProtocolMismatchError,
    ShapeError,
)

SPEC = TableSpec("t", fields={"x": Field(())})
MAX_CONNECTIONS = 3
MAX_STAGED_BYTES = 10 << 20


class WatchedBank(LocalBank):
    """Lets a test act, and hold a change back, while it is being applied."""

    def __init__(self) -> None:
        super().__init__()
        self.table(SPEC)
        self.while_applying: Callable[[], None] = lambda: None

    def apply(self, change: Change) -> Applied:
        if change.kind == "update":
            self.while_applying()
        return super().apply(change)


@pytest.fixture
def bank() -> Iterator[WatchedBank]:
    with WatchedBank() as bank:
        yield bank


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/s"


@pytest.fixture
def server(bank: WatchedBank, path: str) -> Iterator[SameHostServer]:
    staging = Staging(bank, max_bytes=MAX_STAGED_BYTES)
    server = SameHostServer(staging, path, max_connections=MAX_CONNECTIONS)
    yield server
    server.turn_away()
    server.wait(10)
    assert server.num_connections == 0


class Client:
    """Is a client that may break the rules: it has the socket and the memory in hand."""

    def __init__(self, path: str) -> None:
        self.link = new_socket()
        self.link.settimeout(20)
        self.link.connect(path)
        _, (descriptor,), _, _ = socket.recv_fds(self.link, 100, 1)
        self.segment = map_segment(descriptor, SEGMENT_BYTES)
        os.close(descriptor)
        self.connection = Connection(self.link, self.segment)
        self.connection.deadline = time.monotonic() + 20

    def close(self) -> None:
        self.connection.close()

    def send(self, call: int, message: bytes, arrays: Arrays) -> None:
        self.connection.send(Kind.REQUEST, call, message, arrays)

    def receive(self) -> Packet:
        return self.connection.receive()

    def answer(self) -> tuple[pb.Reply, dict[str, np.ndarray]]:
        """Returns the next reply, or raises the error that comes in its place."""
        packet = self.receive()
        message, pieces = self.connection.content(packet)
        if packet.kind is Kind.FAILURE:
            raise status.unpack_error(message)
        assert packet.kind is Kind.REPLY
        return assembled(pb.Reply.FromString(message), pieces)

    def ask(self, request: pb.Request, arrays: Arrays) -> pb.Reply:
        self.send(1, request.SerializeToString(), arrays)
        return self.answer()[0]


@pytest.fixture
def client(server: SameHostServer, path: str) -> Iterator[Client]:
    with closing(Client(path)) as client:
        yield client


def update(num_rows: int) -> tuple[pb.Request, dict[str, np.ndarray]]:
    """Returns the request that writes row i's value i."""
    arrays = {"keys": np.arange(num_rows), "value/x": np.arange(num_rows, dtype=np.float32)}
    change = pb.Change(table="t", author=pb.Author(clock="main"), update=pb.Update())
    request = pb.Request(
        protocol_version=PROTOCOL_VERSION, change=change, arrays=wire.describe(arrays)
    )
    return request, arrays


def hello() -> pb.Request:
    return pb.Request(protocol_version=PROTOCOL_VERSION, hello=pb.Hello())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def test_a_client_is_answered(bank: WatchedBank, client: Client) -> None:
    assert client.ask(hello(), {}).identity.bank_id == bank.identity.bank_id
    for num_rows in (10, SEGMENT_BYTES // 4):
        assert client.ask(*update(num_rows)).WhichOneof("answer") == "applied"
        assert_array_equal(bank.table("t").lookup(range(num_rows))["x"], np.arange(num_rows))


def test_the_socket_is_its_owners_alone(server: SameHostServer, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_the_path_is_free_after_stop(bank: WatchedBank, server: SameHostServer, path: str) -> None:
    client = Client(path)
    server.turn_away()
    server.turn_away()
    server.wait(10)

    assert not os.path.exists(path)
    with pytest.raises(LinkError):
        client.receive()
    client.close()
    again = SameHostServer(Staging(bank, max_bytes=100), path, max_connections=1)
    again.turn_away()


def test_a_live_servers_path_is_not_taken(
    bank: WatchedBank, server: SameHostServer, client: Client, path: str
) -> None:
    staging = Staging(bank, max_bytes=100)
    with pytest.raises(AddressInUseError, match="a live server listens"):
        SameHostServer(staging, path, max_connections=1)
    assert client.ask(hello(), {})


def test_a_dead_servers_path_is_taken(bank: WatchedBank, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(path)
    server = SameHostServer(Staging(bank, max_bytes=100), path, max_connections=1)
    with closing(Client(path)) as client:
        assert client.ask(hello(), {})
    server.turn_away()
    server.wait(10)


def test_a_file_at_the_path_leaves_clients_to_grpc(
    bank: WatchedBank, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path(path).write_text("precious")

    with caplog.at_level(logging.WARNING):
        assert offer(Staging(bank, max_bytes=100), path, max_connections=1) is None

    assert "clients of this machine will use gRPC" in caplog.text
    assert Path(path).read_text() == "precious"


def test_a_path_too_long_leaves_clients_to_grpc(bank: WatchedBank, tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 108))
    assert offer(Staging(bank, max_bytes=100), path, max_connections=1) is None


def test_connections_are_bounded(server: SameHostServer, path: str) -> None:
    clients = [Client(path) for _ in range(MAX_CONNECTIONS)]
    assert server.num_connections == MAX_CONNECTIONS
    with pytest.raises(LinkError, match="has gone"):
        connect(path, timeout_s=20)
    assert clients[0].ask(hello(), {})

    for client in clients:
        client.close()
    wait_until(lambda: server.num_connections == 0)
    with closing(Client(path)) as client:
        assert client.ask(hello(), {})


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        Packet(Kind.REQUEST, 1).encode() + b"x",
        b"\xff" * 24,
        Packet(Kind.PART, 1).encode(),
        Packet(Kind.REPLY, 1).encode(),
        Packet(Kind.REQUEST, 1, message_bytes=100, num_bytes=99).encode(),
        Packet(Kind.REQUEST, 1, MAX_MESSAGE_BYTES + 1, MAX_MESSAGE_BYTES + 1).encode(),
        Packet(Kind.REQUEST, 1, num_bytes=2**64 - 1).encode() + b"x",
    ],
    ids=bytes.hex,
)
def test_a_client_that_breaks_the_rules_is_left_alone_at_once(
    server: SameHostServer, client: Client, path: str, raw: bytes
) -> None:
    client.link.send(raw)

    with pytest.raises(LinkError, match="has gone"):
        client.receive()
    with closing(Client(path)) as other:
        assert other.ask(hello(), {})


def changed(request: pb.Request, **shapes: list[int]) -> pb.Request:
    """Returns a request whose headers say other shapes."""
    for header in request.arrays:
        if header.name.replace("/", "_") in shapes:
            header.shape[:] = shapes[header.name.replace("/", "_")]
    return request


def without_version(request: pb.Request) -> pb.Request:
    request.protocol_version = 0
    return request


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (lambda request: changed(request, keys=[101]), InvalidInputError),
        (lambda request: changed(request, keys=[99]), InvalidInputError),
        (lambda request: changed(request, keys=[1 << 40]), BankOverloadedError),
        (lambda request: changed(request, keys=[0, 1 << 62]), ShapeError),
        (lambda request: changed(request, value_x=[50]), InvalidInputError),
        (lambda request: changed(request, value_x=[-1]), ShapeError),
        (lambda request: changed(request, value_x=[10, 10]), ShapeError),
        (without_version, ProtocolMismatchError),
    ],
)
def test_a_forged_request_changes_nothing(
    bank: WatchedBank,
    client: Client,
    forge: Callable[[pb.Request], pb.Request],
    error: type[CarlsError],
) -> None:
    request, arrays = update(100)

    with pytest.raises(error):
        client.ask(forge(request), arrays)

    assert len(bank.table("t")) == 0
    client.ask(*update(100))
    assert len(bank.table("t")) == 100


@pytest.mark.parametrize("message", [b"", b"\x00", b"\xff" * 1000])
def test_bytes_that_are_no_request_are_refused(client: Client, message: bytes) -> None:
    client.send(1, message, {})

    with pytest.raises((InvalidInputError, ProtocolMismatchError)):
        client.answer()
    assert client.ask(hello(), {})


def test_a_request_beyond_the_bound_is_refused_and_the_next_is_not(client: Client) -> None:
    with pytest.raises(BankOverloadedError, match=f"allowed are {MAX_STAGED_BYTES} at once"):
        client.ask(*update(MAX_STAGED_BYTES // 8))
    client.ask(*update(MAX_STAGED_BYTES // 16))


def test_a_client_that_writes_meanwhile_changes_nothing(bank: WatchedBank, client: Client) -> None:
    def overwrite() -> None:
        client.segment[:] = b"\xff" * SEGMENT_BYTES

    bank.while_applying = overwrite
    client.ask(*update(1000))

    assert_array_equal(bank.table("t").to_numpy()["keys"], np.arange(1000))
    assert_array_equal(bank.table("t").lookup(range(1000))["x"], np.arange(1000))


def test_an_answer_names_its_call(client: Client) -> None:
    for number in (7, 3, 2**64 - 1):
        client.send(number, hello().SerializeToString(), {})
        packet = client.receive()
        assert (packet.kind, packet.call) == (Kind.REPLY, number)
        client.connection.content(packet)


def test_a_request_under_way_ends_before_the_server_does(
    bank: WatchedBank, server: SameHostServer, client: Client
) -> None:
    asked, allowed = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert allowed.wait(10)

    bank.while_applying = wait
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(client.ask, *update(10))
        assert asked.wait(10)
        server.turn_away()
        stopping = pool.submit(server.wait, 20)
        allowed.set()
        assert asking.result(10).applied.num_created == 10
        stopping.result(10)
    with pytest.raises(LinkError):
        client.send(2, b"", {})


def test_a_request_that_takes_too_long_does_not_hold_the_server(
    bank: WatchedBank, server: SameHostServer, client: Client
) -> None:
    asked, allowed = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert allowed.wait(10)

    bank.while_applying = wait
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.ask, *update(10))
        assert asked.wait(10)
        server.turn_away()
        server.wait(0)
        with pytest.raises(LinkError, match="has gone"):
            asking.result(10)
        allowed.set()


def test_a_client_that_leaves_in_the_middle_of_an_answer_frees_its_place(
    bank: WatchedBank, server: SameHostServer, client: Client
) -> None:
    keys = np.arange(1_000_000)
    request = pb.Request(
        protocol_version=PROTOCOL_VERSION,
        lookup=pb.Lookup(table="t", fields=["x"]),
        arrays=wire.describe({"keys": keys}),
    )
    client.send(1, request.SerializeToString(), {"keys": keys})
    packet = client.receive()
    assert packet.num_bytes > SEGMENT_BYTES  # the server waits for a part to be taken
    client.close()

    wait_until(lambda: server.num_connections == 0)


# One connection is idle, the other has sent the first part of a request.
CLIENT = """
import socket, struct, sys
clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
for client in clients:
    client.connect(sys.argv[1])
    socket.recv_fds(client, 100, 1)
client.send(struct.pack("<IIQQ", 2, 10, 1, 1_000_000))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_clients_memory_is_freed(
    bank: WatchedBank, server: SameHostServer, path: str
) -> None:
    def segments() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:carls-jax")

    before = segments()
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wait_until(lambda: segments() == before + 2)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
    wait_until(lambda: server.num_connections == 0)
    wait_until(lambda: segments() == before)
    with closing(Client(path)) as client:
        assert client.ask(hello(), {}).identity.bank_id == bank.identity.bank_id
