"""Which files of a bank's snapshots are damaged."""

from __future__ import annotations

from collections.abc import Iterator

from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import CarlsError, SnapshotCorruptError, SnapshotNotFoundError


def check(stored: StoredBank, snapshot: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Reads snapshots whole, and yields the name of each and what is damaged in it: nothing, if [].

    Args:
      stored: The bank; it may be in use.
      snapshot: A UUID or label. None: all snapshots, those that some shards lack, too.

    Raises:
      SnapshotNotFoundError: There is none of that name.
    """
    held: dict[str, list[SnapshotStore]] = {}
    names: dict[str, str] = {}
    for store in stored.stores:
        for identity in store.list():
            names[identity.uuid] = f"{identity.label} ({identity.uuid})"
            if snapshot in (None, identity.label, identity.uuid):
                held.setdefault(identity.uuid, []).append(store)
        for uuid in store.damaged():  # of which the label cannot be known
            names.setdefault(uuid, uuid)
            held.setdefault(uuid, []).append(store)
    if not held and snapshot is not None:
        there = ", ".join(names.values()) or "none"
        raise SnapshotNotFoundError(f"no snapshot {snapshot!r}; there are: {there}")
    for uuid, stores in held.items():
        yield names[uuid], [problem for store in stores for problem in _problems(store, uuid)]


def _problems(store: SnapshotStore, uuid: str) -> Iterator[str]:
    """Reads each column by itself, so that one that is damaged does not hide another."""
    try:
        content = store.read(uuid)
    except CarlsError as error:
        yield str(error)
        return
    for table in content.tables:
        for column in table.columns:
            try:
                for _ in table.blocks([column]):
                    pass
            except SnapshotCorruptError as error:
                yield str(error)
