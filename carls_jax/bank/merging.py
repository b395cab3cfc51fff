"""Joins what the shards of a bank answer to what one bank would answer.

n is the number of keys, S the number of authors of a per-source table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.changes import NO_STEP, Keys
from carls_jax.bank.interface import Applied, BankStats, SnapshotIdentity, TableStats
from carls_jax.bank.rows import Rows

# What a lookup answers for a key that has no row.
_MISSING = {"version": 0, "step": NO_STEP, "updated_at": 0.0, "source": "", "clock": ""}


@dataclass(frozen=True)
class Part:
    """Says which keys of a call go to a shard, by their positions `[p]`, ascending."""

    shard: int
    positions: NDArray[np.intp]


class _Frame:
    """Puts arrays of parts where they belong among all keys and authors."""

    def __init__(
        self, num_keys: int, sources: Sequence[str], parts: Sequence[Part], rows: Sequence[Rows]
    ) -> None:
        self._sources = sources
        self._is_per_source = rows[0].found.ndim == 2
        self._outer = (num_keys, len(sources)) if self._is_per_source else (num_keys,)
        self._places = [self._place(*one) for one in zip(parts, rows, strict=True)]

    def _place(self, part: Part, rows: Rows) -> Any:
        if not self._is_per_source:
            return part.positions
        columns = [self._sources.index(name) for name in rows.sources]
        return np.ix_(part.positions, np.array(columns, np.intp))

    def join(self, arrays: Sequence[NDArray[Any]], fill: object) -> NDArray[Any]:
        """Joins one array of each part; `fill` stands where no part says anything."""
        inner = arrays[0].shape[len(self._outer) :]
        whole = np.full((*self._outer, *inner), fill, arrays[0].dtype)
        for place, array in zip(self._places, arrays, strict=True):
            whole[place] = array
        return whole

    def join_fields(
        self, mappings: Sequence[Mapping[str, NDArray[Any]]], fill: object
    ) -> dict[str, NDArray[Any]]:
        """Joins the arrays of each field."""
        return {name: self.join([one[name] for one in mappings], fill) for name in mappings[0]}


def merged_rows(
    keys: Keys, parts: Sequence[Part], rows: Sequence[Rows], *, more_sources: set[str]
) -> Rows:
    """Joins the rows of parts; not found are keys of no part and authors unknown to theirs.

    `more_sources` are authors that none of these parts may know.
    """
    sources = sorted(more_sources.union(*(one.sources for one in rows)))
    frame = _Frame(keys.size, sources, parts, rows)
    return Rows(
        keys=keys,
        values=frame.join_fields([one.values for one in rows], 0),
        found=frame.join([one.found for one in rows], False),
        present=frame.join_fields([one.present for one in rows], False),
        metadata={
            kind: frame.join_fields([one.metadata[kind] for one in rows], _MISSING[kind])
            for kind in rows[0].metadata
        },
        sources=tuple(sources),
        num_created=sum(one.num_created for one in rows),
    )


def merged_applied(parts: Sequence[Applied]) -> Applied:
    """Adds up what the parts of a change did."""
    return Applied(
        sequence=max(one.sequence for one in parts),
        num_created=sum(one.num_created for one in parts),
        num_deleted=sum(one.num_deleted for one in parts),
        num_kept=sum(one.num_kept for one in parts),
        num_evicted=sum(one.num_evicted for one in parts),
        num_not_admitted=sum(one.num_not_admitted for one in parts),
        unknown_keys=np.sort(np.concatenate([one.unknown_keys for one in parts])),
        is_repeated=any(one.is_repeated for one in parts),
    )


def merged_stats(shards: Sequence[BankStats]) -> BankStats:
    """Adds up the counts of the shards; of clocks and sequences the highest counts."""
    tables: dict[str, list[TableStats]] = {}
    for shard in shards:
        for name, table in shard.tables.items():
            tables.setdefault(name, []).append(table)
    clocks = {name for shard in shards for name in shard.clocks}
    return BankStats(
        tables={name: _merged_table(of_shards) for name, of_shards in tables.items()},
        clocks={
            name: max(shard.clocks.get(name, NO_STEP) for shard in shards)
            for name in sorted(clocks)
        },
        sequence=max(shard.sequence for shard in shards),
    )


def _merged_table(shards: Sequence[TableStats]) -> TableStats:
    return TableStats(
        spec=shards[0].spec,
        num_rows=sum(one.num_rows for one in shards),
        num_bytes=sum(one.num_bytes for one in shards),
        counters=_added(one.counters for one in shards),
        rows_written=_added(one.rows_written for one in shards),
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def merged_snapshot(shards: Sequence[SnapshotIdentity]) -> SnapshotIdentity:
    """Returns the identity of a bank's snapshot, which that of each shard shares."""
    return replace(
        shards[0],
        created_at=max(one.created_at for one in shards),
        num_rows=sum(one.num_rows for one in shards),
    )


def complete_snapshots(shards: Sequence[Sequence[SnapshotIdentity]]) -> list[SnapshotIdentity]:
    """Returns the snapshots that all shards list, in the order of the first: oldest first."""
    by_uuid: dict[str, list[SnapshotIdentity]] = {}
    for listed in shards:
        for one in listed:
            by_uuid.setdefault(one.uuid, []).append(one)
    return [merged_snapshot(ones) for ones in by_uuid.values() if len(ones) == len(shards)]
