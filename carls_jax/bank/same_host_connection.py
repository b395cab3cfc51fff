"""One end of a same-host connection: a unix socket for packets, a segment for what they tell of.

A content is a message and the bytes of arrays after it. It travels through the segment in parts,
as through a ring: the packet that begins it tells its size, one more packet follows each further
part, and where a content has more parts than the segment the receiver says when one is taken. A
small content costs one packet of 24 bytes. Client and server take turns.

Nothing that comes from the other side is believed: what does not follow the rules ends the
connection.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from carls_jax.bank import wire
from carls_jax.bank.wire import Arrays

# The first part is copied out while the next is copied in, and both stay in a core's cache.
PART_BYTES = 1 << 19
NUM_PARTS = 4
# What the client counts for the server; see `table_sharing`.
COUNTERS_BYTES = 4096
SEGMENT_BYTES = PART_BYTES * NUM_PARTS + COUNTERS_BYTES
# Of a request; it holds no arrays.
MAX_MESSAGE_BYTES = 8 << 20
# A socket takes 24 days at most.
LONGEST_WAIT_S = 1e6

# Kind, bytes of the message, number of the call, bytes of the content.
_PACKET = struct.Struct("<IIQQ")
PACKET_BYTES = _PACKET.size
# Process, user, group of the other side; see unix(7).
CREDENTIALS = struct.Struct("iII")


class LinkError(OSError):
    """Says that a connection is of no more use: the other side has gone or breaks the rules."""


class LinkTimeoutError(LinkError):
    """Says that the other side was too slow, so the connection is of no more use."""


class Kind(enum.IntEnum):
    """Says what a packet is."""

    WELCOME = 1  # the segment's descriptor comes with it
    REQUEST = 2
    REPLY = 3
    FAILURE = 4
    PART = 5  # the next part is in the segment
    TAKEN = 6  # a part was copied out of it
    OPEN = 7  # the message names a table, whose memory is to be shared
    TABLE = 8  # the descriptor of a table's memory comes with it


class Packet(NamedTuple):
    """Is what the socket carries: it begins a content, or says how far its parts are.

    Attributes:
      kind: What it says.
      call: Number of the call that it belongs to.
      message_bytes: Bytes of the content's message.
      num_bytes: Bytes of the content.
    """

    kind: Kind
    call: int
    message_bytes: int = 0
    num_bytes: int = 0

    def encode(self) -> bytes:
        """Returns the bytes that are sent."""
        return _PACKET.pack(self.kind, self.message_bytes, self.call, self.num_bytes)


def decode_packet(raw: bytes) -> Packet:
    """Undoes `Packet.encode`; raises LinkError if the bytes are no packet, or none came."""
    if not raw:
        raise LinkError("the other side has gone")
    try:
        kind, message_bytes, call, num_bytes = _PACKET.unpack(raw)
        packet = Packet(Kind(kind), call, message_bytes, num_bytes)
    except (struct.error, ValueError) as error:
        raise LinkError(f"{raw.hex()} is no packet: {error}") from error
    if message_bytes > num_bytes:
        raise LinkError(f"{packet} has an impossible message")
    return packet


class Connection:
    """Sends and receives contents. For one thread at a time, but `shut` for any.

    Any method may raise LinkError, and LinkTimeoutError after the deadline.

    Args:
      link: A connected socket that keeps the bounds of packets; closed with this object.
      segment: The memory shared with the other side, `SEGMENT_BYTES` of it.

    Attributes:
      deadline: When waiting ends, on the monotonic clock in seconds. None: never.
      counters: `COUNTERS_BYTES` of the segment that are no part.
    """

    def __init__(self, link: socket.socket, segment: memoryview) -> None:
        self._link = link
        self._parts = [
            segment[number * PART_BYTES : (number + 1) * PART_BYTES] for number in range(NUM_PARTS)
        ]
        self.counters = segment[NUM_PARTS * PART_BYTES :]
        self.deadline: float | None = None

    def process(self) -> int:
        """Returns the process at the other side, when the connection was made."""
        raw = self._link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        return int(CREDENTIALS.unpack(raw)[0])

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        return self._link.fileno()

    def send(
        self,
        kind: Kind,
        call: int,
        message: bytes,
        arrays: Arrays,
        *,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Sends a content and descriptors; returns when its last part is in the segment."""
        pieces = [memoryview(message), *map(wire.bytes_of, arrays.values())]
        packet = Packet(kind, call, len(message), sum(map(len, pieces)))
        for number, part in enumerate(wire.cut_bytes(pieces, frame_bytes=PART_BYTES)):
            if number >= NUM_PARTS:
                self._expect(Kind.TAKEN, call)
            _fill(self._parts[number % NUM_PARTS], part)
            if number == 0:
                self._send(packet, descriptors)
            else:
                self._send(Packet(Kind.PART, call))

    def receive(self) -> Packet:
        """Waits for the next packet; between contents, the one that begins a content."""
        try:
            self._limit()
            # One byte more than it should have shows a packet that is too long.
            raw = self._link.recv(PACKET_BYTES + 1)
        except OSError as error:
            raise _lost(error) from error
        return decode_packet(raw)

    def receive_descriptors(self) -> tuple[Packet, list[int]]:
        """Waits for the next packet and its descriptors, which are the caller's to close."""
        try:
            self._limit()
            raw, descriptors, _, _ = socket.recv_fds(
                self._link, PACKET_BYTES + 1, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise _lost(error) from error
        try:
            return decode_packet(raw), descriptors
        except LinkError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def content(self, packet: Packet) -> tuple[bytes, Iterator[memoryview]]:
        """Returns a message, and the bytes after it as they come.

        Each piece is the other side's to change: it is to be copied before the next is asked for.
        """
        parts = self._receive_parts(packet)
        message = bytearray()
        rest = memoryview(b"")
        for part in parts:
            missing = packet.message_bytes - len(message)
            message += part[:missing]
            rest = part[missing:]
            if len(message) == packet.message_bytes:
                break
        return bytes(message), itertools.chain([rest], parts)

    def shut(self) -> None:
        """Ends whatever waits on either side."""
        with contextlib.suppress(OSError):  # it has ended already
            self._link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives back the socket, and the segment once nobody looks at it."""
        self._link.close()
        self._parts = []
        self.counters = memoryview(b"")

    def _receive_parts(self, packet: Packet) -> Iterator[memoryview]:
        num_parts = -(-packet.num_bytes // PART_BYTES)
        for number in range(num_parts):
            if number:
                self._expect(Kind.PART, packet.call)
            left = packet.num_bytes - number * PART_BYTES
            yield self._parts[number % NUM_PARTS][:left]
            if number + NUM_PARTS < num_parts:
                self._send(Packet(Kind.TAKEN, packet.call))

    def _expect(self, kind: Kind, call: int) -> None:
        packet = self.receive()
        if (packet.kind, packet.call) != (kind, call):
            raise LinkError(f"{packet} in place of {kind.name} of call {call}")

    def _send(self, packet: Packet, descriptors: Sequence[int] = ()) -> None:
        try:
            self._limit()
            if descriptors:
                socket.send_fds(self._link, [packet.encode()], descriptors, socket.MSG_NOSIGNAL)
            else:
                self._link.send(packet.encode(), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise _lost(error) from error

    def _limit(self) -> None:
        """Has the socket wait until the deadline at most."""
        if self.deadline is None:
            self._link.settimeout(None)
        else:
            left_s = self.deadline - time.monotonic()
            self._link.settimeout(min(max(left_s, 1e-6), LONGEST_WAIT_S))


def _lost(error: OSError) -> LinkError:
    if isinstance(error, TimeoutError):
        return LinkTimeoutError("the other side did not answer in time")
    return LinkError(f"the other side has gone: {error}")


def _fill(part: memoryview, pieces: Iterable[memoryview]) -> None:
    for piece in pieces:
        part[: len(piece)] = piece
        part = part[len(piece) :]
