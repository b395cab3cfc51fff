"""`Pacing`: lets no client of a server read and write more than so many rows a second.

Lookups in shared memory never reach the server, so they are not counted.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable

import grpc

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.values import MAX_KEYS
from carls_jax.errors import BankOverloadedError, InvalidInputError

# Rows that a client left out for so long it may have at once.
BURST_S = 1.0
# Those that were let in last are known; one that is not known starts with all that it may have.
MAX_CLIENTS = 4096
# By gRPC at a unix socket nothing else tells one client from another.
CLIENT_KEY = "carls-client"
_MAX_CLIENT_LETTERS = 64


class Pacing:
    """Counts each client's rows in a token bucket that may be overdrawn by one call.

    So a call may have any size; one that is more than the bucket holds is paid for before the next.
    A call counts as one row at least. May be used from several threads at once.

    Args:
      max_rows_per_s: What each client may have.
      clock: Returns seconds, and never jumps.

    Raises:
      InvalidInputError: `max_rows_per_s` is no positive number.
    """

    def __init__(
        self, max_rows_per_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 < max_rows_per_s < math.inf:
            raise InvalidInputError(
                f"max_rows_per_s={max_rows_per_s}: allowed are positive numbers; None: no limit"
            )
        self._max_rows_per_s = max_rows_per_s
        self._clock = clock
        self._lock = threading.Lock()
        # Until when each client has paid, in the order in which they were let in.
        self._paid_until: dict[str, float] = {}

    @property
    def num_clients(self) -> int:
        """How many clients are known."""
        return len(self._paid_until)

    def let_in(self, client: str, request: pb.Request) -> None:
        """Counts the rows of a request.

        Raises:
          BankOverloadedError: The client is to try again later. Nothing was counted.
        """
        with self._lock:
            now = self._clock()
            paid_until = max(self._paid_until.get(client, -math.inf), now - BURST_S)
            if paid_until > now:
                raise BankOverloadedError(
                    f"{client} has had its {self._max_rows_per_s:.6g} rows a second: try again in "
                    f"{paid_until - now:.3g} s",
                    retry_after_s=paid_until - now,
                )
            self._paid_until.pop(client, None)
            self._paid_until[client] = paid_until + num_rows(request) / self._max_rows_per_s
            if len(self._paid_until) > MAX_CLIENTS:
                del self._paid_until[next(iter(self._paid_until))]


def num_rows(request: pb.Request) -> int:
    """Returns how many rows a request is about, as its headers say: at least one."""
    keys = (one.shape[0] for one in request.arrays if one.name == "keys" and one.shape)
    return min(max(1, request.scan.num_rows, *keys), MAX_KEYS)


def client_metadata() -> tuple[tuple[str, str], ...]:
    """Returns what a client sends by gRPC at a unix socket, where its process is the client."""
    return ((CLIENT_KEY, client_of_process(os.getpid())),)


def client_of_process(process: int) -> str:
    """Returns the name of a client of this machine."""
    return f"process {process}"


def client_of(context: grpc.ServicerContext) -> str:
    """Returns the name of the client of a call: its connection, or at a unix socket its process."""
    peer = str(context.peer())
    if not peer.startswith("unix:"):
        return peer
    return _told(context.invocation_metadata() or ()) or peer


def _told(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    told = next((value for key, value in metadata if key == CLIENT_KEY), "")
    return str(told)[:_MAX_CLIENT_LETTERS]
