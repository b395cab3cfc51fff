from __future__ import annotations

import itertools
import logging
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.access import Access
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD
from carls_jax.bank.interface import PROTOCOL_VERSION
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.staging import Staging
from carls_jax.bank.tokens import Token
from carls_jax.errors import AccessDeniedError, InvalidInputError

TOKEN = "right-token-" + "t" * 20
WRONG = "wrong-token-" + "w" * 20
HELLO = pb.RequestFrame(
    request=pb.Request(protocol_version=PROTOCOL_VERSION, hello=pb.Hello())
).SerializeToString()


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        yield bank


@pytest.fixture
def server(bank: LocalBank) -> Iterator[BankServer]:
    with BankServer(bank, "127.0.0.1:0", token=TOKEN, max_workers=1) as server:
        yield server


@pytest.fixture
def channel(server: BankServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def calls(channel: grpc.Channel) -> list[Any]:
    """Returns all that a server answers to, each with a request that is as it should be."""
    health = health_pb2.HealthCheckRequest()
    stub = health_pb2_grpc.HealthStub(channel)
    return [
        lambda **more: channel.unary_unary(CALL_METHOD)(HELLO, **more),
        lambda **more: next(channel.stream_stream(STREAM_METHOD)(iter([HELLO]), **more)),
        lambda **more: stub.Check(health, **more),
        lambda **more: next(stub.Watch(health, **more)),
    ]


def test_whoever_shows_the_token_is_served(channel: grpc.Channel) -> None:
    for call in calls(channel):
        assert call(timeout=10, metadata=Token(TOKEN).metadata)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), "and none was sent"),
        (Token(WRONG).metadata, "not with the one that was sent"),
        ((("authorization", TOKEN),), "not with the one that was sent"),
        (Token(TOKEN).metadata * 2, "not with the one that was sent"),
        ((("authorization-bin", f"Bearer {TOKEN}".encode()),), "and none was sent"),
    ],
)
def test_nobody_else_is_whatever_is_called(
    channel: grpc.Channel, metadata: Any, expected: str
) -> None:
    nothing = channel.unary_unary("/carls_jax.bank.KnowledgeBank/Nothing")
    for call in [*calls(channel), lambda **more: nothing(b"", **more)]:
        with pytest.raises(grpc.RpcError) as caught:
            call(timeout=10, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert caught.value.details() == f"the bank is open to those with its token, {expected}"


def test_a_refused_request_is_not_read(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object) -> None:
        raise AssertionError("a request without a token was read")

    monkeypatch.setattr(Staging, "answer", answer)
    # Neither bytes that are no request nor a call without any get farther.
    for requests in ([b"\xff" * 1000], [HELLO], []):
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(STREAM_METHOD)(iter(requests), timeout=10))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_those_without_a_token_hold_no_thread(channel: grpc.Channel) -> None:
    never: queue.Queue[bytes | None] = queue.Queue()
    held = [
        channel.stream_stream(method)(iter(never.get, None))
        for method in (STREAM_METHOD, CALL_METHOD, "/grpc.health.v1.Health/Check") * 8
    ]
    # The server has one thread.
    assert calls(channel)[0](timeout=10, metadata=Token(TOKEN).metadata)
    for call in held:
        assert call.code() is grpc.StatusCode.PERMISSION_DENIED
        never.put(None)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "none was sent; this client showed no token: connect with token_file=.*TOKEN_FILE"),
        (Token(WRONG, "CARLS_TOKEN"), "not with the one.*showed the token of CARLS_TOKEN: connect"),
    ],
)
def test_a_client_is_told_at_once_and_no_token_is_shown(
    server: BankServer, token: Token | None, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RemoteBank(server.address, access=Access(token), timeout_s=600) as remote:
        for call in (remote.stats, remote.wait_ready, lambda: remote.identity, remote.snapshots):
            with pytest.raises(AccessDeniedError, match=expected) as caught:
                call()
            told = f"{caught.value} {caught.value!r} {caught.value.__cause__} {remote!r}"
            assert not any(one in told + caplog.text for one in (WRONG, TOKEN))


def test_refusals_do_not_fill_the_log(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    for call in itertools.chain(*itertools.repeat(calls(channel), 5)):
        with pytest.raises(grpc.RpcError):
            call(timeout=10, metadata=Token(WRONG).metadata)
    (line,) = [one for one in caplog.messages if "refused" in one]
    assert line.startswith("refused 1 calls without the right token, the last of ipv4:127.0.0.1:")


def test_a_tcp_port_needs_a_token(bank: LocalBank) -> None:
    for address in ("127.0.0.1:0", "localhost:0", "[::1]:0"):
        with pytest.raises(InvalidInputError, match="so it needs a token: give token="):
            BankServer(bank, address)
    with pytest.raises(InvalidInputError, match=r"the token of token=\.\.\. is none"):
        BankServer(bank, "127.0.0.1:0", token="short")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "bank.example:0", "192.0.2.1:0"])
def test_beyond_this_machine_a_server_says_both_ways_out(bank: LocalBank, address: str) -> None:
    with pytest.raises(InvalidInputError, match=r"without TLS.*--tls-cert.*--insecure") as caught:
        BankServer(bank, address, token=TOKEN)
    assert TOKEN not in str(caught.value)


def test_beyond_this_machine_one_may_say_that_it_is_insecure(bank: LocalBank) -> None:
    with BankServer(bank, "0.0.0.0:0", token=TOKEN, insecure=True) as server:
        port = server.address.rpartition(":")[2]
        with RemoteBank(f"127.0.0.1:{port}", access=Access(Token(TOKEN))) as remote:
            assert remote.stats().tables == {}


def test_a_unix_socket_takes_no_token(bank: LocalBank, tmp_path: Any) -> None:
    with pytest.raises(InvalidInputError, match="is its owner's alone, so leave out token"):
        BankServer(bank, f"unix:{tmp_path}/socket", token=TOKEN)
    assert not (tmp_path / "socket").exists()
