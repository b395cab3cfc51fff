"""`recover`: a bank's directory becomes the bank that it was, from a snapshot and a journal."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from carls_jax.bank.journal import read_journal
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.errors import CarlsError, JournalCorruptError, SnapshotCorruptError

_logger = logging.getLogger(__name__)


def recover(
    shard: Shard, store: SnapshotStore, journal: Path, *, bank_id: str, shard_index: int
) -> None:
    """Puts a new shard into the state that its last acknowledged change left.

    The readable snapshot of the highest sequence is loaded, and the later changes of the journal
    are applied as they were. A journal that does not follow on the snapshot is an error, so a
    damaged snapshot is passed over only where the journal makes up for it, or there is none.

    Raises:
      SnapshotCorruptError: There are snapshots, and none can be read.
      JournalCorruptError: The journal is damaged, or changes are missing, or one cannot be applied.
      BankIdentityError: The journal is of another bank or shard.
      BankStorageError: The disk cannot be read.
    """
    began = time.monotonic()
    content = _load(shard, store)
    after = content.sequence if content else 0
    num_changes = 0
    for sequence, change in read_journal(
        journal, bank_id=bank_id, shard_index=shard_index, after=after
    ):
        try:
            shard.replay(change, sequence)
        except CarlsError as error:
            raise JournalCorruptError(
                f"change {sequence} of the journal {journal}, a {change.kind}, cannot be applied: "
                f"{error}; start the bank with the version and limits that it had"
            ) from error
        num_changes += 1
    if content or num_changes:
        _logger.info(
            "recovered %s and %d changes of the journal in %.3g s",
            f"snapshot {content.identity.label}" if content else "no snapshot",
            num_changes,
            time.monotonic() - began,
        )


def _load(shard: Shard, store: SnapshotStore) -> SnapshotContent | None:
    """Loads the newest snapshot that can be read; None: there are none."""
    contents = [store.read(one.uuid) for one in store.list()]
    damaged: SnapshotCorruptError | None = None
    for content in reversed(contents):
        try:
            shard.replaced_by(content)
            return content
        except SnapshotCorruptError as error:
            _logger.error("snapshot %s is passed over: %s", content.identity.label, error)
            damaged = error
    if damaged is not None:
        raise damaged
    if uuids := store.damaged():
        raise SnapshotCorruptError(
            f"no snapshot can be read, and the manifests of these are damaged: {', '.join(uuids)}; "
            "put them back, or remove them to go on from the journal alone"
        )
    return None
