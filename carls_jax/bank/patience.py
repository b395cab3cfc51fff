"""`Patience`: ends calls whose clients stop in the middle, or go on too slowly.

gRPC's threads wait for a client's next message, and for it to take the reply, as long as its
connection lives. A client that does neither would hold one of few threads for ever.
"""

from __future__ import annotations

import logging
import threading
import time

import grpc

# A client may be so slow on average, once the time that it may stop for is used up.
MIN_BYTES_PER_S = 1 << 14
# How late the end may come, as a share of that time.
_CHECKS_PER_STALL = 8

_logger = logging.getLogger(__name__)


class Patience:
    """Ends calls that wait for their client too long, from a thread of its own, until `stop`.

    May be used from several threads at once.

    Args:
      max_stall_s: Seconds that a call may wait for its client in all, beside a second for each
        `MIN_BYTES_PER_S` that came or went.
    """

    def __init__(self, max_stall_s: float) -> None:
        self.max_stall_s = max_stall_s
        # When each call that waits is to end, on the monotonic clock. A dict's own methods are
        # atomic, so there is no lock.
        self._deadlines: dict[grpc.ServicerContext, float] = {}
        self._is_stopping = threading.Event()
        threading.Thread(target=self._watch, name="bank-patience", daemon=True).start()

    def stop(self) -> None:
        """Ends no more calls."""
        self._is_stopping.set()

    def wait(self, context: grpc.ServicerContext, left_s: float) -> None:
        """Says that a call waits for its client from now on."""
        self._deadlines[context] = time.monotonic() + left_s

    def waited(self, context: grpc.ServicerContext) -> None:
        """Says that a call does not wait any more."""
        self._deadlines.pop(context, None)

    def _watch(self) -> None:
        while not self._is_stopping.wait(self.max_stall_s / _CHECKS_PER_STALL):
            now = time.monotonic()
            for context, deadline in self._deadlines.copy().items():
                if deadline < now and self._deadlines.pop(context, 0.0):
                    _logger.warning(
                        "a call of %s ends: its client stopped in the middle", context.peer()
                    )
                    context.cancel()


class Turn:
    """Is the patience with one call. A `with` block is a wait for the client.

    Not for use by several threads at once.
    """

    def __init__(self, patience: Patience, context: grpc.ServicerContext) -> None:
        self._patience = patience
        self._context = context
        self._left_s = patience.max_stall_s
        self._began_at = 0.0

    def moved(self, num_bytes: int) -> None:
        """Says that so many bytes came or went."""
        more_s = self._left_s + num_bytes / MIN_BYTES_PER_S
        self._left_s = min(more_s, self._patience.max_stall_s)

    def __enter__(self) -> None:
        self._began_at = time.monotonic()
        self._patience.wait(self._context, self._left_s)

    def __exit__(self, *_: object) -> None:
        self._patience.waited(self._context)
        self._left_s -= time.monotonic() - self._began_at
