"""Whatever a client does with the socket and memory that it shares with a server, it alone pays.

With `scripts/test --long` thirteen times as much is tried.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from carls_jax.bank.frames import decode_request
from carls_jax.bank.same_host_connection import (
    MAX_MESSAGE_BYTES,
    NUM_PARTS,
    PART_BYTES,
    SEGMENT_BYTES,
    Kind,
    Packet,
)
from carls_jax.bank.same_host_handshake import new_socket
from carls_jax.bank.same_host_segment import map_segment
from tests.integration.any_requests import any_frames
from tests.integration.fuzzed_bank import IS_LONG, FuzzedBank, fuzzed_bank
from tests.integration.hostile_values import names
from tests.integration.malformed_requests import malformed, update

NUM_EXAMPLES = 60 * (13 if IS_LONG else 1)
PER_EXAMPLE = 5
pytestmark = pytest.mark.timeout(1200 if IS_LONG else 120)
SIZES = st.sampled_from(
    [0, 1, 23, 100, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, PART_BYTES * NUM_PARTS,
     SEGMENT_BYTES, SEGMENT_BYTES + 1, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES + 1, 2**32 - 1]
)  # fmt: skip
LARGE = SIZES | st.sampled_from([2**40, 2**63, 2**64 - 1])


class Intruder:
    """Is a connected client that may do anything with its socket and its memory."""

    def __init__(self, path: str) -> None:
        self.link = new_socket()
        self.link.settimeout(30)
        self.link.connect(path)
        _, (descriptor,), _, _ = socket.recv_fds(self.link, 100, 1)
        self.segment = map_segment(descriptor, SEGMENT_BYTES)
        os.close(descriptor)

    def send(self, raw: bytes, descriptors: list[int]) -> bool:
        """Sends a packet; returns whether the server still takes any."""
        try:
            if descriptors:
                socket.send_fds(self.link, [raw], descriptors, socket.MSG_NOSIGNAL)
            else:
                self.link.send(raw, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def die(self) -> None:
        self.link.close()


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[FuzzedBank]:
    # A socket's path is short.
    with tempfile.TemporaryDirectory() as name, fuzzed_bank(Path(name), f"unix:{name}/s") as fuzzed:
        yield fuzzed


@pytest.fixture
def path(fuzzed: FuzzedBank) -> str:
    return f"{fuzzed.address.removeprefix('unix:')}.same-host"


@pytest.fixture
def unchanged(fuzzed: FuzzedBank) -> Iterator[None]:
    """Holds that the server lives, has changed nothing, and keeps nothing of who has gone."""
    before, files, rss_bytes = fuzzed.state(), fuzzed.num_files, fuzzed.rss_bytes
    yield
    fuzzed.check_alive()
    assert fuzzed.state() == before
    wait_until(lambda: fuzzed.num_files <= files)
    assert fuzzed.rss_bytes - rss_bytes < 300 << 20


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


def examples() -> settings:
    return settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )


# REQUEST and OPEN may be what they say: what the message holds is drawn so that it changes nothing.
packets = st.builds(
    struct.Struct("<IIQQ").pack,
    st.sampled_from([*Kind]) | st.integers(0, 2**32 - 1),
    SIZES.filter(lambda size: size < 2**32),
    st.integers(0, 2**64 - 1),
    LARGE,
)
raw_packets = packets | st.builds(
    lambda raw, cut, more: raw[:cut] + more, packets, st.integers(1, 24), st.binary(max_size=9)
)


@st.composite
def hostile_message(draw: st.DrawFn) -> bytes:
    """Draws what the segment holds where a message should be."""
    whole = [
        st.binary(max_size=200),
        malformed().map(lambda one: one[1][0]),
        st.just(b"\xff" * 500),
    ]
    return draw(st.one_of(*whole, any_frames().map(lambda one: b"\0" + one[0][0])))


@pytest.mark.usefixtures("unchanged")
def test_any_packets_change_nothing(fuzzed: FuzzedBank, path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    memory = os.memfd_create("x")
    file = os.open(tmp_path / "file", os.O_RDONLY)

    @examples()
    @given(
        st.lists(
            st.tuples(
                hostile_message(),
                st.lists(raw_packets, min_size=1, max_size=6),
                st.lists(st.sampled_from([memory, file]), max_size=4),
            ),
            min_size=PER_EXAMPLE,
            max_size=PER_EXAMPLE,
        )
    )
    def send(all_sent: list[tuple[bytes, list[bytes], list[int]]]) -> None:
        for message, raw, descriptors in all_sent:
            intruder = Intruder(path)
            intruder.segment[: len(message)] = message
            for one in raw:
                if not intruder.send(one, descriptors):
                    break
            intruder.die()

    send()
    os.close(memory)
    os.close(file)
    assert (tmp_path / "file").read_bytes() == b"x" * 100


@pytest.mark.usefixtures("unchanged")
def test_requests_that_are_never_whole_change_nothing(fuzzed: FuzzedBank, path: str) -> None:
    """Clients say that more comes than does, alter what they said meanwhile, and die."""
    asked, sent = update()
    message, data = asked.SerializeToString(), b"".join(one[3] for one in sent)

    @examples()
    @given(st.integers(0, len(message) + len(data)), SIZES.filter(bool), st.booleans())
    def send(num_bytes: int, more: int, has_half: bool) -> None:
        intruder = Intruder(path)
        content = (message + data)[:num_bytes]
        intruder.segment[: len(content)] = content
        # More bytes are told than the arrays have, so that even all of them are no request.
        packet = Packet(Kind.REQUEST, 1, len(message), len(message) + len(data) + more)
        intruder.send(packet.encode(), [])
        if has_half:
            intruder.send(Packet(Kind.PART, 1).encode(), [])
        intruder.segment[:] = b"\xff" * len(intruder.segment)
        intruder.die()

    send()


@pytest.mark.usefixtures("unchanged")
def test_malformed_requests_through_memory_change_nothing(fuzzed: FuzzedBank, path: str) -> None:
    @examples()
    @given(st.lists(malformed(), min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
    def send(requests: list[tuple[str, list[bytes], str]]) -> None:
        intruder = Intruder(path)
        for number, (what, frames, _) in enumerate(requests, 1):
            message, data = opened(frames)
            content = message + data
            if len(content) > PART_BYTES:
                continue
            intruder.segment[: len(content)] = content
            packet = Packet(Kind.REQUEST, number, len(message), len(content))
            assert intruder.send(packet.encode(), [])
            kind, message_bytes, call, _ = struct.unpack("<IIQQ", intruder.link.recv(25))
            assert (kind, call) == (Kind.FAILURE, number), what
            told = bytes(intruder.segment[:message_bytes])
            assert not told.startswith(b"BankInternalError"), told
        intruder.die()

    send()


def opened(frames: list[bytes]) -> tuple[bytes, bytes]:
    """Returns the message and the data of a request in frames."""
    read = [decode_request(one) for one in frames]
    return read[0].message.SerializeToString(), b"".join(
        bytes(piece) for one in read for piece in one.pieces
    )


@pytest.mark.usefixtures("unchanged")
def test_tables_are_opened_by_name_alone(fuzzed: FuzzedBank, path: str) -> None:
    @examples()
    @given(names | st.text(max_size=40) | st.just("graph/embeddings"))
    def open_table(name: str) -> None:
        intruder = Intruder(path)
        raw = name.encode(errors="surrogatepass")
        intruder.segment[: len(raw)] = raw
        intruder.send(Packet(Kind.OPEN, 1, len(raw), len(raw)).encode(), [])
        answer, descriptors, _, _ = socket.recv_fds(intruder.link, 25, 4)
        assert len(descriptors) == (struct.unpack("<IIQQ", answer)[0] == Kind.TABLE)
        for descriptor in descriptors:
            # What is shared can be read, and neither written nor cut off.
            with pytest.raises(PermissionError):
                mmap.mmap(descriptor, 4096)
            with pytest.raises(OSError, match=r"ermitted|Invalid"):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
        # What the client counts is its own to forge.
        intruder.segment[-4096:] = b"\xff" * 4096
        intruder.die()

    open_table()
