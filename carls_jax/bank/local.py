"""`LocalBank`: a bank in this process, for servers, tests and notebooks."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid as uuids
from dataclasses import replace
from pathlib import Path

from carls_jax.bank import joining
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.flush_timer import FlushTimer
from carls_jax.bank.interface import Applied, Bank, BankIdentity, BankStats, SnapshotIdentity
from carls_jax.bank.joining import Followed
from carls_jax.bank.root import BankRoot
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.specs import check_name
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import BankClosedError, InvalidInputError

_logger = logging.getLogger(__name__)


class LocalBank(Bank):
    """Holds a whole bank, or one shard of one, in this process.

    Args:
      root: Directory for snapshots, made if it is not there. None: the bank takes no snapshots.
      source: The name under which this object's user writes.
      bank_id: Identifier of the bank. None: the one kept in `root`, or a new one.
      shard_index: Which shard of the bank this is, from 0.
      num_shards: How many shards the bank has.
      max_snapshots: Older snapshots than so many are removed.

    Raises:
      BankIdentityError: `root` belongs to another bank or shard.
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
        self._root: BankRoot | None = None
        self._snapshots: SnapshotStore | None = None
        if root is not None:
            self._root = BankRoot(
                Path(root), bank_id=bank_id, shard_index=shard_index, num_shards=num_shards
            )
            bank_id = self._root.bank_id
            self._snapshots = SnapshotStore(Path(root), bank_id=bank_id, shard_index=shard_index)
            self._snapshots.remove_orphans()
        self._identity = BankIdentity(
            bank_id or uuids.uuid4().hex, uuids.uuid4().hex, num_shards, shard_index
        )
        self._max_snapshots = max_snapshots
        self._snapshot_lock = threading.Lock()
        self._shard: Shard | None = Shard()
        self._flush_timer = FlushTimer(self._shard)

    @property
    def identity(self) -> BankIdentity:
        return self._identity

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        self._open()

    def apply(self, change: Change) -> Applied:
        applied = self._open().apply(change)
        if change.kind == "create_table":
            self._flush_timer.wake()
        return applied

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

    def snapshot(self, label: str, *, uuid: str | None = None) -> SnapshotIdentity:
        check_name(label, argument="label")
        shard, store = self._open(), self._store()
        identity = SnapshotIdentity(
            self._identity.bank_id, label, uuid or uuids.uuid4().hex, created_at=time.time()
        )
        with self._snapshot_lock:
            with shard.frozen() as (tables, clocks, sequence):
                identity = store.write(identity, tables, clocks=clocks, sequence=sequence)
            store.retain(self._max_snapshots)
        return identity

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

    def take_over(self, content: SnapshotContent) -> None:
        """Puts the bank into the state that a snapshot holds; see `restore` and `open_snapshot`.

        Raises:
          SnapshotCorruptError: The snapshot is damaged; nothing was changed.
        """
        self._open().replaced_by(content, before=self._be_another)
        self._flush_timer.wake()

    def _be_another(self) -> None:
        self._identity = replace(self._identity, incarnation=uuids.uuid4().hex)

    def close(self) -> None:
        self._flush_timer.stop()
        with self._snapshot_lock:  # a snapshot that is being written is finished
            shard, self._shard = self._shard, None
            if shard:
                shard.retire()
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
