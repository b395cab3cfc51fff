"""`StoredBank`: what the directories of a bank's shards hold, read without a server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carls_jax.bank.interface import SnapshotIdentity, find_snapshot
from carls_jax.bank.merging import complete_snapshots, merged_snapshot
from carls_jax.bank.pins import check_owner, pinned_by, read_pins, write_pins
from carls_jax.bank.root import kept_identity
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.errors import BankIdentityError, InvalidInputError, SnapshotNotFoundError


@dataclass(frozen=True)
class StoredSnapshot:
    """Describes a snapshot of a bank as it lies on disk.

    Attributes:
      identity: Which it is; `num_rows` counts the rows of the shards that have it.
      num_bytes: What it takes on disk, on all shards.
      is_complete: Whether all shards have it. What is incomplete cannot be restored.
      pinned_by: Who keeps it, however old it becomes.
    """

    identity: SnapshotIdentity
    num_bytes: int
    is_complete: bool
    pinned_by: tuple[str, ...]


class StoredBank:
    """Is the bank whose shards have their directories here; reads them, also while they are in use.

    Args:
      roots: Directory of the bank; of a bank of several shards all, in the order of the shards, or
        one directory in which all of them are, such as the work directory of a run.

    Attributes:
      bank_id: Identifier of the bank.
      roots: The directories of its shards, in order.
      stores: Their snapshots.

    Raises:
      InvalidInputError: A directory is no bank's.
      BankIdentityError: They are not those of all shards of one bank, in order.
    """

    def __init__(self, *roots: str | os.PathLike[str]) -> None:
        self.roots = _within([Path(root) for root in roots])
        self.identities = _identities(self.roots)
        self.bank_id = str(self.identities[0]["bank_id"])
        self.stores = [
            SnapshotStore(root, bank_id=self.bank_id, shard_index=index)
            for index, root in enumerate(self.roots)
        ]

    def snapshots(self) -> list[SnapshotIdentity]:
        """Returns the snapshots that all shards have, oldest first; damaged ones are logged."""
        return complete_snapshots([store.list() for store in self.stores])

    def describe(self) -> list[StoredSnapshot]:
        """Describes all snapshots; damaged ones are logged.

        Those that the first shard has come first, oldest first, and then those that others have.

        Raises:
          SnapshotCorruptError: A file that tells what is pinned is damaged.
        """
        there: dict[str, list[tuple[SnapshotStore, SnapshotIdentity]]] = {}
        for store in self.stores:
            for identity in store.list():
                there.setdefault(identity.uuid, []).append((store, identity))
        owners: dict[str, set[str]] = {}
        for root in self.roots:
            for uuid, names in pinned_by(read_pins(root)).items():
                owners.setdefault(uuid, set()).update(names)
        return [
            StoredSnapshot(
                merged_snapshot([identity for _, identity in held]),
                sum(store.disk_bytes(uuid) for store, _ in held),
                len(held) == len(self.stores),
                tuple(sorted(owners.get(uuid, ()))),
            )
            for uuid, held in there.items()
        ]

    def find(self, wanted: str | None = None) -> SnapshotIdentity:
        """Returns the snapshot of a UUID or (the newest of a) label; None: the newest of all.

        Raises:
          SnapshotNotFoundError: All shards have none; the message lists those they have.
        """
        complete = self.snapshots()
        if wanted is None:
            found = complete[-1] if complete else None
        else:
            found = find_snapshot(complete, wanted)
        if found is None:
            named = "" if wanted is None else f" {wanted!r}"
            labels = ", ".join(one.label for one in complete) or "none"
            raise SnapshotNotFoundError(f"no complete snapshot{named}; there are: {labels}")
        return found

    def release(self, owner: str) -> None:
        """Lets go of what an owner has pinned. The caller has locked the directories."""
        for root in self.roots:
            write_pins(root, owner=check_owner(owner), uuids=[])

    def read(self, snapshot: SnapshotIdentity) -> list[SnapshotContent]:
        """Returns what each shard's part of a snapshot holds; see `SnapshotStore.read`."""
        return [store.read(snapshot) for store in self.stores]


def _within(paths: Sequence[Path]) -> list[Path]:
    """Returns the directories in a directory that is none itself, in the order of their shards."""
    if len(paths) != 1 or kept_identity(paths[0]) or not paths[0].is_dir():
        return list(paths)
    found = {root: kept_identity(root) for root in paths[0].iterdir() if root.is_dir()}
    kept = {root: identity for root, identity in found.items() if identity}
    banks = {(identity["bank_id"], identity["num_shards"]) for identity in kept.values()}
    if len(banks) > 1:
        names = ", ".join(sorted(root.name for root in kept))
        raise BankIdentityError(
            f"root={paths[0]} holds directories of {len(banks)} banks ({names}): name those of one"
        )
    return sorted(kept, key=lambda root: kept[root]["shard_index"]) or list(paths)


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
    if not identities:
        raise InvalidInputError("roots=(): give the directory of a bank")
    return identities
