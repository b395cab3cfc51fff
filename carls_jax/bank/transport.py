"""How a client's requests reach a server: `Transport`, and the one that uses gRPC."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import grpc
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import status, tls, wire
from carls_jax.bank.access import Access
from carls_jax.bank.address import Address
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD, Frame, decode_reply, encode
from carls_jax.bank.pacing import client_metadata
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    AccessDeniedError,
    BankClosedError,
    BankInternalError,
    BankOverloadedError,
    BankTimeoutError,
    BankUnavailableError,
    CarlsError,
    InvalidInputError,
)

# A trusted server's reply; its requests are bounded instead.
MAX_REPLY_BYTES = 1 << 40

Answer: TypeAlias = tuple[pb.Reply, dict[str, NDArray[Any]]]

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", status.MAX_TRAILERS_BYTES),
    ("grpc.absolute_max_metadata_size", status.MAX_TRAILERS_BYTES),
    # A restarted server is found within a second; with gRPC's own choice it may take two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each bank object has a connection of its own, and never through a web proxy.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


_SILENT = "timed out before receiving SETTINGS"


class NoAnswerError(BankTimeoutError):
    """Says that a server was silent, in place of saying itself that something took too long."""


class Transport(Protocol):
    """Carries requests to one server. Methods are called from several threads at once."""

    def call(
        self,
        request: pb.Request,
        arrays: Arrays,
        *,
        timeout_s: float,
        expected_bytes: int | None = None,
    ) -> Answer:
        """Sends a request and returns the reply and its arrays.

        Args:
          request: What is asked; the array headers are filled in here.
          arrays: The arrays that go with it. They must not change meanwhile.
          timeout_s: Deadline of the call, in seconds.
          expected_bytes: About how large the reply's arrays will be; None: not known.

        Raises:
          BankUnavailableError: No server answers.
          BankTimeoutError: No reply within the deadline.
          BankClosedError: The transport was closed.
          CarlsError: What the server raised.
        """

    def close(self) -> None:
        """Lets go of the connection; calls under way end with BankClosedError."""


class GrpcTransport:
    """Carries requests by gRPC, in one message each way where they are small, else as streams.

    Methods may be called from several threads at once, in the process that made the object.

    Args:
      address: The server's.
      access: What a server at a TCP address is shown, and how it is made sure of.

    Raises:
      InvalidInputError: What is sent there could be read by others.
    """

    def __init__(self, address: Address, access: Access | None = None) -> None:
        self._address = address
        self._access = access or Access()
        own = client_metadata() if address.path else ()
        self._metadata = (*own, *self._access.metadata(address))
        self._process = os.getpid()
        self._closed = threading.Event()
        self._channel = self._access.open_channel(address, _OPTIONS)
        self._call: grpc.UnaryUnaryMultiCallable[Frame[pb.Request], Frame[pb.Reply]] = (
            self._channel.unary_unary(CALL_METHOD, encode, decode_reply)
        )
        self._stream: grpc.StreamStreamMultiCallable[Frame[pb.Request], Frame[pb.Reply]] = (
            self._channel.stream_stream(STREAM_METHOD, encode, decode_reply)
        )

    def call(
        self,
        request: pb.Request,
        arrays: Arrays,
        *,
        timeout_s: float,
        expected_bytes: int | None = None,
    ) -> Answer:
        self._check_usable()
        check_owner(self._address)
        del request.arrays[:]  # of an earlier attempt
        request.arrays.extend(wire.describe(arrays))
        is_small = (
            expected_bytes is not None
            and expected_bytes <= wire.FRAME_BYTES
            and wire.num_bytes(arrays) <= wire.FRAME_BYTES
        )
        send = self._send_call if is_small else self._send_stream
        try:
            return _assembled(send(request, arrays, timeout_s))
        except grpc.RpcError as error:
            raise self._translated(error, timeout_s) from error
        except ValueError as error:
            if not self._closed.is_set():
                raise
            # What gRPC raises when another thread closes the channel just before a call.
            raise BankClosedError("this bank was closed; connect again") from error

    def _send_call(
        self, request: pb.Request, arrays: Arrays, timeout_s: float
    ) -> Iterator[Frame[pb.Reply]]:
        pieces = list(itertools.chain.from_iterable(wire.cut(arrays)))
        yield self._call(Frame(request, pieces), timeout=timeout_s, metadata=self._metadata)

    def _send_stream(
        self, request: pb.Request, arrays: Arrays, timeout_s: float
    ) -> Iterator[Frame[pb.Reply]]:
        messages = itertools.chain([request], itertools.repeat(pb.Request()))
        frames = map(Frame, messages, wire.cut(arrays))
        return iter(self._stream(frames, timeout=timeout_s, metadata=self._metadata))

    def _check_usable(self) -> None:
        if self._closed.is_set():
            raise BankClosedError("this bank was closed; connect again")
        check_same_process(self._process)

    def _translated(self, error: grpc.RpcError, timeout_s: float) -> CarlsError:
        """Turns a failed call into one of our errors."""
        if raised := status.sent_error(error):
            is_refusal = isinstance(raised, AccessDeniedError) and not self._address.path
            return self._access.explained(raised) if is_refusal else raised
        if self._closed.is_set():
            return BankClosedError("this bank was closed during the call; connect again")
        kind = status.class_of(error.code())
        # A server that is stopped lets connect, and says nothing: gRPC calls that unavailable.
        is_silent = kind is BankUnavailableError and _SILENT in (error.details() or "")
        if kind is BankTimeoutError or is_silent:
            return NoAnswerError(
                f"the bank at {self._address} did not answer within {timeout_s:.3g} s"
            )
        if kind is BankUnavailableError:
            if not self._address.path and (cause := tls.why_not(self._address, self._access.tls)):
                return cause
            return BankUnavailableError(
                f"no bank answers at {self._address} ({error.details()}): start one with "
                f"`carls-jax bank --root DIRECTORY --address {self._address}`, or wait for it with "
                "wait_ready()"
            )
        told = kind(f"{self._address} answers {error.code().name}: {error.details()}")
        if isinstance(told, BankOverloadedError):  # too many calls are under way
            told.retry_after_s = 0.0
        return told

    def close(self) -> None:
        self._closed.set()
        if os.getpid() == self._process:
            self._channel.close()


def check_owner(address: Address) -> None:
    """Raises AccessDeniedError if another user may be who listens at a unix socket."""
    with suppress(FileNotFoundError):  # gRPC says so
        if address.path and (owner := os.stat(address.path).st_uid) not in (0, os.getuid()):
            raise AccessDeniedError(
                f"the socket {address.path} is of user {owner}, and no bank of yours: give another "
                "address, or use the bank as that user"
            )


def check_same_process(process: int) -> None:
    """Raises BankClosedError after a fork: neither gRPC's channels nor threads survive it."""
    if os.getpid() != process:
        raise BankClosedError(
            f"this bank was connected in process {process} and cannot be used after a fork: "
            "connect in each process, and start processes with 'spawn'"
        )


def _assembled(frames: Iterator[Frame[pb.Reply]]) -> Answer:
    first = next(frames, None)
    if first is None:
        raise BankInternalError("the server ended the call without a reply")
    later = itertools.chain.from_iterable(frame.pieces for frame in frames)
    return assembled(first.message, itertools.chain(first.pieces, later))


def assembled(reply: pb.Reply, pieces: Iterable[memoryview]) -> Answer:
    """Returns a reply and its arrays, copied from the pieces that carry them.

    Raises:
      BankInternalError: The bytes are not those that the headers say.
    """
    try:
        assembly = wire.Assembly(reply.arrays, max_bytes=MAX_REPLY_BYTES)
        assembly.add(pieces)
        return reply, assembly.arrays()
    except InvalidInputError as error:
        raise BankInternalError(f"the server's reply is malformed: {error}") from error
