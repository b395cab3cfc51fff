"""What `carls-jax snapshots`, `inspect` and `diff` do with their options; see `options.py`.

All that a command needs is imported when it is run.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from carls_jax.errors import CarlsError, ConfigError

if TYPE_CHECKING:
    from carls_jax.bank import Bank, SnapshotIdentity
    from carls_jax.bank.stored_bank import StoredBank
    from carls_jax.snapshots.tables import Content


def list_(options: Namespace) -> int:
    """Tells which snapshots there are."""
    from carls_jax.snapshots.listing import list_served, list_stored

    if options.address:
        with _served(options) as bank:
            print(list_served(bank))
    else:
        print(list_stored(_stored(options)))
    return 0


def verify(options: Namespace) -> int:
    """Reads snapshots whole; the exit status is 1 if one is damaged."""
    from carls_jax.snapshots.checking import check

    if not options.address:
        return _tell(check(_stored(options), options.snapshot))
    with _served(options) as bank:
        wanted = [options.snapshot] if options.snapshot else bank.snapshots()
        return _tell((_named(bank.verify(one)), []) for one in wanted)


def restore(options: Namespace) -> int:
    """Puts a served bank back to a snapshot, or writes one for other shards."""
    if options.address:
        if options.to:
            raise ConfigError("--to is for --root: a bank that is served keeps its shards")
        with _served(options) as bank:
            restored = bank.restore(options.snapshot)
        print(f"the bank at {options.address} is as it was at {_named(restored)}")
        return 0
    from carls_jax.bank.resharding import reshard

    if not options.to:
        raise ConfigError("give --to, a new directory for each shard; or --address of a bank")
    written = reshard(_stored(options).roots, options.to, snapshot=options.snapshot)
    print(f"{_named(written)} is written; the servers of the bank are now:")
    for index, root in enumerate(options.to):
        shard = f"--shard {index}/{len(options.to)} --bank-id {written.bank_id}"
        print(f"  carls-jax bank --root {root} {shard} --address ADDRESS")
    return 0


def compact(options: Namespace) -> int:
    """Removes what nobody needs."""
    from carls_jax.snapshots.compacting import compact

    done = compact(_stored(options), max_snapshots=options.keep)
    for label in done.labels:
        print(f"removed {label}")
    print(f"{done.num_bytes / 1e6:.1f} MB came back")
    return 0


def release(options: Namespace) -> int:
    """Lets go of what an owner has pinned."""
    from carls_jax.bank.root import BankRoot

    if options.address:
        with _served(options) as bank:
            bank.pin(options.owner, [])
    else:
        stored = _stored(options)
        with ExitStack() as held:
            for root, identity in zip(stored.roots, stored.identities, strict=True):
                held.callback(BankRoot(root, **identity).close)
            stored.release(options.owner)
    print(f"{options.owner} pins nothing now; `carls-jax snapshots compact` gives space back")
    return 0


def export(options: Namespace) -> int:
    """Writes a snapshot as a .npz file."""
    from carls_jax.snapshots.exporting import export
    from carls_jax.snapshots.tables import snapshot_content

    content = snapshot_content(_stored(options), options.snapshot)
    num_bytes = export(content, options.file, tables=options.table)
    print(f"{content.title}: {num_bytes / 1e6:.1f} MB in {options.file}")
    return 0


def inspect(options: Namespace) -> int:
    """Tells what a table is, or what a row holds."""
    from carls_jax.launch.explaining import explain
    from carls_jax.snapshots.inspecting import describe_table

    with ExitStack() as held:
        bank = held.enter_context(_bank(options))
        if options.key is None:
            print(describe_table(bank, options.table))
        else:
            print(explain(bank, options.table, options.key))
    return 0


def diff(options: Namespace) -> int:
    """Compares two snapshots; the exit status is 0 if they are equal, 1 if not, 2 if in trouble."""
    from carls_jax.snapshots.comparing import compare
    from carls_jax.snapshots.difference import describe

    try:
        a, b = (_content(side) for side in (options.a, options.b))
        difference = compare(a, b)
    except CarlsError as error:
        print(f"carls-jax diff: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if difference:
        print(describe(difference, a.title, b.title))
    return 1 if difference else 0


def _stored(options: Namespace) -> StoredBank:
    from carls_jax.bank.stored_bank import StoredBank

    return StoredBank(*options.root)


def _served(options: Namespace) -> Bank:
    from carls_jax.bank import connect

    return connect(options.address)


def _bank(options: Namespace) -> AbstractContextManager[Bank]:
    """Opens the bank that is served, or what its newest snapshot holds."""
    if options.address:
        return _served(options)
    if options.root:
        from carls_jax.bank import open_snapshot

        return open_snapshot(*options.root)
    from carls_jax.launch.inspecting import bank_of

    return bank_of(options.workdir)


def _content(side: str) -> Content:
    """Opens an export, or a snapshot that is written as DIRECTORY or DIRECTORY@SNAPSHOT."""
    from carls_jax.bank.stored_bank import StoredBank
    from carls_jax.snapshots.exported import exported_content
    from carls_jax.snapshots.tables import snapshot_content

    if side.endswith(".npz"):
        return exported_content(Path(side))
    root, _, snapshot = (side, "", "") if Path(side).exists() else side.rpartition("@")
    return snapshot_content(StoredBank(root or side), snapshot if root and snapshot else None)


def _named(identity: SnapshotIdentity) -> str:
    return f"{identity.label} ({identity.uuid})"


def _tell(checked: Iterable[tuple[str, list[str]]]) -> int:
    """Prints what was found in each snapshot, and returns the exit status."""
    status = 0
    for name, problems in checked:
        print(f"{name}: {'damaged' if problems else 'sound'}", *problems, sep="\n  ", flush=True)
        status = 1 if problems else status
    return status
