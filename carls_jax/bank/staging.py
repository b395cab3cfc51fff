"""Requests on their way in: their arrays are held in memory, whole, before anything is done."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from carls_jax.bank import bounds, service, wire
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.interface import Bank, BankIdentity
from carls_jax.bank.pacing import Pacing
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import BankOverloadedError


class Staging:
    """Has a bank answer requests, and bounds the bytes that all of them together hold.

    May be used from several threads at once, by several transports.

    Args:
      bank: What answers.
      max_bytes: The most that arrays of requests may take at once.
      pacing: Limits the rows of each client.
    """

    def __init__(self, bank: Bank, *, max_bytes: int, pacing: Pacing | None = None) -> None:
        self._bank = bank
        self._pacing = pacing
        self._max_bytes = max_bytes
        self._free = max_bytes
        self._lock = threading.Lock()

    def answer(
        self, request: pb.Request, pieces: Iterable[memoryview], *, client: str = ""
    ) -> service.Answer:
        """Copies a request's arrays from the pieces that carry them, then has it answered.

        Args:
          request: What is asked.
          pieces: The bytes of its arrays.
          client: Who asks, see `pacing`.

        Returns:
          The reply with the headers of its arrays, and the arrays.

        Raises:
          BankOverloadedError: There is no room for the arrays now, or the client has had its rows.
          InvalidInputError: The bytes are not those that the headers say, or a text or list of the
            request is too long.
          CarlsError: As `service.answer`.
        """
        bounds.check_request(request)
        staged = wire.Assembly(request.arrays, max_bytes=self._max_bytes)
        with self._hold(staged.num_bytes):
            if self._pacing:
                self._pacing.let_in(client, request)
            staged.add(pieces)
            sent = staged.arrays()
            for array in sent.values():
                array.flags.writeable = False  # a bank copies what somebody else might alter
            reply, arrays = service.answer(self._bank, request, sent)
        reply.arrays.extend(wire.describe(arrays))
        return reply, arrays

    def share(self, table: str) -> tuple[BankIdentity, TableShard]:
        """As `Bank.share`."""
        return self._bank.share(table)

    @contextmanager
    def _hold(self, num_bytes: int) -> Iterator[None]:
        """Holds room for so many bytes until the block ends."""
        with self._lock:
            if num_bytes > self._free:
                raise BankOverloadedError(
                    f"a request of {num_bytes} bytes: the server has room for {self._free} of "
                    f"{self._max_bytes} now; try again, or send fewer rows per call",
                    retry_after_s=0.0,
                )
            self._free -= num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._free += num_bytes
