"""`Doorkeeper`: refuses every call that does not show the server's token, before it is read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from carls_jax.bank import status
from carls_jax.bank.tokens import METADATA_KEY, Token
from carls_jax.errors import AccessDeniedError

# Whoever tries tokens must not fill the log.
LOG_EVERY_S = 60.0

_logger = logging.getLogger(__name__)


class Doorkeeper(grpc.ServerInterceptor):
    """Lets calls with a token pass, of whatever service and method.

    Called by gRPC before a thread is given to the call. A refusal reads nothing of the request, so
    that nobody without a token can hold a thread by not sending it.

    Args:
      token: What calls must show.
    """

    def __init__(self, token: Token) -> None:
        self._token = token
        self._lock = threading.Lock()
        self._num_refused = 0
        self._logged_at = -LOG_EVERY_S

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns what answers a call: the service, or a refusal."""
        metadata = handler_call_details.invocation_metadata
        if self._token.is_shown_by(metadata):
            return continuation(handler_call_details)
        is_wrong = any(key == METADATA_KEY for key, _ in metadata)
        # To a client all kinds of calls look alike, and this one begins before a message came.
        return grpc.stream_stream_rpc_method_handler(
            lambda _, context: self._refuse(context, is_wrong=is_wrong)
        )

    def _refuse(self, context: grpc.ServicerContext, *, is_wrong: bool) -> Iterator[Any]:
        self._count(context.peer())
        why = "not with the one that was sent" if is_wrong else "and none was sent"
        error = AccessDeniedError(f"the bank is open to those with its token, {why}")
        context.set_trailing_metadata(status.trailers_of(error))
        context.abort(status.code_of(error), status.message_of(error))

    def _count(self, peer: str) -> None:
        with self._lock:
            self._num_refused += 1
            now = time.monotonic()
            if now - self._logged_at < LOG_EVERY_S:
                return
            count, self._num_refused, self._logged_at = self._num_refused, 0, now
        _logger.warning("refused %d calls without the right token, the last of %s", count, peer)
