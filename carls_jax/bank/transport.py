"""How a client's requests reach a server: `Transport`, and the one that uses gRPC."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import grpc
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import status, wire
from carls_jax.bank.address import Address
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD, Frame, decode_reply, encode
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    BankClosedError,
    BankInternalError,
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
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._process = os.getpid()
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(str(address), options=_OPTIONS)
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
        yield self._call(Frame(request, pieces), timeout=timeout_s)

    def _send_stream(
        self, request: pb.Request, arrays: Arrays, timeout_s: float
    ) -> Iterator[Frame[pb.Reply]]:
        messages = itertools.chain([request], itertools.repeat(pb.Request()))
        frames = map(Frame, messages, wire.cut(arrays))
        return iter(self._stream(frames, timeout=timeout_s))

    def _check_usable(self) -> None:
        if self._closed.is_set():
            raise BankClosedError("this bank was closed; connect again")
        check_same_process(self._process)

    def _translated(self, error: grpc.RpcError, timeout_s: float) -> CarlsError:
        """Turns a failed call into one of our errors."""
        if sent := status.sent_class(error):
            return sent(error.details())
        if self._closed.is_set():
            return BankClosedError("this bank was closed during the call; connect again")
        kind = status.class_of(error.code())
        if kind is BankTimeoutError:
            return BankTimeoutError(
                f"the bank at {self._address} did not answer within {timeout_s:.3g} s"
            )
        if kind is BankUnavailableError:
            return BankUnavailableError(
                f"no bank answers at {self._address} ({error.details()}): start one with "
                f"`carls-jax bank --root DIRECTORY --address {self._address}`, or wait for it with "
                "wait_ready()"
            )
        return kind(f"{self._address} answers {error.code().name}: {error.details()}")

    def close(self) -> None:
        self._closed.set()
        if os.getpid() == self._process:
            self._channel.close()


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
