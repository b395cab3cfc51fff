"""Limiting: what a table's limit makes of a change, before the change gets its number.

Keys that are not yet let in leave the change, and rows go, by changes of their own, so that what
remains of it has room. All of it happens under the table's `writer`: no other change can take the
room, or write a row that goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from carls_jax.bank import applying, evicting
from carls_jax.bank.applying import Checked, Commit
from carls_jax.bank.changes import Change
from carls_jax.bank.interface import Applied
from carls_jax.bank.table_shard import TableShard
from carls_jax.keys import PADDING, string_keys


def prepare(
    table: TableShard,
    change: Change,
    clocks: Mapping[str, int],
    *,
    evict: Callable[[Change, TableShard], int],
) -> tuple[Change, Commit]:
    """Returns what a change to a limited table becomes, and what applies it.

    Args:
      clocks: Each clock's highest step.
      evict: Numbers and applies an eviction, and returns how many rows went.

    Raises:
      As `applying.prepare`; then at most rows were evicted.
    """
    checked = applying.check(table, change)
    seen = checked.new_keys
    change, checked, num_refused = _admitted(table, change, checked)
    evictions = evicting.for_room(table, checked, clocks, now=time.time())
    num_evicted = sum(evict(one, table) for one in evictions)
    table.make_room(checked.new_keys, source=change.header.author.source)
    is_new = checked.slots < 0

    def commit() -> Applied:
        applied = checked.commit()
        limiter = table.limiter
        if limiter is not None:
            limiter.note_sightings(seen, of=_author(table, change))
            is_written = is_new if change.kind == "create_rows" else np.ones_like(is_new)
            limiter.note_write(checked.slots, is_written)
        if num_refused:
            table.counts.add({"rows_not_admitted": num_refused})
        return replace(
            applied,
            num_evicted=applied.num_evicted + num_evicted,
            num_not_admitted=num_refused,
        )

    return change, commit


def _admitted(table: TableShard, change: Change, checked: Checked) -> tuple[Change, Checked, int]:
    """Leaves out of a change the new rows that are not yet let in, and tells how many."""
    limiter, new_keys = table.limiter, checked.new_keys
    if limiter is None or limiter.sightings is None or not new_keys.size:
        return change, checked, 0
    counts = limiter.sightings.counts(new_keys, of=_author(table, change))
    refused = new_keys[counts < limiter.limit.admit_after - 1]
    if not refused.size:
        return change, checked, 0
    keys = np.where(np.isin(change.keys, refused), PADDING, change.keys)
    change = Change(change.header, keys, change.values)
    return change, applying.check(table, change), refused.size


def _author(table: TableShard, change: Change) -> int:
    """Returns a number for the author whose rows the keys of a change mean."""
    if not table.spec.per_source:
        return 0
    return int(string_keys([change.header.author.source])[0])
