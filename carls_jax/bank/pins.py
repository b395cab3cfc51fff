"""Which snapshots are kept however old they are, and for whom: `ROOT/pins.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from carls_jax.bank.durable_files import replace_file
from carls_jax.errors import BankOverloadedError, InvalidInputError, SnapshotCorruptError

MAX_OWNERS = 1024
MAX_PINS = 1024  # of one owner
MAX_OWNER_LETTERS = 1024

_FILE = "pins.json"


def check_owner(owner: object) -> str:
    """Returns an owner's name if it is one.

    Raises:
      InvalidInputError: It is not 1 to 1024 printable characters.
    """
    if not isinstance(owner, str) or not 0 < len(owner) <= MAX_OWNER_LETTERS:
        raise InvalidInputError(f"owner={owner!r:.80}: give 1 to {MAX_OWNER_LETTERS} characters")
    if not owner.isprintable():
        raise InvalidInputError(f"owner={owner!r:.80}: all of its characters must be printable")
    return owner


def read_pins(root: Path) -> dict[str, list[str]]:
    """Returns the UUIDs of the snapshots that each owner keeps in a bank's directory.

    Raises:
      SnapshotCorruptError: The file is damaged, so that nobody knows what must be kept.
    """
    path = root / _FILE
    try:
        pins = json.loads(path.read_bytes())
        return {str(owner): [str(one) for one in uuids] for owner, uuids in pins.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotCorruptError(
            f"{path} is damaged, so nobody knows which snapshots must be kept: put it back, or "
            f"remove it, and then none is pinned ({error!r})"
        ) from error


def write_pins(root: Path, *, owner: str, uuids: Sequence[str]) -> None:
    """Lets an owner keep these snapshots and no others, durably. One caller at a time.

    Raises:
      BankOverloadedError: There are too many; nothing was changed.
      SnapshotCorruptError: As `read_pins`.
    """
    pins = read_pins(root)
    if len(uuids) > MAX_PINS:
        raise BankOverloadedError(f"{len(uuids)} pins: an owner may have at most {MAX_PINS}")
    if owner not in pins and len(pins) >= MAX_OWNERS:
        raise BankOverloadedError(
            f"owner={owner!r} is one owner of pins too many: a bank knows at most {MAX_OWNERS}"
        )
    changed = {name: list(kept) for name, kept in pins.items() if name != owner}
    if uuids:
        changed[owner] = list(dict.fromkeys(uuids))
    if changed != pins:
        replace_file(root / _FILE, json.dumps(changed, indent=1) + "\n")


def pinned_by(pins: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns the owners that keep each snapshot, by UUID."""
    owners: dict[str, list[str]] = {}
    for owner, uuids in pins.items():
        for uuid in uuids:
            owners.setdefault(uuid, []).append(owner)
    return owners
