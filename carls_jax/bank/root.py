"""`BankRoot`: the directory in which one shard of a bank keeps what must outlive its process."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import uuid as uuids
import weakref
from pathlib import Path
from typing import Any

from carls_jax.errors import AddressInUseError, BankIdentityError


class BankRoot:
    """Is a directory that belongs to one shard of one bank, and to one process at a time.

        ROOT/bank.json    which bank and shard it belongs to
        ROOT/lock         locked by the process that uses it, whose number it holds

    Args:
      path: The directory, made if it is not there.
      bank_id: Identifier of the bank. None: the one that is kept, or a new one.
      shard_index: Which shard of the bank this is, from 0.
      num_shards: How many shards the bank has.

    Attributes:
      path: The directory.
      bank_id: Identifier of the bank that it belongs to.

    Raises:
      AddressInUseError: Another bank object uses the directory.
      BankIdentityError: It belongs to another bank or shard.
    """

    def __init__(
        self, path: Path, *, bank_id: str | None, shard_index: int, num_shards: int
    ) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Once, by `close` or with the object.
        self._unlock = weakref.finalize(self, _unlock, _lock(path))
        try:
            kept = kept_identity(path)
            expected = {
                "bank_id": bank_id or kept.get("bank_id") or uuids.uuid4().hex,
                "shard_index": shard_index,
                "num_shards": num_shards,
            }
            if kept and kept != expected:
                raise BankIdentityError(
                    f"root={path} belongs to {_shown(kept)}, not to {_shown(expected)}: give "
                    "another root"
                )
            if not kept and (path / "snapshots").exists():
                raise BankIdentityError(
                    f"root={path} holds snapshots, but bank.json, which says of which bank, is "
                    "missing or empty: put it back, or give another root"
                )
            if not kept:
                _keep(path / "bank.json", expected)
            self.bank_id = str(expected["bank_id"])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets others use the directory."""
        self._unlock()


def _lock(path: Path) -> int:
    """Locks a directory and returns the open file that holds the lock."""
    file = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        user = os.read(file, 20).decode() or "unknown"
        os.close(file)
        raise AddressInUseError(
            f"root={path} is in use by process {user}: close that bank, connect to its server, or "
            "give another root"
        ) from error
    os.truncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    return file


def _unlock(file: int) -> None:
    # Closing alone would leave it locked by the children of a fork.
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def kept_identity(root: Path) -> dict[str, Any]:
    """Returns the `bank_id`, `shard_index` and `num_shards` of a directory; empty: it has none."""
    path = root / "bank.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise BankIdentityError(f"{path} does not say whose it is: {error}") from error


def _keep(path: Path, identity: dict[str, object]) -> None:
    """Writes an identity aside and renames it, so that none is ever half-written."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(identity, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _shown(identity: dict[str, object]) -> str:
    return "shard {shard_index} of {num_shards} of bank {bank_id}".format(**identity)
