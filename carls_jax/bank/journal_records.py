"""The bytes of a journal's records.

A record is a change and its sequence number:

    mark           8   begins every record of one segment, and was drawn for it alone
    checksum       8   xxh3_64 of all that follows
    sequence       8
    kept           8   last sequence that was safe when this record was written
    num_bytes      8   of the payload
    message_bytes  4   of the message, with which the payload begins
    payload            a `pb.Request` of the change and its array headers; the arrays' raw bytes

Numbers are unsigned and little-endian. Nobody who sends a change knows the mark, so no change can
hold bytes that look like a record: wherever the mark is found, a record began.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash
from google.protobuf.message import DecodeError

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import wire
from carls_jax.bank.changes import Change
from carls_jax.bank.messages import pack_change, unpack_change
from carls_jax.errors import CarlsError, InvalidInputError

MARK_BYTES = 8
MAX_SEQUENCE = (1 << 63) - 1

_BEGIN = struct.Struct(f"<{MARK_BYTES}sQ")
_REST = struct.Struct("<QQQI")
HEAD_BYTES = _BEGIN.size + _REST.size

Piece = bytes | memoryview


@dataclass(frozen=True)
class Head:
    """Holds what a record says of itself, of which nothing is believed before the checksum fits.

    Attributes:
      sequence: Number of the change.
      kept: Last sequence that was safe when the record was written: on the disk if the journal
        syncs, otherwise in the file.
      num_bytes: Length of the payload.
    """

    sequence: int
    kept: int
    num_bytes: int
    _message_bytes: int
    _checksum: int
    _checked: bytes

    def fits(self, payload: memoryview) -> bool:
        """Returns whether the checksum is that of this head and a payload."""
        digest = xxhash.xxh3_64(self._checked)
        digest.update(payload)
        return digest.intdigest() == self._checksum

    def change(self, payload: memoryview) -> Change:
        """Returns the change of a payload, its arrays read-only and in memory of their own.

        Raises:
          InvalidInputError: The payload is not one that `encode` makes.
        """
        message, data = bytes(payload[: self._message_bytes]), payload[self._message_bytes :]
        try:
            request = pb.Request.FromString(message)
            assembly = wire.Assembly(request.arrays, max_bytes=len(data))
            assembly.add([data])
            arrays = assembly.arrays()
            change = unpack_change(request.change, arrays)
        except (DecodeError, CarlsError) as error:
            raise InvalidInputError(f"record {self.sequence} holds no change: {error}") from error
        for array in arrays.values():
            array.flags.writeable = False
        return change


def encode(change: Change, sequence: int, *, mark: bytes, kept: int) -> list[Piece]:
    """Returns the pieces of a record in order; arrays are not copied.

    Raises:
      DtypeError: An array is of a dtype that is not sent.
    """
    header, arrays = pack_change(change)
    message = pb.Request(change=header, arrays=wire.describe(arrays)).SerializeToString()
    data = [piece for piece in map(wire.bytes_of, arrays.values()) if piece]
    num_bytes = len(message) + sum(map(len, data))
    checked = _REST.pack(sequence, kept, num_bytes, len(message)) + message
    digest = xxhash.xxh3_64(checked)
    for piece in data:
        digest.update(piece)
    return [_BEGIN.pack(mark, digest.intdigest()) + checked, *data]


def num_bytes_of(pieces: Sequence[Piece]) -> int:
    """Returns how long a record is."""
    return sum(map(len, pieces))


def read_head(data: bytes, *, mark: bytes) -> Head | None:
    """Returns the head of a record that may begin with some bytes; None: none begins there."""
    if len(data) < HEAD_BYTES:
        return None
    found, checksum = _BEGIN.unpack_from(data)
    checked = data[_BEGIN.size : HEAD_BYTES]
    sequence, kept, num_bytes, message_bytes = _REST.unpack(checked)
    if found != mark or message_bytes > num_bytes or not kept < sequence <= MAX_SEQUENCE:
        return None
    return Head(sequence, kept, num_bytes, message_bytes, checksum, checked)
