"""`open_snapshot`: what a snapshot holds, as a bank in memory, without a server."""

from __future__ import annotations

import os
from contextlib import ExitStack

from carls_jax.bank.interface import Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.stored_bank import StoredBank


def open_snapshot(*roots: str | os.PathLike[str], snapshot: str | None = None) -> Bank:
    """Returns a bank in this process's memory that holds what a snapshot does.

    The directories are only read, and may be in use. What is done to the bank is not kept.

    Args:
      roots: Directory of the bank; of a bank of several shards all, in the order of the shards, or
        one directory in which all of them are, such as the work directory of a run.
      snapshot: Its UUID, or its label, of which the newest is taken. None: the newest of all.

    Raises:
      InvalidInputError: A directory is no bank's.
      BankIdentityError: They are not those of all shards of one bank, in order.
      SnapshotNotFoundError: There is no such snapshot that is complete; the message lists those
        there are.
      SnapshotCorruptError: The snapshot is damaged.
    """
    stored = StoredBank(*roots)
    contents = stored.read(stored.find(snapshot))
    with ExitStack() as held:
        shards = [held.enter_context(LocalBank(**kept)) for kept in stored.identities]
        for shard, content in zip(shards, contents, strict=True):
            shard.take_over(content)
        held.pop_all()
    return shards[0] if len(shards) == 1 else ShardedBank(shards)
