"""`ShardedBank`: one bank whose rows are spread over several servers by their keys."""

from __future__ import annotations

import os
import threading
import time
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import changes, joining, merging, resuming
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.altering import check_alter
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.interface import (
    Applied,
    Bank,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
    check_bank,
    check_complete,
    find_snapshot,
)
from carls_jax.bank.joining import Followed
from carls_jax.bank.labels import check_label
from carls_jax.bank.merging import Part
from carls_jax.bank.resuming import Unfinished
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.transport import check_same_process
from carls_jax.bank.values import check_gradients, check_keys, check_values
from carls_jax.errors import (
    BankClosedError,
    BankIdentityError,
    BankOverloadedError,
    CarlsError,
    InvalidInputError,
    SnapshotNotFoundError,
)
from carls_jax.keys import PADDING, shard_of

# So that a few callers at once do not wait for one another.
THREADS_PER_SHARD = 4
# How soon, and for how long, a snapshot is tried again while another one is taken.
BUSY_PAUSE_S = 0.1
BUSY_TIMEOUT_S = 1800.0
# A scan's place is a shard and, in the lower bits, a place in it.
_PLACE_BITS = 48

_Whom = TypeVar("_Whom")
_Result = TypeVar("_Result")


class ShardedBank(Bank):
    """Is a bank of several shards, each a bank of its own that holds the rows of its keys.

    A call goes, at the same time, to the shards that have something to do; padding is not sent.
    What a client sends is checked before any shard gets its part, so a bad request changes nothing;
    but that a shard is full or away is found out when others may have applied their part: a change
    is applied whole or not at all on each shard, and `resume` goes on with one that only some have
    applied. Methods may be called from several threads at once, in the process that made the
    object.

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
    def shards(self) -> Sequence[Bank]:
        """The banks that hold the shards, in order."""
        return tuple(self._shards)

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
        if change.kind == "alter":
            self._check_alter(change)
        if change.kind in ("create_table", "alter", "advance"):
            return self._finish({shard: _part_of(change) for shard in range(len(shards))}, {})
        self._check(change)
        parts = self._split(change.keys)
        return self._finish({one.shard: _part_of(change, one.positions) for one in parts}, {})

    def resume(self, error: CarlsError) -> Applied:
        """As `Bank.resume`; shards that have applied their part are not asked again."""
        unfinished = resuming.unfinished(error)
        return self._finish(unfinished.left, unfinished.applied)

    def _finish(self, left: Mapping[int, Change], applied: Mapping[int, Applied]) -> Applied:
        """Has the parts that are left applied, and says with the error what is left then."""
        shards = self._open()

        def apply(index: int) -> Applied | CarlsError:
            try:
                return shards[index].apply(left[index])
            except CarlsError as error:
                return error

        answers = dict(zip(left, self._ask(list(left), apply), strict=True))
        done = {i: one for i, one in answers.items() if isinstance(one, Applied)} | dict(applied)
        failed = {i: one for i, one in answers.items() if isinstance(one, CarlsError)}
        if failed:
            raise _unfinished_error(failed, left, done)
        by = next(iter(left.values())).header.author
        untold = set(range(len(shards))) - set(done)
        if by.step == changes.NO_STEP or not untold:
            return merging.merged_applied(list(done.values()))
        # Shards that got no row learn the step all the same, so that all measure ages alike.
        return self._finish({i: _part_of(changes.advance(by=by)) for i in sorted(untold)}, done)

    @property
    def last_alter(self) -> int:
        return sum(shard.last_alter for shard in self._shards)

    def _check_alter(self, change: Change) -> None:
        """Finds whether any shard would refuse it, before one of them applies it."""
        spec = changes.spec_of(change)
        for stats in self._ask(self._open(), lambda shard: shard.stats()):
            if spec.name in stats.tables:
                table = stats.tables[spec.name]
                check_alter(table.spec, spec, num_rows=table.num_rows)

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

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        check_label(label)
        shards, chosen = self._open(), uuid or uuids.uuid4().hex
        if uuid and (taken := self._taken(label, uuid)):
            return taken
        self._freeze(shards, chosen)
        try:
            return merging.merged_snapshot(
                self._ask(shards, lambda one: one.snapshot(label, uuid=chosen, is_frozen=True))
            )
        except BaseException:
            self._thaw(shards, chosen)
            raise

    def _taken(self, label: str, uuid: str) -> SnapshotIdentity | None:
        """Returns the snapshot of a UUID if there is one already.

        Raises:
          InvalidInputError: Only some shards have it, and no other can take it at that instant any
            more; or it has another label.
        """
        held = self._ask(self._shards, lambda shard: find_snapshot(shard.snapshots(), uuid))
        there = [one for one in held if one]
        if there and (len(there) < len(held) or there[0].label != label):
            raise InvalidInputError(
                f"uuid={uuid!r} is of another snapshot, or of one that only some shards could "
                "take: choose another"
            )
        return merging.merged_snapshot(there) if there else None

    def _freeze(self, shards: Sequence[Bank], uuid: str) -> None:
        """Holds back the changes of all shards: at the end of this no change is under way."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                # In order, so that of two who do this one waits for the other.
                for shard in shards:
                    shard.freeze(uuid)
                return
            except CarlsError as error:
                self._thaw(shards, uuid)
                is_busy = isinstance(error, BankOverloadedError)
                if not is_busy or time.monotonic() > deadline:
                    raise
            time.sleep(BUSY_PAUSE_S)

    def _thaw(self, shards: Sequence[Bank], uuid: str) -> None:
        for shard in shards:
            with suppress(CarlsError):  # it ends by itself
                shard.thaw(uuid)

    def snapshots(self) -> list[SnapshotIdentity]:
        return merging.complete_snapshots(self._ask(self._open(), lambda shard: shard.snapshots()))

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        # A shard that finds its part damaged must do so before the others have taken theirs over.
        uuid = self.verify(snapshot).uuid
        return merging.merged_snapshot(self._ask(self._open(), lambda one: one.restore(uuid)))

    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        shards = self._open()
        check_bank(snapshot, self.identity.bank_id)
        complete = self.snapshots()
        found = find_snapshot(complete, snapshot)
        if found is None:
            labels = ", ".join(one.label for one in complete) or "none"
            raise SnapshotNotFoundError(f"no snapshot {snapshot!r}; there are: {labels}")
        return merging.merged_snapshot(self._ask(shards, lambda shard: shard.verify(found.uuid)))

    def pin(self, owner: str, snapshots: Sequence[SnapshotIdentity | str]) -> None:
        shards, uuids = self._open(), check_complete(self.snapshots(), snapshots)
        self._ask(shards, lambda shard: shard.pin(owner, uuids))

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


