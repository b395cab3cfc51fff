"""`SameHostTransport`: carries requests to a server of this machine through shared memory."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from google.protobuf.message import DecodeError

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import same_host_handshake, status, wire
from carls_jax.bank.access import Access
from carls_jax.bank.address import Address
from carls_jax.bank.same_host_connection import (
    MAX_MESSAGE_BYTES,
    Connection,
    Kind,
    LinkError,
    LinkTimeoutError,
)
from carls_jax.bank.same_host_segment import IS_SUPPORTED
from carls_jax.bank.transport import (
    Answer,
    GrpcTransport,
    NoAnswerError,
    Transport,
    assembled,
    check_same_process,
)
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    BankClosedError,
    BankInternalError,
    BankUnavailableError,
    CarlsError,
)

# The server answers a new connection at once, or there is none to answer.
HANDSHAKE_S = 1.0
# After a connection was refused, until the next is tried for.
RETRY_S = 1.0

_logger = logging.getLogger(__name__)


def open_transport(address: Address, access: Access | None = None) -> Transport:
    """Returns what carries requests to an address: shared memory where it can be had, and gRPC."""
    by_grpc = GrpcTransport(address, access)
    if not (IS_SUPPORTED and address.same_host_path):
        return by_grpc
    return SameHostTransport(address, otherwise=by_grpc)


class SameHostTransport:
    """Carries requests through memory shared with a server, and otherwise as told.

    Each call under way has a connection of its own, which later calls use again; one whose call
    timed out is closed, so that no call gets another's answer. A request that no connection can
    carry goes by the other transport. Methods may be called from several threads at once, in the
    process that made the object.

    Args:
      address: The server's; it has a `same_host_path`.
      otherwise: Carries the requests that cannot be carried so; closed with this object.
    """

    def __init__(self, address: Address, *, otherwise: Transport) -> None:
        self._address = address
        self._otherwise = otherwise
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._numbers = itertools.count(1)
        self._retry_at = 0.0
        self._is_closed = False

    def call(
        self,
        request: pb.Request,
        arrays: Arrays,
        *,
        timeout_s: float,
        expected_bytes: int | None = None,
    ) -> Answer:
        check_same_process(self._process)
        deadline = time.monotonic() + timeout_s
        try:
            answer = self._exchange(request, arrays, deadline)
        except LinkTimeoutError as error:
            raise NoAnswerError(
                f"the bank at {self._address} did not answer within {timeout_s:.3g} s"
            ) from error
        except LinkError as error:
            raise self._broken(error) from error
        if answer is None:
            left_s = max(deadline - time.monotonic(), 0.001)
            return self._otherwise.call(
                request, arrays, timeout_s=left_s, expected_bytes=expected_bytes
            )
        if isinstance(answer, CarlsError):
            raise answer
        return answer

    def close(self) -> None:
        self._is_closed = True
        if os.getpid() == self._process:
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                connection.shut()
            while self._idle:
                self._drop(self._idle.pop())
        self._otherwise.close()

    def _exchange(
        self, request: pb.Request, arrays: Arrays, deadline: float
    ) -> Answer | CarlsError | None:
        """Has a request answered; None: no connection could carry it, and nothing was done."""
        del request.arrays[:]  # of an earlier attempt
        request.arrays.extend(wire.describe(arrays))
        message = request.SerializeToString()
        if len(message) > MAX_MESSAGE_BYTES:
            return None
        while connection := self._take(deadline):
            with suppress(_UndeliveredError), self._borrowed(connection):
                connection.deadline = deadline
                number = next(self._numbers)
                _deliver(connection, number, message, arrays)
                return _received(connection, number)
        return None

    def _take(self, deadline: float) -> Connection | None:
        """Returns a connection that nobody else uses, or None if there is none to be had."""
        with suppress(IndexError):
            return self._idle.pop()
        now = time.monotonic()
        if self._is_closed or now < self._retry_at:
            return None
        try:
            wait_s = max(min(HANDSHAKE_S, deadline - now), 0.001)
            connection = same_host_handshake.connect(self._address.same_host_path, timeout_s=wait_s)
        except OSError as error:
            _logger.debug("%s shares no memory: %s", self._address, error)
            self._retry_at = time.monotonic() + RETRY_S
            return None
        with self._lock:
            self._connections.add(connection)
        return connection

    @contextmanager
    def _borrowed(self, connection: Connection) -> Iterator[None]:
        """Keeps a connection for later calls if the block succeeds, else lets go of it."""
        try:
            yield
        except BaseException:
            self._drop(connection)
            raise
        self._idle.append(connection)
        if self._is_closed:
            self.close()

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _broken(self, error: LinkError) -> CarlsError:
        if self._is_closed:
            return BankClosedError("this bank was closed during the call; connect again")
        return BankUnavailableError(
            f"the bank at {self._address} went away during the call, which it may have done or "
            f"not ({error}): wait for it with wait_ready()"
        )


class _UndeliveredError(Exception):
    """Says that the server did not get a whole request, so it did nothing."""


def _deliver(connection: Connection, number: int, message: bytes, arrays: Arrays) -> None:
    try:
        connection.send(Kind.REQUEST, number, message, arrays)
    except LinkTimeoutError:
        raise
    except LinkError as error:
        raise _UndeliveredError from error


def _received(connection: Connection, number: int) -> Answer | CarlsError:
    """Returns what a server answers to a call: a reply, or the error that it raised."""
    packet = connection.receive()
    if packet.call != number:
        raise LinkError(f"{packet} in place of the answer to call {number}")
    message, pieces = connection.content(packet)
    if packet.kind is Kind.FAILURE:
        return status.unpack_error(message)
    if packet.kind is not Kind.REPLY:
        raise LinkError(f"{packet} in place of a reply")
    try:
        reply = pb.Reply.FromString(message)
    except DecodeError as error:
        raise BankInternalError(f"the server's reply is malformed: {error}") from error
    return assembled(reply, pieces)
