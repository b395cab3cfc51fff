"""Tables that are read in blocks of rows, whatever they lie in: snapshots or exports.

m is a number of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.compact import decode
from carls_jax.bank.snapshot_arrays import Described
from carls_jax.bank.specs import Field
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.bank.whole_table import WholeTable, whole_tables

Block = dict[str, NDArray[Any]]


class StoredTable(Described, Protocol):
    """Is a table whose values are those that users know: compact fields are decoded.

    Columns are named as in `carls_jax.bank.layout`; the numbers in some stand for names of
    "sources" and "clocks".
    """

    def blocks(self, names: Collection[str]) -> Iterator[Block]:
        """Reads all rows of these columns, `[m, ...]` by name, always in the same order."""


@dataclass(frozen=True)
class Content:
    """Is what a snapshot or an export holds.

    Attributes:
      title: Where it is, and which it is.
      identity: The snapshot's, as plain JSON types.
      clocks: Highest step of each clock.
      tables: The tables by name.
    """

    title: str
    identity: Mapping[str, Any]
    clocks: Mapping[str, int]
    tables: Mapping[str, StoredTable]


class DecodedTable:
    """Is a `StoredTable` of a snapshot."""

    def __init__(self, table: WholeTable) -> None:
        self._table = table
        self.spec = table.spec
        self.num_rows = table.num_rows
        self.names = table.names
        self.columns = {name: self._decoded(name, one) for name, one in table.columns.items()}

    def blocks(self, names: Collection[str]) -> Iterator[Block]:
        """Reads all rows of some columns; see `StoredTable`."""
        for block in self._table.blocks(names):
            yield {name: self._decoded(name, column) for name, column in block.items()}

    def _decoded(self, name: str, column: NDArray[Any]) -> NDArray[Any]:
        field = self._value_field(name)
        return column if field is None else decode(field, column)

    def _value_field(self, column: str) -> Field | None:
        """Returns the field whose values, of now or before, are in a column."""
        kind, _, rest = column.partition("/")
        if kind == "value":
            return self.spec.fields[rest]
        if kind == "history" and rest.endswith("/value"):
            return self.spec.fields[rest.removesuffix("/value")]
        return None


def snapshot_content(stored: StoredBank, snapshot: str | None = None) -> Content:
    """Returns what a snapshot holds, by UUID or label; None: the newest.

    Raises:
      SnapshotNotFoundError, SnapshotCorruptError: There is none such, or it is damaged.
    """
    identity = stored.find(snapshot)
    shards = stored.read(identity)
    clocks: dict[str, int] = {}
    for shard in shards:
        for name, step in shard.clocks.items():
            clocks[name] = max(step, clocks.get(name, step))
    return Content(
        title=f"{stored.roots[0].parent if len(shards) > 1 else stored.roots[0]}@{identity.label}",
        identity={**vars(identity)},
        clocks=clocks,
        tables={name: DecodedTable(table) for name, table in whole_tables(shards).items()},
    )


def whole_column(table: StoredTable, name: str) -> NDArray[Any]:
    """Reads a column `[num_rows, ...]` as a whole."""
    blocks = [block[name] for block in table.blocks([name])]
    return np.concatenate([table.columns[name], *blocks])
