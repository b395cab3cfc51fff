"""`compact`: gives the space of old snapshots back."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from carls_jax.bank.durable_files import disk_bytes
from carls_jax.bank.root import BankRoot
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import InvalidInputError


@dataclass(frozen=True)
class Compacted:
    """Tells what was removed.

    Attributes:
      labels: Of the snapshots that were removed, oldest first.
      num_bytes: What that gave back, as measured on the disk; half-written ones too.
    """

    labels: tuple[str, ...]
    num_bytes: int


def compact(stored: StoredBank, *, max_snapshots: int) -> Compacted:
    """Removes what nobody needs of a bank that is not in use.

    That is: half-written snapshots; those that some shards lack; and all but the newest, and those
    that somebody has pinned. The last state of each shard stays in any case: its journal
    goes on from there.

    Args:
      stored: The bank.
      max_snapshots: How many complete ones stay, at least 1.

    Raises:
      AddressInUseError: A server has the bank; it removes old snapshots by itself.
      InvalidInputError: `max_snapshots` is below 1.
      SnapshotCorruptError: What is pinned cannot be read; nothing was removed.
    """
    if max_snapshots < 1:
        raise InvalidInputError(f"max_snapshots={max_snapshots}: allowed is 1 and more")
    with ExitStack() as held:
        for root, identity in zip(stored.roots, stored.identities, strict=True):
            held.callback(BankRoot(root, **identity).close)
        before = sum(disk_bytes(root / "snapshots") for root in stored.roots)
        described = stored.describe()
        complete = [one for one in described if one.is_complete]
        kept = {one.identity.uuid for one in complete[-max_snapshots:]}
        kept |= {one.identity.uuid for one in described if one.pinned_by}
        removed = {}
        for store in stored.stores:
            store.remove_orphans()
            last = store.last()
            for one in store.list():
                if one.uuid not in kept and one != last:
                    store.delete(one.uuid)
                    removed[one.uuid] = one
        after = sum(disk_bytes(root / "snapshots") for root in stored.roots)
    return Compacted(tuple(one.label for one in removed.values()), before - after)
