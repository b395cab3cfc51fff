"""`WholeTable`: a table of a snapshot over all shards, read as if there were one.

m is a number of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.layout import names_in
from carls_jax.bank.snapshot_arrays import TableContent
from carls_jax.bank.snapshots import SnapshotContent
from carls_jax.bank.specs import TableSpec
from carls_jax.errors import SnapshotCorruptError

Block = dict[str, NDArray[Any]]

_KINDS = ("sources", "clocks")


class WholeTable:
    """Joins the parts of a table that the shards hold. Rows come shard after shard.

    Each shard numbers sources and clocks by itself; here a number stands for one name everywhere.
    May be used from several threads.

    Args:
      parts: What each shard holds, in their order. None: a shard does not have the table.

    Attributes:
      spec: What the table is.
      num_rows: Rows on all shards.
      names: What the numbers in the columns stand for, as in `TableImage`.
      columns: Empty arrays `[0, ...]` that show each column's type and shape.

    Raises:
      SnapshotCorruptError: The shards disagree on what the table is.
    """

    def __init__(self, parts: Sequence[TableContent | None]) -> None:
        there = [part for part in parts if part is not None]
        first = there[0]
        self.spec: TableSpec = first.spec
        for part in there[1:]:
            _check_agree(first, part)
        self._parts = list(parts)
        self.num_rows = sum(part.num_rows for part in there)
        self.names: Mapping[str, Sequence[str]] = {
            kind: list(dict.fromkeys(name for part in there for name in part.names.get(kind, ())))
            for kind in _KINDS
        }
        self.columns: Mapping[str, NDArray[Any]] = {
            name: np.empty((0, *column.shape), column.dtype)
            for name, column in first.columns.items()
        }

    def blocks(
        self, names: Collection[str] | None = None, *, shards: Collection[int] | None = None
    ) -> Iterator[Block]:
        """Reads rows, checked, in blocks: columns by name `[m, ...]`, new arrays.

        Args:
          names: The columns that are wanted. None: all.
          shards: The shards whose rows are wanted. None: of all.

        Raises:
          SnapshotCorruptError: A column cannot be read or does not have its checksum.
        """
        for index, part in enumerate(self._parts):
            if part is None or not (shards is None or index in shards):
                continue
            numbers = {kind: self._numbers(part, kind) for kind in _KINDS}
            for block in part.blocks(names):
                for name in block:
                    if (kind := names_in(name)) and (renumbered := numbers[kind]) is not None:
                        block[name] = renumbered[block[name]].astype(block[name].dtype)
                yield block

    def _numbers(self, part: TableContent, kind: str) -> NDArray[np.int64] | None:
        """Returns what each number of a shard's is here; None: the same."""
        place = {name: number for number, name in enumerate(self.names[kind])}
        numbers = np.array([place[name] for name in part.names.get(kind, ())], np.int64)
        return None if np.array_equal(numbers, np.arange(numbers.size)) else numbers


def whole_tables(shards: Sequence[SnapshotContent]) -> dict[str, WholeTable]:
    """Returns the tables, by name, of the shards of one snapshot, which are given in order."""
    contents = [{table.spec.name: table for table in shard.tables} for shard in shards]
    names = sorted({name for tables in contents for name in tables})
    return {name: WholeTable([tables.get(name) for tables in contents]) for name in names}


def _check_agree(one: TableContent, other: TableContent) -> None:
    if (one.spec.to_dict(), _layout(one)) != (other.spec.to_dict(), _layout(other)):
        raise SnapshotCorruptError(
            f"table {one.spec.name!r} is not the same on all shards: it was altered while the "
            "snapshot was taken; take another one"
        )


def _layout(table: TableContent) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (column.dtype, column.shape) for name, column in table.columns.items()}
