"""`compare`: in what two snapshots, or exports, differ.

Rows are the same row if they have the same key and, in a per-source table, the same author. They
are compared bit for bit, in parts, so that memory is taken for keys and a part of one column.

n is the number of rows of one side, p that of the rows that both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.layout import names_in
from carls_jax.snapshots.difference import Change, Difference, TableDifference
from carls_jax.snapshots.tables import Content, StoredTable, whole_column

# Of a column, on each side, that are held at once.
PART_BYTES = 64 << 20


def compare(a: Content, b: Content, *, part_bytes: int = PART_BYTES) -> Difference:
    """Compares what two snapshots, or exports, hold.

    Raises:
      SnapshotCorruptError: One is damaged.
    """
    compared = {
        name: _compare_tables(a.tables[name], b.tables[name], part_bytes)
        for name in a.tables
        if name in b.tables
    }
    clocks = {name: (a.clocks.get(name), b.clocks.get(name)) for name in {*a.clocks, *b.clocks}}
    return Difference(
        tables_only_in_a=_only(a.tables, b.tables),
        tables_only_in_b=_only(b.tables, a.tables),
        tables={name: one for name, one in compared.items() if one},
        clocks={name: steps for name, steps in sorted(clocks.items()) if steps[0] != steps[1]},
    )


def _only(these: Mapping[str, Any], those: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in these if name not in those)


def _compare_tables(a: StoredTable, b: StoredTable, part_bytes: int) -> TableDifference:
    pairs = _Pairs(a, b)
    is_changed = np.zeros(pairs.num_pairs, np.bool_)
    columns: dict[str, Change] = {}
    for name in a.columns:
        if name not in ("key", "author") and name in b.columns:
            differs, columns[name] = pairs.compare(name, part_bytes)
            is_changed |= differs
    return TableDifference(
        only_in_a=a.num_rows - pairs.num_pairs,
        only_in_b=b.num_rows - pairs.num_pairs,
        columns_only_in_a=_only(a.columns, b.columns),
        columns_only_in_b=_only(b.columns, a.columns),
        num_changed=int(is_changed.sum()),
        columns={name: change for name, change in columns.items() if change.num_rows},
    )


class _Pairs:
    """Is the rows that two tables have in common, numbered in the order of the first table."""

    def __init__(self, a: StoredTable, b: StoredTable) -> None:
        self._sides = (a, b)
        # What the numbers in columns of names are here, the same for both.
        self._shared = {
            kind: {name: place for place, name in enumerate({*a.names[kind], *b.names[kind]})}
            for kind in ("sources", "clocks")
        }
        keys = np.concatenate([whole_column(side, "key") for side in self._sides])
        authors = np.concatenate([self._authors(side) for side in self._sides])
        order = np.lexsort((np.arange(keys.size) >= a.num_rows, authors, keys))
        keys, authors = keys[order], authors[order]
        first = np.flatnonzero((keys[1:] == keys[:-1]) & (authors[1:] == authors[:-1]))
        first = first[np.argsort(order[first])]
        self.num_pairs = int(first.size)
        # Of each row of both sides its pair, or -1.
        pair_of_row = np.full(keys.size, -1, np.int64)
        for place in (first, first + 1):
            pair_of_row[order[place]] = np.arange(self.num_pairs)
        self._pair_of_row = (pair_of_row[: a.num_rows], pair_of_row[a.num_rows :])

    def compare(self, name: str, part_bytes: int) -> tuple[NDArray[np.bool_], Change]:
        """Compares a column that both have: tells which pairs differ `[p]`, and by how much."""
        differs = np.zeros(self.num_pairs, np.bool_)
        distances = []
        num_rows = max(1, part_bytes // max(_row_bytes(side, name) for side in self._sides))
        for start in range(0, self.num_pairs, num_rows):
            stop = min(start + num_rows, self.num_pairs)
            a, b = (self._rows(side, name, start, stop) for side in (0, 1))
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                differs[:] = True
                break
            differs[start:stop] = part = _differs(a, b)
            if names_in(name) is None and part.any():
                distances.append(_distance(a[part], b[part]))
        return differs, Change(int(differs.sum()), _largest(distances))

    def _rows(self, side: int, name: str, start: int, stop: int) -> NDArray[Any]:
        """Reads a column of one side for the pairs from `start` to `stop`."""
        table, pair_of_row = self._sides[side], self._pair_of_row[side]
        like = self._unified(table, name, table.columns[name])
        rows = np.empty((stop - start, *like.shape[1:]), like.dtype)
        num_read = 0
        for block in table.blocks([name]):
            column = self._unified(table, name, block[name])
            pairs = pair_of_row[num_read : num_read + column.shape[0]]
            num_read += column.shape[0]
            chosen = (pairs >= start) & (pairs < stop)
            rows[pairs[chosen] - start] = column[chosen]
        return rows

    def _authors(self, table: StoredTable) -> NDArray[Any]:
        if "author" not in table.columns:
            return np.zeros(table.num_rows, np.int64)
        return self._unified(table, "author", whole_column(table, "author"))

    def _unified(self, table: StoredTable, name: str, column: NDArray[Any]) -> NDArray[Any]:
        """Returns a column in which the same number is the same name on both sides."""
        kind = names_in(name)
        if kind is None:
            return column
        return np.array([self._shared[kind][one] for one in table.names[kind]], np.int64)[column]


def _row_bytes(table: StoredTable, name: str) -> int:
    return prod(table.columns[name].shape[1:]) * table.columns[name].itemsize


def _differs(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Tells which rows do not have the same bits: NaN equals itself, and -0.0 is not 0.0."""
    if not a.shape[0]:
        return np.zeros(0, np.bool_)
    bits = [side.reshape(side.shape[0], -1).view(np.uint8) for side in (a, b)]
    different: NDArray[np.bool_] = (bits[0] != bits[1]).any(axis=1)
    return different


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Returns the largest absolute difference of two arrays of one type, which are not empty."""
    if a.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            distances = np.abs(a.astype(np.float64) - b.astype(np.float64))
        numbers = distances[~np.isnan(distances)]
        return float(numbers.max()) if numbers.size else float("nan")
    if a.dtype.kind == "b":
        return 1.0
    # Beyond the largest signed integer the difference is still right as an unsigned one.
    distances = (np.maximum(a, b) - np.minimum(a, b)).view(f"u{a.itemsize}")
    return float(distances.max())


def _largest(distances: list[float]) -> float | None:
    return max(distances, key=lambda one: -1.0 if np.isnan(one) else one, default=None)
