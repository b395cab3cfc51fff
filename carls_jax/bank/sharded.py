"""`ShardedBank`: one bank whose rows are spread over several servers by their keys."""

from __future__ import annotations

import os
import threading
import time
import uuid as uuids
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import changes, joining, merging
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.interface import (
    Applied,
    Bank,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
    find_snapshot,
)
from carls_jax.bank.joining import Followed
from carls_jax.bank.merging import Part
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.transport import check_same_process
from carls_jax.bank.values import check_gradients, check_keys, check_values
from carls_jax.errors import (
    BankClosedError,
    BankIdentityError,
    CarlsError,
    InvalidInputError,
    SnapshotNotFoundError,
)
from carls_jax.keys import PADDING, shard_of

# So that a few callers at once do not wait for one another.
THREADS_PER_SHARD = 4
# A scan's place is a shard and, in the lower bits, a place in it.
_PLACE_BITS = 48

_Whom = TypeVar("_Whom")
_Result = TypeVar("_Result")


class ShardedBank(Bank):
    """Is a bank of several shards, each a bank of its own that holds the rows of its keys.

    A call goes, at the same time, to the shards that have something to do; padding is not sent.
    What a client sends is checked before any shard gets its part, so a bad request changes nothing;
    but that a shard is full or away is found out when others may have applied their part. Methods
    may be called from several threads at once, in the process that made the object.

    Args:
      shards: The banks that hold the shards, in order; closed with this one.
      source: The name under which this client writes.

    Raises:
      InvalidInputError: There are no shards.
      BankIdentityError: By the first call: they are not the shards of one bank in order.
    """

    def __init__(self, shards: Sequence[Bank], *, source: str = "") -> None:
        super().__init__(source=source)
        if not shards:
            raise InvalidInputError("shards=[]: give at least one bank")
        self._shards = list(shards)
        self._pool = ThreadPoolExecutor(THREADS_PER_SHARD * len(shards), "sharded-bank")
        self._process = os.getpid()
        self._check_lock = threading.Lock()
        self._is_checked = False
        self._is_closed = False

    @property
    def identity(self) -> BankIdentity:
        """Which bank this is; its incarnation changes with that of any shard."""
        identities = [shard.identity for shard in self._open()]
        return BankIdentity(
            bank_id=identities[0].bank_id,
            incarnation="/".join(one.incarnation for one in identities),
            num_shards=len(identities),
        )

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        for shard in self._shards:
            shard.wait_ready(max(deadline - time.monotonic(), 0.001))
        self._open()

    def apply(self, change: Change) -> Applied:
        shards = self._open()
        if change.kind in ("create_table", "advance"):
            return merging.merged_applied(
                self._ask(shards, lambda shard: shard.apply(_part_of(change)))
            )
        self._check(change)
        parts = self._split(change.keys)
        try:
            applied = self._ask(
                parts, lambda part: shards[part.shard].apply(_part_of(change, part.positions))
            )
        except CarlsError as error:
            if len(parts) == 1:
                raise
            message = f"{error}. Other shards may have applied their part of this change"
            raise type(error)(message) from error
        by = change.header.author
        if by.step != changes.NO_STEP:
            # Shards that got no row learn the step all the same, so that all measure ages alike.
            told = {part.shard for part in parts}
            self._ask(
                self._others(told), lambda shard: shard.apply(_part_of(changes.advance(by=by)))
            )
        return merging.merged_applied(applied)

    def _check(self, change: Change) -> None:
        """Finds what one shard alone might refuse, before any gets its part."""
        check_keys(change.keys)
        spec = self.table(change.header.table).spec
        if change.kind == "update":
            check_values(spec, change.values, num_keys=change.keys.size)
        if change.kind == "push":
            check_gradients(spec, change.values, num_keys=change.keys.size)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        shards, parts = self._open(), self._split(check_keys(keys))
        rows = self._ask(
            parts, lambda part: shards[part.shard].lookup(request, keys[part.positions])
        )
        others = self._others({part.shard for part in parts})
        return merging.merged_rows(keys, parts, rows, more_sources=self._authors(request, others))

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = changes.NO_KEYS) -> Followed:
        # One lookup after another: the keys that a shard finds are those of rows on other shards.
        return joining.follow(
            self._counted(self.lookup),
            request,
            keys,
            held,
            spec_of=lambda name: self.table(name).spec,
        )

    def _authors(self, request: pb.Lookup, shards: Sequence[Bank]) -> set[str]:
        """Returns the authors that shards know, if the request means all, or all but some."""
        if not any(name.startswith(("*", "!")) for name in request.sources):
            return set()
        of_nothing = pb.Lookup(
            table=request.table, fields=request.fields[:1], sources=request.sources
        )
        padding = np.array([PADDING])
        rows = self._ask(shards, lambda shard: shard.lookup(of_nothing, padding))
        return {name for one in rows for name in one.sources}

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        shards, parts = self._open(), self._split(check_keys(keys))
        answers = self._ask(
            parts, lambda part: shards[part.shard].history(request, keys[part.positions])
        )
        merged: list[list[Written]] = [[] for _ in range(keys.size)]
        for part, answer in zip(parts, answers, strict=True):
            for position, writes in zip(part.positions.tolist(), answer, strict=True):
                merged[position] = writes
        return merged

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        shards = self._open()
        index, place = divmod(request.start, 1 << _PLACE_BITS)
        if index >= len(shards):
            raise InvalidInputError(
                f"start={request.start}: give 0, or what the last scan returned"
            )
        part = pb.Scan()
        part.CopyFrom(request)
        part.start = place
        rows, following = shards[index].scan(part)
        if following:
            return rows, (index << _PLACE_BITS) + following
        return rows, ((index + 1) % len(shards)) << _PLACE_BITS

    def stats(self) -> BankStats:
        return merging.merged_stats(self._ask(self._open(), lambda shard: shard.stats()))

    def snapshot(self, label: str, *, uuid: str | None = None) -> SnapshotIdentity:
        chosen = uuid or uuids.uuid4().hex
        return merging.merged_snapshot(
            self._ask(self._open(), lambda shard: shard.snapshot(label, uuid=chosen))
        )

    def snapshots(self) -> list[SnapshotIdentity]:
        return merging.complete_snapshots(self._ask(self._open(), lambda shard: shard.snapshots()))

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        shards, bank_id = self._open(), self.identity.bank_id
        if isinstance(snapshot, SnapshotIdentity) and snapshot.bank_id != bank_id:
            raise BankIdentityError(
                f"snapshot {snapshot.label!r} is of bank {snapshot.bank_id}; this is {bank_id}"
            )
        complete = self.snapshots()
        found = find_snapshot(complete, snapshot)
        if found is None:
            labels = ", ".join(one.label for one in complete) or "none"
            raise SnapshotNotFoundError(f"no snapshot {snapshot!r}; there are: {labels}")
        return merging.merged_snapshot(self._ask(shards, lambda shard: shard.restore(found.uuid)))

    def close(self) -> None:
        self._is_closed = True
        for shard in self._shards:
            shard.close()
        self._pool.shutdown(wait=False)

    def _open(self) -> Sequence[Bank]:
        """Returns the shards, which are checked once."""
        if self._is_closed:
            raise BankClosedError("this bank was closed; connect again")
        check_same_process(self._process)
        with self._check_lock:
            if not self._is_checked:
                _check_order([shard.identity for shard in self._shards])
                self._is_checked = True
        return self._shards

    def _split(self, keys: Keys) -> list[Part]:
        """Returns which keys go where; padding goes nowhere, or to shard 0 if it is all."""
        num_shards = len(self._shards)
        # NumPy sorts 16-bit integers in linear time.
        shard = np.where(keys == PADDING, -1, shard_of(keys, num_shards)).astype(np.int16)
        order = np.argsort(shard, kind="stable")
        bounds = np.searchsorted(shard[order], np.arange(num_shards + 1))
        parts = [Part(i, order[bounds[i] : bounds[i + 1]]) for i in range(num_shards)]
        return [part for part in parts if part.positions.size] or [Part(0, order)]

    def _others(self, asked: set[int]) -> list[Bank]:
        return [shard for index, shard in enumerate(self._shards) if index not in asked]

    def _ask(self, whom: Sequence[_Whom], call: Callable[[_Whom], _Result]) -> list[_Result]:
        """Makes a call for each at the same time; when it returns or raises, all have ended."""
        if len(whom) == 1:
            return [call(whom[0])]
        calls = [self._pool.submit(call, one) for one in whom]
        wait(calls)
        return [one.result() for one in calls]


def _check_order(identities: Sequence[BankIdentity]) -> None:
    for index, one in enumerate(identities):
        expected = (identities[0].bank_id, index, len(identities))
        if (one.bank_id, one.shard_index, one.num_shards) != expected:
            raise BankIdentityError(
                f"server {index} holds shard {one.shard_index} of {one.num_shards} of bank "
                f"{one.bank_id}, expected shard {index} of {len(identities)} of bank "
                f"{identities[0].bank_id}: give the addresses of all servers of one bank, in the "
                "order of their shards"
            )


def _part_of(change: Change, positions: NDArray[np.intp] | None = None) -> Change:
    """Returns a change to the keys at some positions (None: to all), with a header of its own."""
    header = pb.Change()
    header.CopyFrom(change.header)
    if positions is None:
        return Change(header, change.keys, change.values)
    values = {name: value[positions] for name, value in change.values.items()}
    return Change(header, change.keys[positions], values)