def _unfinished_error(
    failed: Mapping[int, CarlsError], left: Mapping[int, Change], done: Mapping[int, Applied]
) -> CarlsError:
    """Returns the error of a change of which some parts failed, with what is left of it."""
    error = first = next(iter(failed.values()))
    if not done and not any(map(resuming.is_marked, failed.values())):
        return error  # it was refused whole
    parts = {
        index: next(iter(resuming.unfinished(one).left.values()))
        if resuming.is_marked(one)
        else left[index]
        for index, one in failed.items()
    }
    if len(failed) + len(done) > 1:
        unsure = [index for index, one in failed.items() if resuming.is_marked(one)]
        told = {
            "applied their part": done,
            "refused it": failed.keys() - set(unsure),
            "may have applied it": unsure,
        }
        parts_of = [f"shards {sorted(ones)} {what}" for what, ones in told.items() if ones]
        error = type(first)(f"{first}. {', '.join(parts_of)}; resume(error) goes on with it")
        error.__cause__ = first
    return resuming.mark(error, Unfinished(parts, done))


def _part_of(change: Change, positions: NDArray[np.intp] | None = None) -> Change:
    """Returns a change to the keys at some positions (None: to all), with a header of its own."""
    header = pb.Change()
    header.CopyFrom(change.header)
    if positions is None:
        return Change(header, change.keys, change.values)
    values = {name: value[positions] for name, value in change.values.items()}
    return Change(header, change.keys[positions], values)
