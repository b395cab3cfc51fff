"""`LocalBank`: a bank in this process, for servers, tests and notebooks."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid as uuids
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from carls_jax.bank import joining
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.durability import MAX_JOURNAL_BYTES, Durability
from carls_jax.bank.freezing import HOLD_S, Freezer
from carls_jax.bank.incarnation import JournalMode
from carls_jax.bank.interface import (
    Applied,
    Bank,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
    check_complete,
    find_snapshot,
)
from carls_jax.bank.joining import Followed
from carls_jax.bank.labels import check_label
from carls_jax.bank.pins import check_owner, pinned_by, read_pins, write_pins
from carls_jax.bank.root import BankRoot
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.shard import Frozen, Shard
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.specs import check_name
from carls_jax.bank.table_shard import TableShard
from carls_jax.bank.upkeep import Upkeep
from carls_jax.errors import BankClosedError, BankTimeoutError, InvalidInputError

# What the bank takes by itself; of these only the newest is kept, and only while it is the newest.
_AUTOMATIC, _RESTORED = "automatic", "restored"
_OWN_LABELS = (_AUTOMATIC, _RESTORED)

_logger = logging.getLogger(__name__)


class LocalBank(Bank):
    """Holds a whole bank, or one shard of one, in this process.

    Args:
      root: Directory for snapshots and the journal, made if it is not there. The bank goes on as
        they left it. None: the bank is new and takes no snapshots.
      source: The name under which this object's user writes.
      bank_id: Identifier of the bank. None: the one kept in `root`, or a new one.
      shard_index: Which shard of the bank this is, from 0.
      num_shards: How many shards the bank has.
      max_snapshots: Older snapshots than so many are removed.
      journal: What changes outlast that no snapshot holds yet: "off": nothing; "process": the end
        of the process, however sudden; "fsync": a loss of power too. None: "process" if there is a
        root.
      max_journal_bytes: When the journal is longer, a snapshot is taken in the background.

    Raises:
      InvalidInputError: An argument is not allowed.
      BankIdentityError: `root` belongs to another bank or shard.
      JournalCorruptError, SnapshotCorruptError: What `root` holds is damaged.
      BankStorageError: The disk is full or fails.
      AddressInUseError: Another bank object uses `root`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        source: str = "",
        bank_id: str | None = None,
        shard_index: int = 0,
        num_shards: int = 1,
        max_snapshots: int = 10,
        journal: JournalMode | None = None,
        max_journal_bytes: int = MAX_JOURNAL_BYTES,
    ) -> None:
        super().__init__(source=source)
        if not 0 <= shard_index < num_shards:
            raise InvalidInputError(
                f"shard_index={shard_index}: allowed is 0 to num_shards-1={num_shards - 1}"
            )
        if max_snapshots < 1:
            raise InvalidInputError(f"max_snapshots={max_snapshots}: allowed is 1 and more")
        if bank_id is not None:
            check_name(bank_id, argument="bank_id")
        if root is None and journal not in (None, "off"):
            raise InvalidInputError(f"journal={journal!r}: a bank without a root keeps none")
        self._root: BankRoot | None = None
        self._snapshots: SnapshotStore | None = None
        self._durability: Durability | None = None
        self._max_snapshots = max_snapshots
        self._next_incarnation = ""
        self._snapshot_lock = threading.Lock()
        self._freezer = Freezer(self._snapshot_lock)
        self._pins_lock = threading.Lock()  # who pins a snapshot, and who removes it, wait
        self._shard: Shard | None = Shard()
        self._upkeep = Upkeep(self._shard)
        self._identity = BankIdentity(
            bank_id or uuids.uuid4().hex, uuids.uuid4().hex, num_shards, shard_index
        )
        if root is not None:
            self._root = BankRoot(
                Path(root), bank_id=bank_id, shard_index=shard_index, num_shards=num_shards
            )
            try:
                self._recover(self._root, journal or "process", max_journal_bytes)
            except BaseException:
                self._root.close()
                raise

    def _recover(self, root: BankRoot, mode: JournalMode, max_journal_bytes: int) -> None:
        shard, index = self._open(), self._identity.shard_index
        self._snapshots = SnapshotStore(root.path, bank_id=root.bank_id, shard_index=index)
        self._snapshots.remove_orphans()
        bank = weakref.ref(self)
        self._durability = Durability(
            root.path,
            shard,
            self._snapshots,
            bank_id=root.bank_id,
            shard_index=index,
            mode=mode,
            max_journal_bytes=max_journal_bytes,
            take_snapshot=lambda: _take_automatic(bank()),
        )
        self._identity = replace(
            self._identity, bank_id=root.bank_id, incarnation=self._durability.incarnation
        )
        if self._durability.is_needless:
            self.take_automatic()
        self._upkeep.wake()

    @property
    def identity(self) -> BankIdentity:
        return self._identity

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        self._open()

    def apply(self, change: Change) -> Applied:
        applied = self._open().apply(change)
        if change.kind in ("create_table", "alter"):
            self._upkeep.wake()
        return applied

    @property
    def last_alter(self) -> int:
        return self._open().last_alter

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        return self._open().lookup(request, keys)

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = NO_KEYS) -> Followed:
        shard = self._open()
        return joining.follow(
            self._counted(shard.lookup),
            request,
            keys,
            held,
            spec_of=lambda name: shard.table(name).spec,
        )

    def share(self, table: str) -> tuple[BankIdentity, TableShard]:
        """Returns a table itself, for a server that lets other processes read its memory."""
        shared = self._open().table(table)
        return self._identity, shared  # read in this order: never a new table with the old identity

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        return self._open().history(request, keys)

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        return self._open().scan(request)

    def stats(self) -> BankStats:
        return self._open().stats()

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        check_label(label)
        if label in _OWN_LABELS:
            raise InvalidInputError(f"label={label!r}: the bank's own snapshots are called so")
        store = self._store()
        if is_frozen and uuid and (taken_state := self._freezer.take(uuid)):
            state, held = taken_state
            with held:
                return self._keep(label, state.go_on(), uuid)
        with self._snapshot_lock:
            # A client that did not hear that it was taken asks for it again.
            taken = find_snapshot(store.list(), uuid) if uuid else None
            if taken and (taken.uuid, taken.label) == (uuid, label):
                return taken
            if is_frozen:
                raise BankTimeoutError(
                    f"snapshot {label!r} ({uuid}) was not taken: the shards were not asked for it "
                    f"within {HOLD_S:.3g} s after they were frozen; take another one"
                )
            return self._take(label, uuid)

    def freeze(self, uuid: str) -> None:
        self._store()
        self._freezer.freeze(uuid, self._open().held)

    def thaw(self, uuid: str) -> None:
        self._freezer.thaw(uuid)

    def take_automatic(self) -> SnapshotIdentity:
        """Takes a snapshot of the bank's own, which makes its journal short."""
        with self._snapshot_lock:
            return self._take(_AUTOMATIC)

    def _take(self, label: str, uuid: str | None = None) -> SnapshotIdentity:
        """Takes a snapshot, and gives back the space of what it replaces."""
        with self._open().frozen() as frozen:
            return self._keep(label, frozen, uuid)

    def _keep(self, label: str, state: Frozen, uuid: str | None) -> SnapshotIdentity:
        identity = self._write(label, state, uuid)
        assert self._durability is not None
        self._durability.cut(state.sequence)
        self._remove_older(identity)
        return identity

    def _write(self, label: str, state: Frozen, uuid: str | None = None) -> SnapshotIdentity:
        """Makes a state a durable snapshot."""
        identity = SnapshotIdentity(
            self._identity.bank_id, label, uuid or uuids.uuid4().hex, created_at=time.time()
        )
        return self._store().write(
            identity,
            state.tables,
            clocks=state.clocks,
            sequence=state.sequence,
            clients=state.clients,
        )

    def _remove_older(self, newest: SnapshotIdentity) -> None:
        """Removes snapshots that are too many, but never that which the journal goes on from."""
        store = self._store()
        assert self._root is not None
        with self._pins_lock:
            kept = {newest.uuid, *pinned_by(read_pins(self._root.path))}
            for one in store.list():
                if one.label in _OWN_LABELS and one.uuid not in kept:
                    store.delete(one.uuid)
            store.retain(self._max_snapshots, keep=kept)

    def snapshots(self) -> list[SnapshotIdentity]:
        self._open()
        return self._snapshots.list() if self._snapshots else []

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        store = self._store()
        with self._snapshot_lock:
            content = store.read(snapshot)
            self.take_over(content)
        _logger.info("restored snapshot %s", content.identity.label)
        return content.identity

    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        return self._store().verify(snapshot)

    def pin(self, owner: str, snapshots: Sequence[SnapshotIdentity | str]) -> None:
        check_owner(owner)
        with self._pins_lock:
            uuids = check_complete(self._store().list(), snapshots)
            assert self._root is not None
            write_pins(self._root.path, owner=owner, uuids=uuids)

    def take_over(self, content: SnapshotContent) -> None:
        """Puts the bank into the state that a snapshot holds; see `restore` and `open_snapshot`.

        Raises:
          SnapshotCorruptError: The snapshot is damaged; nothing was changed.
        """
        self._open().replaced_by(content, keep=self._keep_restored, announce=self._be_another)
        self._upkeep.wake()

    def _keep_restored(self, state: Frozen) -> None:
        """Makes a restored state the one that a crash at any later instant leads to.

        Until the snapshot is there a crash leads to the state of before, from then on to this one:
        its number is higher than that of any change in the journal.
        """
        if self._durability is None:
            self._next_incarnation = uuids.uuid4().hex
            return
        self._next_incarnation = self._durability.begin_another()
        if not self._durability.has_journal:
            return
        identity = self._write(_RESTORED, state)
        try:
            self._durability.begin_anew(state.sequence)
        except BaseException:
            self._store().delete(identity.uuid)
            raise
        self._remove_older(identity)

    def _be_another(self) -> None:
        self._identity = replace(self._identity, incarnation=self._next_incarnation)

    def close(self) -> None:
        self._upkeep.stop()
        with self._snapshot_lock:  # a snapshot that is being written is finished
            shard, self._shard = self._shard, None
            if shard:
                shard.close()
                if self._durability:
                    self._durability.close()
            if self._root:
                self._root.close()

    def _open(self) -> Shard:
        if self._shard is None:
            raise BankClosedError("this bank was closed; connect again")
        return self._shard

    def _store(self) -> SnapshotStore:
        self._open()
        if self._snapshots is None:
            raise InvalidInputError(
                "this bank has no root directory, so it takes no snapshots: connect to "
                "'local:/path', or start the server with --root"
            )
        return self._snapshots


def _take_automatic(bank: LocalBank | None) -> None:
    if bank is not None:  # else nobody uses it any more
        bank.take_automatic()
