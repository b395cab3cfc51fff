"""Which snapshots a bank has, in words."""

from __future__ import annotations

import time
from collections.abc import Sequence

from carls_jax.bank import Bank, SnapshotIdentity
from carls_jax.bank.stored_bank import StoredBank

_NONE = "no snapshots"


def list_stored(stored: StoredBank) -> str:
    """Tells which snapshots lie in a bank's directories, oldest first, also incomplete ones."""
    lines: list[Sequence[str]] = [("LABEL", "UUID", "TAKEN", "ROWS", "MB", "SHARDS", "PINNED BY")]
    for one in stored.describe():
        shards = "all" if one.is_complete else "some: incomplete"
        size = f"{one.num_bytes / 1e6:.1f}"
        lines.append((*_named(one.identity), size, shards, ", ".join(one.pinned_by) or "-"))
    damaged = [
        f"{root}: the manifest of {uuid} is damaged"
        for root, store in zip(stored.roots, stored.stores, strict=True)
        for uuid in store.damaged()
    ]
    return "\n".join([_table(lines), *damaged])


def list_served(bank: Bank) -> str:
    """Tells which snapshots a bank that is served can be put back to, oldest first."""
    lines = [("LABEL", "UUID", "TAKEN", "ROWS")]
    return _table([*lines, *(_named(one) for one in bank.snapshots())])


def _named(identity: SnapshotIdentity) -> tuple[str, str, str, str]:
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(identity.created_at))
    return identity.label, identity.uuid, taken, str(identity.num_rows)


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Returns lines below a head, in columns; numbers are set right."""
    if len(lines) == 1:
        return _NONE
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in ("ROWS", "MB") else cell.ljust(width)
            for cell, width, name in zip(line, widths, lines[0], strict=True)
        ).rstrip()
        for line in lines
    )
