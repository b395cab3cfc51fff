"""`open_snapshot`: what a snapshot holds, as a bank in memory, without a server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carls_jax.bank.interface import Bank, SnapshotIdentity, find_snapshot
from carls_jax.bank.local import LocalBank
from carls_jax.bank.root import kept_identity
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.errors import BankIdentityError, InvalidInputError, SnapshotNotFoundError


def open_snapshot(*roots: str | os.PathLike[str], snapshot: str | None = None) -> Bank:
    """Returns a bank in this process's memory that holds what a snapshot does.

    The directories are only read, and may be in use. What is done to the bank is not kept.

    Args:
      roots: Directory of the bank; of a bank of several shards all, in the order of the shards.
      snapshot: Its UUID, or its label, of which the newest is taken. None: the newest of all.

    Raises:
      InvalidInputError: A directory is no bank's.
      BankIdentityError: They are not those of all shards of one bank, in order.
      SnapshotNotFoundError: There is no such snapshot that is complete; the message lists those
        there are.
      SnapshotCorruptError: The snapshot is damaged.
    """
    identities = _identities([Path(root) for root in roots])
    stores = [
        SnapshotStore(Path(root), bank_id=kept["bank_id"], shard_index=kept["shard_index"])
        for root, kept in zip(roots, identities, strict=True)
    ]
    found = _find_complete(stores, snapshot)
    shards = [LocalBank(**kept) for kept in identities]
    for shard, store in zip(shards, stores, strict=True):
        shard.take_over(store.read(found.uuid))
    return shards[0] if len(shards) == 1 else ShardedBank(shards)


def _identities(roots: Sequence[Path]) -> list[dict[str, Any]]:
    identities: list[dict[str, Any]] = []
    for index, root in enumerate(roots):
        kept = kept_identity(root)
        if not kept:
            raise InvalidInputError(f"root={root} is no bank's directory")
        first = identities[0]["bank_id"] if identities else kept["bank_id"]
        if kept != {"bank_id": first, "shard_index": index, "num_shards": len(roots)}:
            raise BankIdentityError(
                f"root={root} belongs to shard {kept['shard_index']} of {kept['num_shards']} of "
                f"bank {kept['bank_id']}: give the directories of all shards of one bank, in order"
            )
        identities.append(kept)
    return identities


def _find_complete(stores: Sequence[SnapshotStore], wanted: str | None) -> SnapshotIdentity:
    """Returns a snapshot that all shards have."""
    listed = [store.list() for store in stores]
    everywhere = set.intersection(*({one.uuid for one in shard} for shard in listed))
    complete = [one for one in listed[0] if one.uuid in everywhere]
    if wanted is None:
        found = complete[-1] if complete else None
    else:
        found = find_snapshot(complete, wanted)
    if found is None:
        named = "" if wanted is None else f" {wanted!r}"
        labels = ", ".join(one.label for one in complete) or "none"
        raise SnapshotNotFoundError(f"no complete snapshot{named}; there are: {labels}")
    return found
