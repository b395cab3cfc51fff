"""Real clients that stop in the middle; the servers have one thread, which they would hold."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD
from carls_jax.bank.interface import PROTOCOL_VERSION
from carls_jax.bank.local import LocalBank
from carls_jax.bank.patience import MIN_BYTES_PER_S, Patience, Turn
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import DEFAULT_STAGED_BYTES, BankServer
from carls_jax.bank.specs import Field, TableSpec

NUM_ROWS = 4000
WIDTH = 1024
NO_BYTES = pb.RequestFrame()


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        bank.table(TableSpec("t", {"x": Field((WIDTH,))}))
        yield bank


@pytest.fixture
def server(bank: LocalBank, tmp_path: Path) -> Iterator[BankServer]:
    options = {"max_workers": 1, "max_same_host_connections": 0}
    with BankServer(bank, f"unix:{tmp_path}/s", max_stall_s=0.4, **options) as server:
        yield server


@pytest.fixture
def channel(server: BankServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def serves(server: BankServer) -> bool:
    with RemoteBank(server.address, timeout_s=60) as remote:
        return len(remote.stats().tables) == 1


def lookup(num_keys: int) -> pb.RequestFrame:
    """Returns the request for so many rows, without its keys."""
    request = pb.Request(
        protocol_version=PROTOCOL_VERSION,
        lookup=pb.Lookup(table="t", fields=["x"]),
        arrays=[pb.ArrayHeader(name="keys", dtype="int64", shape=[num_keys])],
    )
    return pb.RequestFrame(request=request)


def stream(channel: grpc.Channel, frames: Iterator[pb.RequestFrame], method: str) -> grpc.Call:
    encode = pb.RequestFrame.SerializeToString
    return channel.stream_stream(method, encode, pb.ReplyFrame.FromString)(frames)


@pytest.mark.parametrize("method", [CALL_METHOD, STREAM_METHOD])
def test_a_call_that_sends_nothing_ends(
    server: BankServer, channel: grpc.Channel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    never: queue.Queue[pb.RequestFrame | None] = queue.Queue()
    call = stream(channel, iter(never.get, None), method)
    assert serves(server)
    assert call.code() is grpc.StatusCode.CANCELLED
    assert "its client stopped in the middle" in caplog.text
    never.put(None)


def test_a_call_that_stops_in_the_middle_ends_and_what_it_held_is_free(
    server: BankServer, channel: grpc.Channel
) -> None:
    frames: queue.Queue[pb.RequestFrame | None] = queue.Queue()
    frames.put(lookup(DEFAULT_STAGED_BYTES // 8))  # all that may be staged
    call = stream(channel, iter(frames.get, None), STREAM_METHOD)
    assert serves(server)
    assert call.code() is grpc.StatusCode.CANCELLED
    frames.put(None)
    with RemoteBank(server.address) as remote:
        remote.table("t").lookup(np.arange(1000), metadata=["source"])


def test_a_call_that_sends_frames_for_ever_and_no_bytes_ends(
    server: BankServer, channel: grpc.Channel
) -> None:
    call = stream(channel, itertools.chain([lookup(8)], itertools.repeat(NO_BYTES)), STREAM_METHOD)
    assert call.code() is grpc.StatusCode.CANCELLED
    assert serves(server)


def test_a_client_that_does_not_take_its_answer_is_left(
    server: BankServer, channel: grpc.Channel, bank: LocalBank
) -> None:
    keys = np.arange(NUM_ROWS)
    bank.table("t").load(keys, {"x": np.ones((NUM_ROWS, WIDTH), np.float32)})
    frames = [lookup(NUM_ROWS), pb.RequestFrame(data=keys.tobytes())]
    call = stream(channel, iter(frames), STREAM_METHOD)
    first = next(call)  # of 16 MB
    assert first.reply.WhichOneof("answer") == "looked_up"
    assert serves(server)
    with pytest.raises(grpc.RpcError):
        list(call)
    assert call.code() is grpc.StatusCode.CANCELLED


def test_who_is_slow_but_goes_on_is_waited_for() -> None:
    class Context:
        def peer(self) -> str:
            return "me"

    patience = Patience(60.0)
    turn = Turn(patience, Context())
    left = []
    for _ in range(3):
        turn._left_s -= 30.0  # as if it had been waited for so long
        turn.moved(29 * MIN_BYTES_PER_S)
        left.append(turn._left_s)
    assert left == [59.0, 58.0, 57.0]
    turn.moved(1 << 40)
    assert turn._left_s == 60.0
    patience.stop()
