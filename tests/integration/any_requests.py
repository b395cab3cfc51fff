"""Any request: messages with any fields, and frames with any bytes. Some of them are valid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.interface import PROTOCOL_VERSION
from tests.bank.stored_rows import EMBEDDINGS, LABELS, VOTES
from tests.integration.hostile_values import (
    bad_dtypes,
    bad_shapes,
    hostile_json,
    names,
    paths,
    uuids,
)
from tests.integration.malformed_requests import Draw, cut, framed, update

TABLES = ["graph/embeddings", "votes", "graph/embeddings", "labels", "empty"]
FIELDS = ["dense", "waiting", "small", "dense", "half", "vote", "belief", "label", "x"]
CLIENTS = ["", "a" * 32, "c" * 32]
# What a text may well be, by the name of its field; now and then it is any other.
KNOWN: dict[str, list[str]] = {
    "table": TABLES, "fields": FIELDS, "field": ["small", "label", "dense"],
    "if_newer_fields": FIELDS, "metadata": ["version", "step", "updated_at", "source", "clock"],
    "clock": ["main", "c1", "new"], "source": ["trainer", "maker/0", "new"],
    "sources": ["*", "!trainer", "trainer", "new"], "combine": ["sum", "mean"],
    "reason": ["limit", "expired"], "client": CLIENTS, "bank_id": ["", "", "b" * 32],
    "label": ["a", "b"], "name": ["a", "b", "full"], "owner": ["me", "you"],
    "uuid": ["1" * 32, "2" * 32], "uuids": ["1" * 32, "2" * 32],
    "spec_json": [json.dumps(one.to_dict()) for one in (VOTES, LABELS, EMBEDDINGS)],
}  # fmt: skip
HOSTILE = names | paths | uuids | hostile_json
NUMBERS = {
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from([0, 1, 7, 2**32 - 1]),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from([0, 1, 3, 2**20, 2**63, 2**64 - 1]),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from([-(2**63), -2, -1, 0, 1, 9, 2**63 - 1]),
    FieldDescriptor.CPPTYPE_DOUBLE: st.sampled_from([np.nan, np.inf, -1.0, 0.0, 0.5, 1.0, 1e300]),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
KINDS: dict[str, list[int]] = {
    "keys": [3], "held": [2], "value/dense": [3, 3], "value/half": [3, 8], "value/small": [3, 8],
    "value/waiting": [3, 2], "value/label": [3], "value/vote": [3], "value/belief": [3, 2],
    "value/x": [3],
}  # fmt: skip
DTYPES = {"keys": "int64", "held": "int64", "value/half": "uint8", "value/small": "uint8"}
DTYPES |= {"value/label": "int64", "value/vote": "int8", "value/belief": "float64"}


def _value(draw: Draw, field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        return any_message(draw, field.message_type, depth + 1)
    if field.cpp_type in NUMBERS:
        return draw(NUMBERS[field.cpp_type])
    return draw(st.sampled_from(KNOWN[field.name]) if draw(st.integers(0, 9)) else HOSTILE)


def any_message(draw: Draw, kind: Descriptor, depth: int = 0) -> Message:
    """Draws a message, in which each field is there or not."""
    made: Any = getattr(pb, kind.name)()
    oneof = kind.oneofs[0] if kind.oneofs else None
    chosen = (
        draw(st.sampled_from(list(oneof.fields))) if oneof and draw(st.integers(0, 9)) else None
    )
    for field in kind.fields:
        if field.name == "arrays" or (oneof and field.containing_oneof is oneof):
            continue
        if draw(st.integers(0, 3)):
            _set(draw, made, field, depth)
    if chosen is not None:
        _set(draw, made, chosen, depth)
    return made  # type: ignore[no-any-return]


def _set(draw: Draw, made: Any, field: FieldDescriptor, depth: int) -> None:
    if field.is_repeated:
        number = draw(st.integers(0, 2))
        values = [_value(draw, field, depth) for _ in range(number)]
        getattr(made, field.name).extend(values)
    elif field.message_type is not None:
        getattr(made, field.name).CopyFrom(_value(draw, field, depth))
        getattr(made, field.name).SetInParent()
    else:
        setattr(made, field.name, _value(draw, field, depth))


@st.composite
def any_frames(draw: Draw) -> tuple[list[bytes], str]:
    """Draws a request of any fields and arrays."""
    asked: Any = any_message(draw, pb.Request.DESCRIPTOR)
    asked.protocol_version = PROTOCOL_VERSION
    for author in _authors(asked):
        author.updated_at = author.updated_at or 1.0
    data = b""
    arrays = {"keys"} if draw(st.integers(0, 9)) else set()
    if asked.WhichOneof("call") == "change" or not draw(st.integers(0, 4)):
        arrays |= draw(st.sets(st.sampled_from(list(KINDS)), max_size=2))
    for name in sorted(arrays):
        data += _add_array(draw, asked, name)
    return cut(draw, asked, data), draw(st.sampled_from(["call", "stream"]))


def _authors(asked: Any) -> list[Any]:
    return [asked.change.author] if asked.WhichOneof("call") == "change" else []


def _add_array(draw: Draw, asked: Any, name: str) -> bytes:
    shape = KINDS[name] if draw(st.integers(0, 19)) else draw(bad_shapes)
    dtype = DTYPES.get(name, "float32") if draw(st.integers(0, 19)) else draw(bad_dtypes)
    asked.arrays.add(name=name, dtype=dtype, shape=shape)
    if shape is not KINDS[name]:
        return b"x" * draw(st.integers(0, 99))
    try:
        return np.ones(shape, dtype).tobytes()
    except (TypeError, ValueError):
        return b"x" * draw(st.integers(0, 99))


@st.composite
def mutated_frames(draw: Draw) -> tuple[list[bytes], str]:
    """Draws the bytes of a valid request, and alters some of its message, its data or its frame."""
    asked, sent = update()
    message, data = asked.SerializeToString(), b"".join(one[3] for one in sent)
    part = draw(st.integers(0, 2))
    if part == 2:
        return [_mutated(draw, framed(asked, sent))], "call"
    message, data = (_mutated(draw, message), data) if part else (message, _mutated(draw, data))
    return [b"\x0a%c%b\x12%c%b" % (len(message), message, len(data), data)], "call"


def _mutated(draw: Draw, raw: bytes) -> bytes:
    altered = bytearray(raw)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(altered)))
        new = draw(st.binary(max_size=3))
        longer = draw(st.sampled_from([0, 0, 0, 1, -1]))
        altered[start : start + len(new) + longer] = new
    return bytes(altered)


garbage = st.tuples(
    st.lists(st.binary(max_size=60), max_size=3), st.sampled_from(["call", "stream"])
)
