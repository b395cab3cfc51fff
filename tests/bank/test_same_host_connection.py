from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank.same_host_connection import (
    NUM_PARTS,
    PACKET_BYTES,
    PART_BYTES,
    SEGMENT_BYTES,
    Connection,
    Kind,
    LinkError,
    LinkTimeoutError,
    Packet,
    decode_packet,
)

# Around where a content needs another packet, or has to wait for a part to be taken.
SIZES = sorted(
    {0, 1, 100}
    | {
        num_parts * PART_BYTES + extra
        for num_parts in (1, 2, NUM_PARTS, NUM_PARTS + 1, 3 * NUM_PARTS)
        for extra in (-1, 0, 1)
    }
)


class Pair:
    """Two ends of a connection, in this process; `link` is the socket of the left one."""

    def __init__(self) -> None:
        self.segment = memoryview(bytearray(SEGMENT_BYTES))
        self.link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.left, self.right = (Connection(one, self.segment) for one in (self.link, other))
        for end in (self.left, self.right):
            end.deadline = time.monotonic() + 20

    def close(self) -> None:
        self.left.close()
        self.right.close()

    def sent(self, message: bytes, data: bytes) -> tuple[Packet, bytes, bytes]:
        """Returns what the right end gets when the left one sends a content."""
        arrays = {"x": np.frombuffer(data, np.uint8)}
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(self.left.send, Kind.REQUEST, 7, message, arrays)
            packet = self.right.receive()
            received, pieces = self.right.content(packet)
            rest = b"".join(map(bytes, pieces))
            sending.result(20)
        return packet, received, rest


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def lasting_pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@settings(max_examples=60, deadline=None)
@given(message=st.sampled_from(SIZES), data=st.sampled_from(SIZES), seed=st.integers(0, 255))
def test_contents_arrive_as_they_were(
    lasting_pair: Pair, message: int, data: int, seed: int
) -> None:
    for end in (lasting_pair.left, lasting_pair.right):
        end.deadline = time.monotonic() + 20
    content = np.random.default_rng(seed).bytes(message + data)

    packet, received, rest = lasting_pair.sent(content[:message], content[message:])

    assert packet == Packet(Kind.REQUEST, 7, message, message + data)
    assert received == content[:message]
    assert rest == content[message:]


def test_arrays_follow_one_another(pair: Pair) -> None:
    arrays = {
        "a": np.arange(3, dtype=np.int16),
        "b": np.zeros((0, 4)),
        "c": np.array(2.0, np.float32),
        "d": np.arange(6, dtype=np.int8).reshape(2, 3).T,
    }
    pair.left.send(Kind.REPLY, 1, b"message", arrays)

    message, pieces = pair.right.content(pair.right.receive())

    assert message == b"message"
    assert b"".join(map(bytes, pieces)) == struct.pack("<3hf6b", 0, 1, 2, 2.0, 0, 3, 1, 4, 2, 5)


def test_a_small_content_is_one_packet(pair: Pair) -> None:
    pair.right.send(Kind.REPLY, 1, b"message", {"x": np.zeros(10)})

    assert pair.link.recv(1000) == struct.pack("<IIQQ", Kind.REPLY, 7, 1, 87)
    with pytest.raises(BlockingIOError):
        pair.link.recv(1000, socket.MSG_DONTWAIT)
    assert bytes(pair.segment[:7]) == b"message"


def test_a_sender_waits_until_a_part_is_taken(pair: Pair) -> None:
    values = np.repeat(np.arange(NUM_PARTS + 1, dtype=np.uint8), PART_BYTES)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(pair.left.send, Kind.REQUEST, 1, b"", {"x": values})
        _, pieces = pair.right.content(pair.right.receive())
        assert set(bytes(next(pieces))) == {0}
        assert not sending.done()  # it waits for the first part's place
        assert [set(bytes(piece)) for piece in pieces] == [{n} for n in range(1, NUM_PARTS + 1)]
        sending.result(20)


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        Packet(Kind.REQUEST, 1).encode()[:-1],
        Packet(Kind.REQUEST, 1).encode() + b"x",
        struct.pack("<IIQQ", 0, 0, 1, 0),
        struct.pack("<IIQQ", len(Kind) + 1, 0, 1, 0),
        struct.pack("<IIQQ", 2**32 - 1, 2**32 - 1, 2**64 - 1, 2**64 - 1),
        struct.pack("<IIQQ", Kind.REQUEST, 11, 1, 10),
    ],
    ids=bytes.hex,
)
def test_a_forged_packet_ends_the_connection(pair: Pair, raw: bytes) -> None:
    pair.link.send(raw)

    with pytest.raises(LinkError, match=r"no packet|impossible message"):
        pair.right.receive()


@given(raw=st.binary(max_size=PACKET_BYTES + 1))
def test_any_bytes_are_a_packet_or_refused(raw: bytes) -> None:
    try:
        packet = decode_packet(raw)
    except LinkError:
        return
    assert packet.encode() == raw
    assert packet.message_bytes <= packet.num_bytes


@pytest.mark.parametrize(
    "forged", [Packet(Kind.PART, 2), Packet(Kind.REQUEST, 1), Packet(Kind.TAKEN, 1)]
)
def test_parts_of_another_call_are_refused(pair: Pair, forged: Packet) -> None:
    for packet in (Packet(Kind.REQUEST, 1, 0, PART_BYTES + 1), forged):
        pair.link.send(packet.encode())
    _, pieces = pair.right.content(pair.right.receive())

    assert len(next(pieces)) == PART_BYTES
    with pytest.raises(LinkError, match="in place of PART of call 1"):
        next(pieces)


def test_a_content_larger_than_any_memory_is_read_no_further_than_it_comes(pair: Pair) -> None:
    pair.link.send(Packet(Kind.REQUEST, 1, 5, 2**64 - 1).encode())
    message, pieces = pair.right.content(pair.right.receive())
    assert len(message) == 5
    assert len(next(pieces)) == PART_BYTES - 5
    pair.left.close()

    with pytest.raises(LinkError, match="has gone"):
        next(pieces)


def test_whoever_waits_is_told_that_the_other_side_has_gone(pair: Pair) -> None:
    pair.left.close()

    with pytest.raises(LinkError, match="has gone"):
        pair.right.receive()
    with pytest.raises(LinkError, match="has gone"):
        pair.right.send(Kind.REPLY, 1, b"", {})


def test_waiting_ends_at_the_deadline(pair: Pair) -> None:
    for deadline in (time.monotonic() + 0.01, time.monotonic() - 1):
        pair.right.deadline = deadline
        with pytest.raises(LinkTimeoutError):
            pair.right.receive()


@pytest.mark.parametrize("deadline", [None, math.inf])
def test_another_thread_ends_waiting(pair: Pair, deadline: float | None) -> None:
    pair.right.deadline = deadline
    waits = threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def receive() -> Packet:
            waits.set()
            return pair.right.receive()

        receiving = pool.submit(receive)
        assert waits.wait(10)
        pair.right.shut()
        with pytest.raises(LinkError):
            receiving.result(10)
    pair.right.shut()
