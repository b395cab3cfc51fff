"""`reshard`: a snapshot of a bank of some number of shards, written for another number of them.

No server takes part: rows go from the old shards' snapshots, block by block, into snapshots in new
directories, from which servers then start.

m is a number of rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.interface import SnapshotIdentity
from carls_jax.bank.root import new_root
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.bank.table_shard import MAX_AUTHORS, MAX_CLOCKS, MAX_SOURCES
from carls_jax.bank.whole_table import Block, WholeTable, whole_tables
from carls_jax.errors import BankFullError, InvalidInputError, SnapshotCorruptError
from carls_jax.keys import shard_of

Path_ = str | os.PathLike[str]


def reshard(
    roots: Sequence[Path_], new_roots: Sequence[Path_], *, snapshot: str
) -> SnapshotIdentity:
    """Writes a snapshot for another number of shards, into new directories.

    The bank stays the same bank, and the snapshot keeps its label and UUID, so a checkpoint that
    names it is resumed with the new shards as with the old. Every column of every row comes over,
    bit for bit: values, optimizer state, versions, steps, sources, history, gathered gradients.
    What was changed after the snapshot does not, nor which changes of clients were applied: take
    the snapshot when all have stopped to write. The old directories are only read, and may be in
    use. Memory is taken for a few blocks of rows.

    Args:
      roots: Directories of the bank, as for `open_snapshot`.
      new_roots: One for each new shard, in order: empty, or not there. If anything fails they stay
        so; if the process is killed, no bank can start from what it left.
      snapshot: Its UUID, or its label, of which the newest is taken.

    Raises:
      InvalidInputError: A directory is no bank's, or a new one is not empty, or named twice.
      BankIdentityError, SnapshotNotFoundError, SnapshotCorruptError: As `open_snapshot`.
      BankFullError: A new shard would hold more rows than a table may, or more names.
      BankError: The new snapshot cannot be written, for want of room, say.
    """
    paths = [Path(root).absolute() for root in new_roots]
    if not paths or len(set(paths)) < len(paths):
        raise InvalidInputError(f"new_roots={list(new_roots)}: give different directories")
    stored = StoredBank(*roots)
    identity = stored.find(snapshot)
    contents = stored.read(identity)
    tables = whole_tables(contents).values()
    with ExitStack() as held:
        for index, path in enumerate(paths):
            held.enter_context(
                new_root(path, bank_id=stored.bank_id, shard_index=index, num_shards=len(paths))
            )
        shares = [_rows_of_shards(table, len(contents), len(paths)) for table in tables]
        for index, path in enumerate(paths):
            store = SnapshotStore(path, bank_id=stored.bank_id, shard_index=index)
            parts = [
                _Part(table, counts[index], index, len(contents), len(paths))
                for table, counts in zip(tables, shares, strict=True)
            ]
            store.write(
                identity,
                parts,
                clocks=_clocks(contents),
                sequence=max(content.sequence for content in contents),
            )
    return identity


class _Part:
    """Gives the rows of a table that a new shard gets, to be read once; see `Readable`."""

    def __init__(
        self, table: WholeTable, num_rows: int, shard: int, num_old: int, num_new: int
    ) -> None:
        self.spec = table.spec
        self.num_rows = num_rows
        self.names = table.names
        self.columns = table.columns
        # The same bits of a key's hash chose the old shard: as hash % num_old. So what is
        # hash % num_new = shard comes from old shards that agree with it modulo what divides both.
        divisor = math.gcd(num_old, num_new)
        old = range(shard % divisor, num_old, divisor)
        self._blocks = _selected(table, old, shard=shard, num_shards=num_new)
        self._rest: Mapping[str, NDArray[Any]] = table.columns

    def read(self, out: Mapping[str, NDArray[Any]]) -> None:
        """Fills arrays `[m, ...]`, one for each column, with the next m rows; there must be m."""
        filled, num_rows = 0, out["key"].shape[0]
        while filled < num_rows:
            if not self._rest["key"].size:
                self._rest = next(self._blocks)
            num_taken = min(self._rest["key"].size, num_rows - filled)
            for name, column in out.items():
                column[filled : filled + num_taken] = self._rest[name][:num_taken]
            self._rest = {name: column[num_taken:] for name, column in self._rest.items()}
            filled += num_taken


def _selected(
    table: WholeTable, old: Collection[int], *, shard: int, num_shards: int
) -> Iterator[Block]:
    """Yields the rows that a new shard gets of old ones."""
    for block in table.blocks(shards=old):
        chosen = shard_of(block["key"], num_shards) == shard
        yield {name: column[chosen] for name, column in block.items()}


def _rows_of_shards(table: WholeTable, num_old: int, num_new: int) -> list[int]:
    """Counts the rows that each new shard gets of a table, before any is written.

    Raises:
      SnapshotCorruptError: A row is not on the shard where its key belongs.
      BankFullError: A new shard cannot hold so much.
    """
    counts = np.zeros(num_new, np.int64)
    for old in range(num_old):
        for block in table.blocks(["key"], shards=[old]):
            if (shard_of(block["key"], num_old) != old).any():
                raise SnapshotCorruptError(
                    f"shard {old} of {num_old} holds rows of table {table.spec.name!r} that belong "
                    "on another"
                )
            counts += np.bincount(shard_of(block["key"], num_new), minlength=num_new)
    _check_room(table, int(counts.max(initial=0)))
    return [int(count) for count in counts]


def _check_room(table: WholeTable, most_rows: int) -> None:
    limits = {
        "rows": (most_rows, table.spec.max_rows),
        "sources": (
            len(table.names["sources"]),
            MAX_AUTHORS if table.spec.per_source else MAX_SOURCES,
        ),
        "clocks": (len(table.names["clocks"]), MAX_CLOCKS),
    }
    for what, (number, most) in limits.items():
        if number > most:
            raise BankFullError(
                f"table {table.spec.name!r} would have {number} {what} on one shard, and may have "
                f"{most}: give more new directories"
            )


def _clocks(contents: Sequence[SnapshotContent]) -> dict[str, int]:
    """Returns the highest step of each clock."""
    steps: dict[str, int] = {}
    for content in contents:
        for name, step in content.clocks.items():
            steps[name] = max(step, steps.get(name, step))
    return steps
