"""`RemoteBank`: a bank, or one shard of one, that a server holds."""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from carls_jax.bank import joining, messages, resuming
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.access import Access
from carls_jax.bank.address import parse_address
from carls_jax.bank.change_numbers import ChangeNumbers
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.interface import (
    PROTOCOL_VERSION,
    Applied,
    Bank,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
    check_bank,
    uuid_of,
)
from carls_jax.bank.joining import Followed
from carls_jax.bank.resuming import Unfinished
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.same_host_client import open_transport
from carls_jax.bank.same_host_segment import IS_SUPPORTED
from carls_jax.bank.shared_tables import SharedTables
from carls_jax.bank.transport import Answer, NoAnswerError
from carls_jax.bank.wire import Arrays, num_bytes
from carls_jax.errors import (
    BankClosedError,
    BankError,
    BankIdentityError,
    BankInternalError,
    BankOverloadedError,
    BankStorageError,
    BankTimeoutError,
    BankUnavailableError,
    ProtocolMismatchError,
)

DEFAULT_TIMEOUT_S = 30.0
# Snapshots and restores write or read the whole bank.
SNAPSHOT_TIMEOUT_S = 1800.0
# A try of a change has this part of the call's deadline, and longer for what it carries.
TRIES = 3
SLOWEST_BYTES_PER_S = 4 << 20
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

# After these a change may have been applied, now or when the server is started again.
_UNSURE = (BankUnavailableError, BankTimeoutError, BankInternalError, BankStorageError)

_OVERLOADED = (BankOverloadedError,)
_AWAY = (BankUnavailableError, NoAnswerError)

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class _NotSharedError(Exception):
    """Says that rows cannot be read in the server's memory."""


