"""What pushes to the fields of a table: one `RowPusher` for each choice of fields, and kept."""

from __future__ import annotations

from collections.abc import Iterable

from carls_jax.bank.row_pusher import RowPusher
from carls_jax.bank.table_shard import TableShard

# Of each table; one for every choice of fields that is pushed to.
_MAX_PUSHERS = 64


def pusher(table: TableShard, names: Iterable[str]) -> RowPusher:
    """Returns what pushes to some fields of a table; the caller holds `writer`."""
    pushed = tuple(sorted(names))
    if pushed not in table.pushers:
        if len(table.pushers) == _MAX_PUSHERS:
            table.pushers.clear()
        groups = {group: table.spec.groups[group] for group in map(table.spec.group_of, pushed)}
        table.pushers[pushed] = RowPusher(table.columns, table.guards, groups, table.optimizers)
    return table.pushers[pushed]
