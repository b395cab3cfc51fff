from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carls_jax.bank import frames
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.frames import Frame

# Lengths on both sides of where a varint grows to two and to three bytes.
DATA = st.binary(max_size=300) | st.sampled_from([127, 128, 16_383, 16_384]).map(bytes)
REQUESTS = st.builds(
    pb.Request,
    protocol_version=st.integers(0, 2**32 - 1),
    bank_id=st.text(max_size=200),
    lookup=st.none() | st.builds(pb.Lookup, fields=st.lists(st.text(max_size=50), max_size=5)),
)


@given(request=REQUESTS, pieces=st.lists(DATA, max_size=3))
def test_a_frame_is_encoded_as_protobuf_does(request: pb.Request, pieces: list[bytes]) -> None:
    raw = frames.encode(Frame(request, [memoryview(piece) for piece in pieces]))

    assert pb.RequestFrame.FromString(raw) == pb.RequestFrame(
        request=request if request.ByteSize() else None, data=b"".join(pieces)
    )


@given(request=REQUESTS, data=DATA)
def test_what_protobuf_encoded_is_read(request: pb.Request, data: bytes) -> None:
    frame = frames.decode_request(pb.RequestFrame(request=request, data=data).SerializeToString())

    assert frame.message == request
    assert b"".join(frame.pieces) == data


def test_a_reply_is_read_as_a_reply() -> None:
    reply = pb.Reply(incarnation="x", applied=pb.Applied(sequence=7))

    frame = frames.decode_reply(pb.ReplyFrame(reply=reply, data=b"abc").SerializeToString())

    assert frame.message == reply
    assert [bytes(piece) for piece in frame.pieces] == [b"abc"]
    assert frames.encode(Frame(pb.Reply())) == b""
    assert frames.decode_reply(b"") == Frame(pb.Reply(), [])


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12\x05abcd",  # four bytes of five
        b"\x1a\x01a",  # field 3
        b"\x10\x01",  # field 2 as a number
        b"\x12",  # no length
        b"\x12\x80",  # half a length
        b"\x12" + b"\x80" * 10**6,  # a length without end
    ],
)
def test_other_bytes_are_no_frame(raw: bytes) -> None:
    with pytest.raises(ValueError, match="no frame"):
        frames.decode_request(raw)
