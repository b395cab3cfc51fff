"""`RemoteBank`: a bank, or one shard of one, that a server holds."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import messages
from carls_jax.bank.address import parse_address
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.interface import (
    PROTOCOL_VERSION,
    Applied,
    Bank,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
)
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.same_host_client import open_transport
from carls_jax.bank.transport import Answer
from carls_jax.bank.wire import Arrays, num_bytes
from carls_jax.errors import (
    BankClosedError,
    BankIdentityError,
    BankTimeoutError,
    BankUnavailableError,
    ProtocolMismatchError,
)

DEFAULT_TIMEOUT_S = 30.0
# Snapshots and restores write or read the whole bank.
SNAPSHOT_TIMEOUT_S = 1800.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class RemoteBank(Bank):
    """Is the bank that a server at an address holds.

    Nothing is sent before the first call, which asks who answers, with a deadline of its own; from
    then on another bank at the address is refused. Once the server has answered, reads outlast its
    restart: they are tried again until their deadline. Writes are not, since an unanswered write
    may have been applied; they raise BankUnavailableError or BankTimeoutError. Methods may be
    called from several threads at once, in the process that made the object.

    Args:
      address: "unix:/path" or "host:port".
      source: The name under which this client writes.
      timeout_s: Deadline of each call, in seconds; of snapshots and restores `SNAPSHOT_TIMEOUT_S`.
      bank_id: The bank that must answer. None: the one that answers first.
      num_shards: How many servers the bank must have.

    Raises:
      InvalidInputError: The address is malformed.
    """

    def __init__(
        self,
        address: str,
        *,
        source: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        bank_id: str | None = None,
        num_shards: int = 1,
    ) -> None:
        super().__init__(source=source)
        self._address = parse_address(address)
        self._timeout_s = timeout_s
        self._bank_id = bank_id or ""
        self._num_shards = num_shards
        self._transport = open_transport(self._address)
        self._identity: BankIdentity | None = None
        self._reply_bytes_per_row: dict[tuple[str, ...], float] = {}
        self._closed = threading.Event()

    @property
    def identity(self) -> BankIdentity:
        """Which bank answers; asks the server if nothing was called yet."""
        return self._identity or self._hello(self._timeout_s)

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        try:
            self._persist(self._hello, timeout_s=timeout_s)
        except BankTimeoutError as error:
            raise BankUnavailableError(f"{error}; it is not ready") from error

    def apply(self, change: Change) -> Applied:
        header, arrays = messages.pack_change(change)
        reply, answered = self._write(pb.Request(change=header), arrays)
        return messages.unpack_applied(reply.applied, answered)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        kind = ("lookup", request.table, *request.fields, *request.metadata, *request.sources)
        ask = self._write if request.create else self._read
        reply, arrays = self._rows(ask, pb.Request(lookup=request), keys, kind)
        return messages.unpack_rows(reply.looked_up, keys, arrays)

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        kind = ("history", request.table, request.field)
        reply, arrays = self._rows(self._read, pb.Request(history=request), keys, kind)
        return messages.unpack_history(reply.history, arrays)

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        reply, arrays = self._read(pb.Request(scan=request), {})
        keys = arrays.pop("keys")
        return messages.unpack_rows(reply.scanned.rows, keys, arrays), reply.scanned.next

    def stats(self) -> BankStats:
        reply, _ = self._read(pb.Request(describe=pb.Describe()), {}, expected_bytes=0)
        return messages.unpack_stats(reply.description)

    def snapshot(self, label: str, *, uuid: str | None = None) -> SnapshotIdentity:
        call = pb.TakeSnapshot(label=label, uuid=uuid or "")
        reply, _ = self._write(pb.Request(take_snapshot=call), {}, timeout_s=SNAPSHOT_TIMEOUT_S)
        return messages.unpack_snapshot(reply.snapshot)

    def snapshots(self) -> list[SnapshotIdentity]:
        request = pb.Request(list_snapshots=pb.ListSnapshots())
        reply, _ = self._read(request, {}, expected_bytes=0)
        return [messages.unpack_snapshot(one) for one in reply.snapshots.snapshots]

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        call = (
            pb.Restore(snapshot=messages.pack_snapshot(snapshot))
            if isinstance(snapshot, SnapshotIdentity)
            else pb.Restore(name=snapshot)
        )
        reply, _ = self._write(pb.Request(restore=call), {}, timeout_s=SNAPSHOT_TIMEOUT_S)
        return messages.unpack_snapshot(reply.snapshot)

    def close(self) -> None:
        self._closed.set()
        self._transport.close()

    def _rows(
        self, ask: Callable[..., Answer], request: pb.Request, keys: Keys, kind: tuple[str, ...]
    ) -> Answer:
        """Asks for rows, telling the transport how large the last such reply was for each key."""
        per_row = self._reply_bytes_per_row.get(kind)
        expected_bytes = None if per_row is None else int(per_row * keys.size)
        reply, arrays = ask(request, {"keys": keys}, expected_bytes=expected_bytes)
        self._reply_bytes_per_row[kind] = num_bytes(arrays) / max(keys.size, 1)
        return reply, arrays

    def _write(
        self,
        request: pb.Request,
        arrays: Arrays,
        *,
        timeout_s: float | None = None,
        expected_bytes: int | None = 0,
    ) -> Answer:
        """Sends a request that must not be sent twice."""
        self._meet()
        timeout_s = timeout_s or self._timeout_s
        return self._send(request, arrays, timeout_s=timeout_s, expected_bytes=expected_bytes)

    def _read(
        self, request: pb.Request, arrays: Arrays, *, expected_bytes: int | None = None
    ) -> Answer:
        """Sends a request that may be sent again."""
        self._meet()

        def send(timeout_s: float) -> Answer:
            return self._send(request, arrays, timeout_s=timeout_s, expected_bytes=expected_bytes)

        return self._persist(send, timeout_s=self._timeout_s)

    def _persist(self, attempt: Callable[[float], _Result], *, timeout_s: float) -> _Result:
        """Calls `attempt(remaining_s)` until a server answers or the time is over."""
        deadline = time.monotonic() + timeout_s
        pauses_s = _pauses_s()
        is_away = False
        while True:
            try:
                result = attempt(max(deadline - time.monotonic(), 0.001))
            except BankUnavailableError as error:
                pause_s = next(pauses_s)
                if time.monotonic() + pause_s >= deadline:
                    raise
                if not is_away:
                    _logger.warning("%s; trying again for %.3g s", error, timeout_s)
                is_away = True
                if self._closed.wait(pause_s):
                    raise BankClosedError("this bank was closed; connect again") from error
            else:
                if is_away:
                    _logger.warning("the bank at %s answers again", self._address)
                return result

    def _send(
        self, request: pb.Request, arrays: Arrays, *, timeout_s: float, expected_bytes: int | None
    ) -> Answer:
        request.protocol_version = PROTOCOL_VERSION
        request.bank_id = self._bank_id
        reply, answered = self._transport.call(
            request, arrays, timeout_s=timeout_s, expected_bytes=expected_bytes
        )
        identity = self._identity
        if identity and identity.incarnation != reply.incarnation:
            self._identity = replace(identity, incarnation=reply.incarnation)
        return reply, answered

    def _meet(self) -> None:
        if self._identity is None:
            self._hello(self._timeout_s)

    def _hello(self, timeout_s: float) -> BankIdentity:
        """Learns who answers, and refuses a stranger."""
        request = pb.Request(hello=pb.Hello())
        reply, _ = self._send(request, {}, timeout_s=timeout_s, expected_bytes=0)
        version = reply.identity.protocol_version
        if version != PROTOCOL_VERSION:
            raise ProtocolMismatchError(
                f"the server at {self._address} speaks protocol version {version}, this client "
                f"{PROTOCOL_VERSION}: install the same carls-jax on both sides"
            )
        identity = messages.unpack_identity(reply.identity, incarnation=reply.incarnation)
        if identity.num_shards != self._num_shards:
            raise BankIdentityError(
                f"{self._address} holds shard {identity.shard_index} of a bank that has "
                f"{identity.num_shards}, and {self._num_shards} were expected: connect to "
                "'ADDRESS,ADDRESS,…', all its servers in the order of their shards"
            )
        self._bank_id = identity.bank_id
        self._identity = identity
        return identity


def _pauses_s() -> Iterator[float]:
    """Yields growing pauses, each of a random length so that clients do not return all at once."""
    for attempt in itertools.count():
        longest = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
        yield random.uniform(longest / 2, longest)
