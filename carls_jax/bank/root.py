"""`BankRoot`: the directory in which one shard of a bank keeps what must outlive its process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid as uuids
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carls_jax.bank.durable_files import make_directory, replace_file
from carls_jax.errors import AddressInUseError, BankIdentityError, InvalidInputError

_IDENTITY = {"bank_id": str, "shard_index": int, "num_shards": int}


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
                replace_file(path / "bank.json", json.dumps(expected))
            self.bank_id = str(expected["bank_id"])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets others use the directory."""
        self._unlock()


@contextmanager
def new_root(path: Path, *, bank_id: str, shard_index: int, num_shards: int) -> Iterator[Path]:
    """Gives an empty directory that belongs to a shard of a bank once the block has ended.

    Until then no bank can use it, whatever becomes of this process. If the block fails, the
    directory is as it was.

    Raises:
      InvalidInputError: There is something in the directory.
      AddressInUseError: Another process fills it.
    """
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"root={path} is a file: give a directory that is empty or new")
    was_there = path.exists()
    if was_there and any(one.name != "lock" for one in path.iterdir()):
        raise InvalidInputError(f"root={path} is not empty: give a directory that is, or a new one")
    if not was_there:
        make_directory(path)
    file = _lock(path)
    try:
        yield path
        identity = {"bank_id": bank_id, "shard_index": shard_index, "num_shards": num_shards}
        replace_file(path / "bank.json", json.dumps(identity))
    except BaseException:
        for one in path.iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        if not was_there:
            path.rmdir()
        raise
    finally:
        _unlock(file)


def _lock(path: Path) -> int:
    """Locks a directory and returns the open file that holds the lock."""
    try:
        # What a link leads to is not this bank's to write.
        file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InvalidInputError(f"root={path} cannot be locked: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        user = os.read(file, 20).decode(errors="replace") or "unknown"
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
    try:
        kept: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BankIdentityError(f"{path} does not say whose it is: {error}") from error
    if kept and {name: type(one) for name, one in kept.items()} != _IDENTITY:
        raise BankIdentityError(f"{path} does not say whose it is: {kept!r:.200}")
    return kept


def _shown(identity: dict[str, object]) -> str:
    return "shard {shard_index} of {num_shards} of bank {bank_id}".format(**identity)
