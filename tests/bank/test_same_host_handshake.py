from __future__ import annotations

import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carls_jax.bank.same_host_connection import SEGMENT_BYTES, Kind, LinkError, Packet
from carls_jax.bank.same_host_handshake import FORMAT_VERSION, connect, new_socket, welcome
from carls_jax.bank.same_host_segment import make_segment

WELCOME = Packet(Kind.WELCOME, FORMAT_VERSION, num_bytes=SEGMENT_BYTES)


@pytest.fixture
def path() -> Iterator[Path]:
    """Gives a path that every user may reach."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory) / "s"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with new_socket() as listener:
        listener.settimeout(20)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield listener


def test_both_sides_get_the_same_memory(listener: socket.socket, path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect, str(path), timeout_s=20)
        peer, _ = listener.accept()
        server = welcome(peer)
        client = connecting.result(20)
    client.send(Kind.REQUEST, 1, b"question", {})
    packet = server.receive()
    assert server.content(packet)[0] == b"question"
    server.send(Kind.REPLY, 1, b"answer", {})
    assert client.content(client.receive())[0] == b"answer"

    for end in (client, server):
        end.close()
    del client, server, end
    assert set(os.listdir("/proc/self/fd")) == before


def test_nobody_listens(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(str(path), timeout_s=20)


def test_a_server_that_says_nothing_is_left_in_time(listener: socket.socket, path: Path) -> None:
    with pytest.raises(TimeoutError):
        connect(str(path), timeout_s=0.01)


def small_segment() -> list[int]:
    return [make_segment(SEGMENT_BYTES // 2)]


def right_segment() -> list[int]:
    return [make_segment(SEGMENT_BYTES)]


def unsealed_segment() -> list[int]:
    descriptor = os.memfd_create("carls-jax")
    os.truncate(descriptor, SEGMENT_BYTES)
    return [descriptor]


@pytest.mark.parametrize(
    ("packet", "descriptors"),
    [
        (WELCOME, list),
        (WELCOME, small_segment),
        (WELCOME, unsealed_segment),
        (WELCOME._replace(call=FORMAT_VERSION + 1), right_segment),
        (WELCOME._replace(num_bytes=SEGMENT_BYTES + 1), right_segment),
        (Packet(Kind.REPLY, FORMAT_VERSION, num_bytes=SEGMENT_BYTES), right_segment),
    ],
)
def test_a_strange_welcome_is_refused(
    listener: socket.socket, path: Path, packet: Packet, descriptors: Callable[[], list[int]]
) -> None:
    opened = descriptors()
    before = os.listdir("/proc/self/fd")
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect, str(path), timeout_s=20)
        peer, _ = listener.accept()
        with peer:
            socket.send_fds(peer, [packet.encode()], opened)
            with pytest.raises(OSError, match=r"does not speak format|sealed bytes"):
                connecting.result(20)
    assert os.listdir("/proc/self/fd") == before
    for descriptor in opened:
        os.close(descriptor)


def test_a_server_without_memory_to_share_welcomes_nobody(
    listener: socket.socket, path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect, str(path), timeout_s=20)
        peer, _ = listener.accept()
        resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT_BYTES - 1, hard))
        try:
            with peer, pytest.raises(OSError, match="too large"):
                welcome(peer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(LinkError, match="has gone"):
            connecting.result(20)


def as_stranger(action: Callable[[], int]) -> int:
    """Returns what an action returns in a process of another user."""
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child, whatever happens.
        try:
            os.setuid(65534)
            os._exit(action())
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_another_users_client_is_refused(listener: socket.socket, path: Path) -> None:
    def connects() -> int:
        with new_socket() as stranger:
            stranger.connect(str(path))
        return 0

    assert as_stranger(connects) == 0
    peer, _ = listener.accept()
    with peer, pytest.raises(PermissionError, match="is of user 65534"):
        welcome(peer)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_another_users_server_is_refused(path: Path) -> None:
    with new_socket() as listener:
        listener.bind(str(path))

        def listens() -> int:
            listener.listen()
            return 0

        assert as_stranger(listens) == 0
        with pytest.raises(PermissionError, match="is of user 65534"):
            connect(str(path), timeout_s=20)
