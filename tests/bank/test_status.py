from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carls_jax import errors
from carls_jax.bank import changes, status
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.address import parse_address
from carls_jax.bank.changes import Change
from carls_jax.bank.frames import SERVICE_NAME
from carls_jax.bank.interface import PROTOCOL_VERSION, Applied
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.transport import GrpcTransport

ERRORS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


class FailingBank(LocalBank):
    """Fails to apply anything."""

    failure: Exception

    def apply(self, change: Change) -> Applied:
        raise self.failure


@pytest.fixture(params=[0, 8], ids=["grpc", "same_host"])
def failing(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[FailingBank, RemoteBank]]:
    with (
        FailingBank() as bank,
        BankServer(bank, f"unix:{tmp_path}/s", max_same_host_connections=request.param) as server,
        RemoteBank(server.address, timeout_s=2.0) as remote,
    ):
        yield bank, remote


def end(frame: pb.RequestFrame, context: grpc.ServicerContext) -> pb.ReplyFrame:
    """Ends a call with the code that the request names, as gRPC itself would."""
    context.abort(grpc.StatusCode[frame.request.bank_id], "why")


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcTransport]:
    address = f"unix:{tmp_path_factory.mktemp('ending')}/s"
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        end, pb.RequestFrame.FromString, pb.ReplyFrame.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Call": handler}),)
    )
    server.add_insecure_port(address)
    server.start()
    transport = GrpcTransport(parse_address(address))
    yield transport
    transport.close()
    server.stop(0).wait()


@pytest.mark.parametrize("cls", sorted({*ERRORS} - {errors.BankClosedError}, key=str))
def test_an_error_arrives_as_it_was_raised(
    failing: tuple[FailingBank, RemoteBank], cls: type[errors.CarlsError]
) -> None:
    bank, remote = failing
    bank.failure = cls("näme='x': allowed are 1 % and 2\nand 3")

    with pytest.raises(errors.CarlsError) as caught:
        remote.advance(1)

    assert type(caught.value) is cls
    assert str(caught.value) == "näme='x': allowed are 1 % and 2\nand 3"


def test_a_bank_closed_under_its_server_is_away(failing: tuple[FailingBank, RemoteBank]) -> None:
    bank, remote = failing
    bank.failure = errors.BankClosedError("closed")

    with pytest.raises(errors.BankUnavailableError, match="server is stopping"):
        remote.advance(1)


def test_a_long_message_arrives_shortened(failing: tuple[FailingBank, RemoteBank]) -> None:
    bank, remote = failing
    bank.failure = errors.ShapeError("𝛼" * 100_000)

    with pytest.raises(errors.ShapeError, match=r"^𝛼{2000} … \(100000 letters\)$"):
        remote.advance(1)


def test_a_defect_of_the_server_is_logged_there_and_named(
    failing: tuple[FailingBank, RemoteBank], caplog: pytest.LogCaptureFixture
) -> None:
    bank, remote = failing
    bank.failure = ZeroDivisionError("by zero")

    with (
        caplog.at_level(logging.ERROR, "carls_jax.bank.status"),
        pytest.raises(errors.BankInternalError, match="ZeroDivisionError: by zero"),
    ):
        remote.advance(1)

    assert "in apply" in caplog.text  # the traceback


@given(message=st.text(), cls=st.sampled_from(sorted(ERRORS, key=str)))
def test_an_error_travels_as_bytes(message: str, cls: type[errors.CarlsError]) -> None:
    error = status.unpack_error(status.pack_error(cls(message)))

    assert type(error) is cls
    assert str(error) == message


@given(raw=st.binary())
def test_bytes_that_are_no_known_error_are_the_servers_defect(raw: bytes) -> None:
    assert type(status.unpack_error(b"Unheard of" + raw)) is errors.BankInternalError


@pytest.mark.parametrize("code", CODES)
def test_a_bare_code_becomes_an_error(ending: GrpcTransport, code: grpc.StatusCode) -> None:
    with pytest.raises(errors.CarlsError) as caught:
        ending.call(pb.Request(bank_id=code.name), {}, timeout_s=10.0, expected_bytes=0)
    assert isinstance(caught.value, status.class_of(code))
    assert isinstance(caught.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("UNAVAILABLE", errors.BankUnavailableError),
        ("DEADLINE_EXCEEDED", errors.BankTimeoutError),
        ("UNIMPLEMENTED", errors.ProtocolMismatchError),
        ("RESOURCE_EXHAUSTED", errors.BankOverloadedError),
        ("UNAUTHENTICATED", errors.AccessDeniedError),
        ("UNKNOWN", errors.BankInternalError),
    ],
)
def test_codes_that_grpc_sends_mean(code: str, cls: type[errors.CarlsError]) -> None:
    assert status.class_of(grpc.StatusCode[code]) is cls


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.ShapeError, "INVALID_ARGUMENT"),
        (errors.TableNotFoundError, "NOT_FOUND"),
        (errors.BankFullError, "RESOURCE_EXHAUSTED"),
        (errors.BankIdentityError, "FAILED_PRECONDITION"),
        (errors.AccessDeniedError, "PERMISSION_DENIED"),
        (errors.BankInternalError, "INTERNAL"),
        (errors.LaunchError, "UNKNOWN"),
    ],
)
def test_other_programs_see_the_code_of(cls: type[errors.CarlsError], code: str) -> None:
    assert status.code_of(cls()) is grpc.StatusCode[code]


@pytest.mark.parametrize("seconds", [0.0, 0.25, 59.999])
def test_when_to_try_again_travels(failing: tuple[FailingBank, RemoteBank], seconds: float) -> None:
    bank, remote = failing
    bank.failure = errors.BankOverloadedError("too much", retry_after_s=seconds)

    advance = changes.advance(by=changes.author(step=1))
    request = pb.Request(protocol_version=PROTOCOL_VERSION, change=advance.header)

    with pytest.raises(errors.BankOverloadedError, match="too much") as caught:
        remote._transport.call(request, {}, timeout_s=10.0, expected_bytes=0)

    assert caught.value.retry_after_s == seconds


def test_what_is_no_use_to_try_again_says_so(failing: tuple[FailingBank, RemoteBank]) -> None:
    bank, remote = failing
    bank.failure = errors.BankOverloadedError("too much")

    with pytest.raises(errors.BankOverloadedError) as caught:
        remote.advance(1)

    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("told", ["", "soon", "nan", "inf", "-1e999"])
def test_a_time_that_is_none_is_left_out(told: str) -> None:
    error = status.unpack_error(f"BankOverloadedError {told}\ntoo much".encode())

    assert isinstance(error, errors.BankOverloadedError)
    assert (str(error), error.retry_after_s) == ("too much", None)


def test_too_many_calls_may_be_tried_again(ending: GrpcTransport) -> None:
    with pytest.raises(errors.BankOverloadedError) as caught:
        ending.call(pb.Request(bank_id="RESOURCE_EXHAUSTED"), {}, timeout_s=10.0, expected_bytes=0)

    assert caught.value.retry_after_s == 0.0
