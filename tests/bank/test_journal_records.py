from __future__ import annotations

import dataclasses

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change
from carls_jax.bank.journal_records import HEAD_BYTES, Head, encode, num_bytes_of, read_head
from carls_jax.bank.specs import DTYPES
from carls_jax.errors import DtypeError, InvalidInputError
from tests.bank.journals import BY, a_change, same

MARK = b"\x00\xffmarked"
VALUES = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
    ),
    max_size=5,
)


def whole(change: Change, sequence: int = 7, *, kept: int = 5) -> bytes:
    return b"".join(encode(change, sequence, mark=MARK, kept=kept))


def head_of(data: bytes) -> Head:
    head = read_head(data[:HEAD_BYTES], mark=MARK)
    assert head is not None
    return head


def payload_of(data: bytes) -> memoryview:
    return memoryview(data)[HEAD_BYTES:]


@given(values=VALUES, keys=hnp.arrays(np.int64, st.integers(0, 5)))
def test_a_change_comes_back_as_it_was(values: dict[str, np.ndarray], keys: np.ndarray) -> None:
    change = changes.update("t", keys, values, by=BY)

    data = whole(change)
    head = head_of(data)

    assert (head.sequence, head.kept, head.num_bytes) == (7, 5, len(data) - HEAD_BYTES)
    assert head.fits(payload_of(data))
    assert same(head.change(payload_of(data)), change)


def test_arrays_are_not_copied_on_the_way_out() -> None:
    change = a_change(3, num_rows=100)

    pieces = encode(change, 3, mark=MARK, kept=2)

    assert num_bytes_of(pieces) == len(whole(change))
    shared = [np.frombuffer(piece, np.uint8) for piece in pieces[1:]]
    assert [np.shares_memory(shared[0], change.keys)] == [True]
    assert np.shares_memory(shared[1], change.values["w"])


def test_arrays_that_were_read_need_no_copy_to_be_applied() -> None:
    data = whole(a_change(3))

    read = head_of(data).change(payload_of(data))
    own = read.copy(updated_at=1.0)

    assert own.keys is read.keys
    assert own.values["w"] is read.values["w"]
    with pytest.raises(ValueError, match="read-only"):
        read.keys[0] = 1


def test_any_other_byte_does_not_fit() -> None:
    data = whole(a_change(3))
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 0x10
        head = read_head(bytes(altered[:HEAD_BYTES]), mark=MARK)
        assert head is None or not head.fits(payload_of(bytes(altered)))


@pytest.mark.parametrize(("sequence", "kept"), [(7, 7), (0, 0), (1 << 63, 4)])
def test_a_head_that_cannot_be_is_none(sequence: int, kept: int) -> None:
    data = whole(a_change(3), sequence, kept=kept)
    assert read_head(data[:HEAD_BYTES], mark=MARK) is None


def test_a_head_of_another_segment_or_cut_short_is_none() -> None:
    data = whole(a_change(3))
    assert read_head(data[:HEAD_BYTES], mark=b"another.") is None
    assert read_head(data[: HEAD_BYTES - 1], mark=MARK) is None


def test_what_cannot_be_sent_cannot_be_recorded() -> None:
    change = changes.update("t", np.array([1]), {"w": np.array([None])}, by=BY)
    with pytest.raises(DtypeError, match=r"'value/w' has dtype 'object'"):
        encode(change, 7, mark=MARK, kept=6)


FORGED = [
    pb.Request(arrays=[pb.ArrayHeader(name="keys", dtype="object", shape=[1])]),
    pb.Request(arrays=[pb.ArrayHeader(name="keys", dtype="int64", shape=[1 << 40])]),
    pb.Request(arrays=[pb.ArrayHeader(name="keys", dtype="int64", shape=[-1])]),
    pb.Request(arrays=[pb.ArrayHeader(name="elsewhere", dtype="int64", shape=[1])]),
    pb.Request(arrays=[pb.ArrayHeader(name="keys", dtype="int64", shape=[2])]),
    pb.Request(),
]


@pytest.mark.parametrize("message", [one.SerializeToString() for one in FORGED] + [b"\xff\xff"])
def test_a_forged_payload_is_refused_before_memory_is_given_to_it(message: bytes) -> None:
    payload = memoryview(message + bytes(8))
    head = dataclasses.replace(head_of(whole(a_change(3))), _message_bytes=len(message))
    with pytest.raises(InvalidInputError, match="record 7 holds no change"):
        head.change(payload)
