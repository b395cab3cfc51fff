"""`BankServer`: offers a bank to other processes, by gRPC and, on one machine, shared memory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from types import TracebackType
from typing import TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import service, status, wire
from carls_jax.bank.address import parse_address
from carls_jax.bank.frames import SERVICE_NAME, Frame, decode_request, encode
from carls_jax.bank.interface import Bank
from carls_jax.bank.listening import listen
from carls_jax.bank.same_host_server import DEFAULT_CONNECTIONS, offer
from carls_jax.bank.staging import Staging
from carls_jax.errors import CarlsError

# Threads wait for table locks and for clients' frames, so there are more of them than cores.
DEFAULT_WORKERS = 16
DEFAULT_STAGED_BYTES = 1 << 30
# A frame's array bytes, and its message, which holds no arrays.
MAX_FRAME_BYTES = 8 << 20

_logger = logging.getLogger(__name__)
_Handler: TypeAlias = "grpc.RpcMethodHandler[Frame[pb.Request], Frame[pb.Reply]]"


class BankServer:
    """Serves a bank at an address, from construction until `stop`, or to the end of a `with` block.

    The bank stays the caller's to close, after the server. Methods may be called from several
    threads at once.

    Args:
      bank: What is served, usually a `LocalBank`.
      address: "host:port", where port 0 is a free one, or "unix:/path". A socket is open to its
        owner alone (mode 0600), and its directory is made if it is not there.
      max_workers: Requests that are worked on at once; more wait.
      max_staged_bytes: Bytes of arrays that all requests together may hold in memory while they
        arrive. A request beyond is refused with BankOverloadedError.
      max_same_host_connections: Connections of clients on this machine, at a unix address: one for
        each call under way, and one for each client that reads tables in the server's memory.
        Further ones use gRPC, as all do with 0. Each takes 2 MiB.

    Raises:
      InvalidInputError: The address is malformed, or no address of this machine.
      AddressInUseError: A live server, or another file, is at the address.
    """

    def __init__(
        self,
        bank: Bank,
        address: str,
        *,
        max_workers: int = DEFAULT_WORKERS,
        max_staged_bytes: int = DEFAULT_STAGED_BYTES,
        max_same_host_connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers, thread_name_prefix="bank-server"),
            options=[
                ("grpc.so_reuseport", 0),  # otherwise two servers could share a port unnoticed
                ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
                ("grpc.max_send_message_length", -1),
            ],
        )
        staging = Staging(bank, max_bytes=max_staged_bytes)
        self._server.add_generic_rpc_handlers((_Servicer(staging).handler(),))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._address = listen(self._server, parse_address(address))
        self._same_host = offer(
            staging,
            self._address.same_host_path,
            max_connections=max_same_host_connections,
        )
        self._server.start()
        for name in ("", SERVICE_NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _logger.info("bank %s listens at %s", bank.identity.bank_id, self.address)

    @property
    def address(self) -> str:
        """The address that clients give to `connect`, with the port that was chosen."""
        return str(self._address)

    def stop(self, grace_s: float = 5.0) -> None:
        """Takes no more requests, lets those under way end for so long, and frees the address."""
        self._health.enter_graceful_shutdown()
        if self._same_host:
            self._same_host.turn_away()  # frees its path before another server may take the address
        ended = self._server.stop(grace_s)
        if self._same_host:
            self._same_host.wait(grace_s)
        ended.wait()

    def __enter__(self) -> BankServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class _Servicer:
    """Carries requests from gRPC to the bank. Called by several threads at once."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns what gRPC calls."""
        call: _Handler = grpc.unary_unary_rpc_method_handler(self._call, decode_request, encode)
        stream: _Handler = grpc.stream_stream_rpc_method_handler(
            self._stream, decode_request, encode
        )
        return grpc.method_handlers_generic_handler(SERVICE_NAME, {"Call": call, "Stream": stream})

    def _call(self, frame: Frame[pb.Request], context: grpc.ServicerContext) -> Frame[pb.Reply]:
        with _errors_to(context):
            reply, arrays = self._answer(iter([frame]))
            return Frame(reply, list(itertools.chain.from_iterable(wire.cut(arrays))))

    def _stream(
        self, frames: Iterator[Frame[pb.Request]], context: grpc.ServicerContext
    ) -> Iterator[Frame[pb.Reply]]:
        with _errors_to(context):
            reply, arrays = self._answer(frames)
            for pieces in wire.cut(arrays):
                yield Frame(reply, pieces)
                reply = pb.Reply()

    def _answer(self, frames: Iterator[Frame[pb.Request]]) -> service.Answer:
        first = next(frames, Frame(pb.Request()))
        later = itertools.chain.from_iterable(frame.pieces for frame in frames)
        return self._staging.answer(first.message, itertools.chain(first.pieces, later))


@contextmanager
def _errors_to(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends a call with the status of the error that the block raises."""
    try:
        yield
        return
    except Exception as error:
        if not isinstance(error, CarlsError) and not context.is_active():
            raise  # the client has gone, and nobody is there to be told
        sent = status.as_sent(error)
    context.set_trailing_metadata(status.trailers_of(sent))
    context.abort(status.code_of(sent), status.message_of(sent))
