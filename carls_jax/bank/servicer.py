"""`Servicer`: carries requests from gRPC to a bank, and its answers back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc
from google.protobuf.message import DecodeError

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import service, status, wire
from carls_jax.bank.frames import SERVICE_NAME, Frame, decode_request, encode
from carls_jax.bank.pacing import client_of
from carls_jax.bank.patience import Patience, Turn
from carls_jax.bank.staging import Staging
from carls_jax.errors import CarlsError, InvalidInputError

_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, Frame[pb.Reply]]"
_Requests: TypeAlias = Iterator[Frame[pb.Request]]


class Servicer:
    """Answers the calls of gRPC, by several threads at once.

    Args:
      staging: What answers.
      patience: Ends calls whose clients stop in the middle.
    """

    def __init__(self, staging: Staging, patience: Patience) -> None:
        self._staging = staging
        self._patience = patience

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns what gRPC calls."""
        # To a client this is a call of one message. gRPC would itself wait for that message, and
        # nothing would limit how long.
        call: _Handler = grpc.stream_unary_rpc_method_handler(self._call, None, encode)
        stream: _Handler = grpc.stream_stream_rpc_method_handler(self._stream, None, encode)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, {"Call": call, "Stream": stream})

    def _call(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Frame[pb.Reply]:
        turn = Turn(self._patience, context)
        with _errors_to(context):
            reply, arrays = self._answer(itertools.islice(_received(frames, turn), 1), context)
            return Frame(reply, list(itertools.chain.from_iterable(wire.cut(arrays))))

    def _stream(
        self, frames: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[Frame[pb.Reply]]:
        turn = Turn(self._patience, context)
        with _errors_to(context):
            reply, arrays = self._answer(_received(frames, turn), context)
            for pieces in wire.cut(arrays):
                turn.moved(sum(map(len, pieces)))
                with turn:
                    yield Frame(reply, pieces)
                reply = pb.Reply()

    def _answer(self, frames: _Requests, context: grpc.ServicerContext) -> service.Answer:
        first = next(frames, Frame(pb.Request()))
        later = itertools.chain.from_iterable(frame.pieces for frame in frames)
        pieces = itertools.chain(first.pieces, later)
        return self._staging.answer(first.message, pieces, client=client_of(context))


def _received(frames: Iterator[bytes], turn: Turn) -> _Requests:
    """Yields the frames of a call, for each of which its client has a limited time."""
    while True:
        with turn:
            raw = next(frames, None)
        if raw is None:
            return
        frame = _decoded(raw)
        turn.moved(sum(map(len, frame.pieces)))
        yield frame


def _decoded(raw: bytes) -> Frame[pb.Request]:
    """Reads a frame; gRPC would log what is none, and keep its stream until the connection ends."""
    try:
        return decode_request(raw)
    except (ValueError, DecodeError) as error:
        raise InvalidInputError(f"the bytes are no frame of a request: {error}") from error


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