class RemoteBank(Bank):
    """Is the bank that a server at an address holds.

    Nothing is sent before the first call, which asks who answers, with a deadline of its own; from
    then on another bank at the address is refused. Once the server has answered, calls outlast its
    restart: they are tried again until their deadline. A change is numbered, and sent again with
    the same number, so it is applied once: at most once in each incarnation of the bank, and surely
    once if it is answered. One that is not raises BankUnavailableError or BankTimeoutError, and may
    have been applied: `resume` goes on with it. A lookup that creates rows is sent again too, since
    a row is created only if it is missing; a restore is not. What a server refuses for now, since
    it is overloaded, is sent again when it says. Methods may be called from several threads at
    once, in the process that made the object.

    Args:
      address: "unix:/path" or "host:port".
      source: The name under which this client writes.
      timeout_s: Deadline of each call, in seconds; of snapshots and restores `SNAPSHOT_TIMEOUT_S`.
      try_timeout_s: Deadline of each try of a change, in seconds, to which the time is added that
        its arrays take at 4 MiB/s. None: a third of `timeout_s`.
      bank_id: The bank that must answer. None: the one that answers first.
      num_shards: How many servers the bank must have.
      access: What a server at a TCP address is shown, and how it is made sure of.

    Raises:
      InvalidInputError: The address is malformed, or what is sent there could be read by others.
    """

    def __init__(
        self,
        address: str,
        *,
        source: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        try_timeout_s: float | None = None,
        bank_id: str | None = None,
        num_shards: int = 1,
        access: Access | None = None,
    ) -> None:
        super().__init__(source=source)
        self._address = parse_address(address)
        self._timeout_s = timeout_s
        self._try_timeout_s = timeout_s / TRIES if try_timeout_s is None else try_timeout_s
        self._numbers = ChangeNumbers()
        self._last_alter = 0
        self._bank_id = bank_id or ""
        self._num_shards = num_shards
        self._transport = open_transport(self._address, access)
        self._identity: BankIdentity | None = None
        self._shared: SharedTables | None = None  # once it is known which bank it is
        self._shared_incarnation = ""
        self._reply_bytes_per_row: dict[tuple[str, ...], float] = {}
        self._closed = threading.Event()
        self._away_lock = threading.Lock()
        self._is_away = False

    @property
    def identity(self) -> BankIdentity:
        """Which bank answers; asks the server if nothing was called yet."""
        self._meet()
        assert self._identity is not None
        return self._identity

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        try:
            self._persist(self._hello, timeout_s=timeout_s)
        except BankTimeoutError as error:
            raise BankUnavailableError(f"{error}; it is not ready") from error

    @property
    def last_alter(self) -> int:
        return self._last_alter

    def apply(self, change: Change) -> Applied:
        if change.header.client:  # it has its number already
            return self._apply(change)
        header = pb.Change()
        header.CopyFrom(change.header)
        with self._numbers.next() as number:
            header.client, header.number = self._numbers.client, number
            return self._apply(replace(change, header=header))

    def _apply(self, change: Change) -> Applied:
        header, arrays = messages.pack_change(change)
        try_s = self._try_timeout_s + num_bytes(arrays) / SLOWEST_BYTES_PER_S
        try:
            reply, answered = self._ask(
                pb.Request(change=header), arrays, try_s=try_s, expected_bytes=0
            )
        except (*_UNSURE, *_OVERLOADED) as error:
            if _wait_s(error) < math.inf:  # a try before the last may have been applied
                resuming.mark(error, Unfinished({0: resuming.own(change)}, {}))
            raise
        return messages.unpack_applied(reply.applied, answered)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        if (rows := self._lookup_shared(request, keys)) is not None:
            return rows
        kind = ("lookup", request.table, *request.fields, *request.metadata, *request.sources)
        reply, arrays = self._rows(pb.Request(lookup=request), {"keys": keys}, kind)
        return messages.unpack_rows(reply.looked_up, keys, arrays)

    def _lookup_shared(self, request: pb.Lookup, keys: Keys) -> Rows | None:
        """Reads rows in the server's memory, or returns None if that cannot be."""
        self._meet()
        if self._shared is None or self._closed.is_set():
            return None
        rows = self._shared.lookup(request, keys)
        if self._shared.incarnation != self._shared_incarnation:
            self._shared_incarnation = self._shared.incarnation
            self._learn_incarnation(self._shared_incarnation)
        return rows

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = NO_KEYS) -> Followed:
        if len(request.links) < 2:  # what the rows are of is known here
            return self._follow_here(self.lookup, request, keys, held)
        self._meet()
        if self._shared is not None:
            with suppress(_NotSharedError):
                return self._follow_here(self._shared_rows, request, keys, held)
        last = request.links[-1]
        kind = ("follow", *(one.table for one in request.links), *last.fields, *last.metadata)
        arrays = {"keys": keys, "held": held} if held.size else {"keys": keys}
        reply, answered = self._rows(pb.Request(follow=request), arrays, kind)
        followed = messages.unpack_followed(reply.followed, answered)
        self._count(last, followed.rows)
        return followed

    def _follow_here(
        self, lookup: joining.Lookup, request: pb.Follow, keys: Keys, held: Keys
    ) -> Followed:
        return joining.follow(
            self._counted(lookup), request, keys, held, spec_of=lambda name: self.table(name).spec
        )

    def _shared_rows(self, request: pb.Lookup, keys: Keys) -> Rows:
        rows = self._lookup_shared(request, keys)
        if rows is None:
            raise _NotSharedError
        return rows

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        kind = ("history", request.table, request.field)
        reply, arrays = self._rows(pb.Request(history=request), {"keys": keys}, kind)
        return messages.unpack_history(reply.history, arrays)

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        reply, arrays = self._ask(pb.Request(scan=request), {})
        keys = arrays.pop("keys")
        return messages.unpack_rows(reply.scanned.rows, keys, arrays), reply.scanned.next

    def stats(self) -> BankStats:
        reply, _ = self._ask(pb.Request(describe=pb.Describe()), {}, expected_bytes=0)
        return messages.unpack_stats(reply.description)

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        # Chosen here, so that a snapshot that was taken is answered when it is asked for again.
        call = pb.TakeSnapshot(label=label, uuid=uuid or uuids.uuid4().hex, is_frozen=is_frozen)
        reply, _ = self._ask(
            pb.Request(take_snapshot=call), {}, timeout_s=SNAPSHOT_TIMEOUT_S, expected_bytes=0
        )
        return messages.unpack_snapshot(reply.snapshot)

    def freeze(self, uuid: str) -> None:
        self._ask(pb.Request(freeze=pb.Freeze(uuid=uuid)), {}, expected_bytes=0)

    def thaw(self, uuid: str) -> None:
        self._ask(pb.Request(freeze=pb.Freeze(uuid=uuid, ends=True)), {}, expected_bytes=0)

    def snapshots(self) -> list[SnapshotIdentity]:
        request = pb.Request(list_snapshots=pb.ListSnapshots())
        reply, _ = self._ask(request, {}, expected_bytes=0)
        return [messages.unpack_snapshot(one) for one in reply.snapshots.snapshots]

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        call = (
            pb.Restore(snapshot=messages.pack_snapshot(snapshot))
            if isinstance(snapshot, SnapshotIdentity)
            else pb.Restore(name=snapshot)
        )
        # Done once: a second restore would undo what others have done after the first.
        reply, _ = self._ask(
            pb.Request(restore=call),
            {},
            timeout_s=SNAPSHOT_TIMEOUT_S,
            expected_bytes=0,
            retried=_OVERLOADED,
        )
        return messages.unpack_snapshot(reply.snapshot)

    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        check_bank(snapshot, self.identity.bank_id)
        call = pb.VerifySnapshot(name=uuid_of(snapshot))
        reply, _ = self._ask(
            pb.Request(verify_snapshot=call), {}, timeout_s=SNAPSHOT_TIMEOUT_S, expected_bytes=0
        )
        return messages.unpack_snapshot(reply.snapshot)

    def pin(self, owner: str, snapshots: Sequence[SnapshotIdentity | str]) -> None:
        call = pb.PinSnapshots(owner=owner, uuids=[uuid_of(one) for one in snapshots])
        self._ask(pb.Request(pin_snapshots=call), {}, expected_bytes=0)

    def close(self) -> None:
        self._closed.set()
        if self._shared:
            self._shared.close()
        self._transport.close()

    def _rows(self, request: pb.Request, arrays: Arrays, kind: tuple[str, ...]) -> Answer:
        """Asks for rows, telling the transport how large the last such reply was for each key."""
        per_row = self._reply_bytes_per_row.get(kind)
        num_keys = max(arrays["keys"].size, 1)
        expected_bytes = None if per_row is None else int(per_row * num_keys)
        reply, answered = self._ask(request, arrays, expected_bytes=expected_bytes)
        self._reply_bytes_per_row[kind] = num_bytes(answered) / num_keys
        return reply, answered

    def _ask(
        self,
        request: pb.Request,
        arrays: Arrays,
        *,
        timeout_s: float | None = None,
        try_s: float = math.inf,
        expected_bytes: int | None = None,
        retried: tuple[type[BankError], ...] = _AWAY + _OVERLOADED,
    ) -> Answer:
        """Sends a request, and again after the errors that are given."""
        self._meet()

        def send(timeout_s: float) -> Answer:
            return self._send(request, arrays, timeout_s=timeout_s, expected_bytes=expected_bytes)

        timeout_s = timeout_s or self._timeout_s
        return self._persist(send, timeout_s=timeout_s, try_s=try_s, retried=retried)

    def _persist(
        self,
        attempt: Callable[[float], _Result],
        *,
        timeout_s: float,
        try_s: float = math.inf,
        retried: tuple[type[BankError], ...] = _AWAY + _OVERLOADED,
    ) -> _Result:
        """Calls `attempt(deadline_s)`, each for `try_s` at most, until a server answers in time."""
        deadline = time.monotonic() + timeout_s
        pauses_s = _pauses_s()
        while True:
            try:
                result = attempt(min(max(deadline - time.monotonic(), 0.001), try_s))
            except retried as error:
                pause_s = next(pauses_s) + _wait_s(error)
                if time.monotonic() + pause_s >= deadline and isinstance(error, NoAnswerError):
                    raise BankTimeoutError(
                        f"the bank at {self._address} did not answer within {timeout_s:.3g} s"
                    ) from error
                if time.monotonic() + pause_s >= deadline:
                    raise
                if isinstance(error, _AWAY) and self._turns_away(True):
                    _logger.warning("%s; trying again for %.3g s", error, timeout_s)
                if self._closed.wait(pause_s):
                    raise BankClosedError("this bank was closed; connect again") from error
            except NoAnswerError as error:
                raise BankTimeoutError(str(error)) from error
            else:
                if self._turns_away(False):
                    _logger.warning("the bank at %s answers again", self._address)
                return result

    def _turns_away(self, is_away: bool) -> bool:
        """Notes whether the server is away; returns whether that is news, which is told once."""
        with self._away_lock:
            was_away, self._is_away = self._is_away, is_away
            return was_away != is_away

    def _send(
        self, request: pb.Request, arrays: Arrays, *, timeout_s: float, expected_bytes: int | None
    ) -> Answer:
        request.protocol_version = PROTOCOL_VERSION
        request.bank_id = self._bank_id
        reply, answered = self._transport.call(
            request, arrays, timeout_s=timeout_s, expected_bytes=expected_bytes
        )
        self._learn_incarnation(reply.incarnation)
        self._last_alter = reply.last_alter
        return reply, answered

    def _learn_incarnation(self, incarnation: str) -> None:
        identity = self._identity
        if identity and identity.incarnation != incarnation:
            self._identity = replace(identity, incarnation=incarnation)

    def _meet(self) -> None:
        if self._identity is None:
            self._persist(self._hello, timeout_s=self._timeout_s, retried=_OVERLOADED)

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
        if self._shared is None and IS_SUPPORTED and self._address.same_host_path:
            self._shared = SharedTables(self._address.same_host_path, bank_id=identity.bank_id)
        self._identity = identity
        return identity


def _wait_s(error: BankError) -> float:
    """Returns how long the server wants to be left alone after an error; infinite: for ever."""
    if not isinstance(error, BankOverloadedError):
        return 0.0
    return math.inf if error.retry_after_s is None else error.retry_after_s


def _pauses_s() -> Iterator[float]:
    """Yields growing pauses, each of a random length so that clients do not return all at once."""
    for attempt in itertools.count():
        longest = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
        yield random.uniform(longest / 2, longest)
