"""Files and directories that are there whole, or not at all, after a crash or a loss of power."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from carls_jax.errors import BankStorageError


def sync(path: Path) -> None:
    """Makes durable what a file holds, or which files a directory has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Makes a directory and the missing ones above it, each durably."""
    if not path.parent.exists():
        make_directory(path.parent)
    path.mkdir()
    sync(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Gives a file another content: who reads it, or finds it after a crash, sees either.

    Raises:
      BankStorageError: The disk is full or fails; the file is as it was.
    """
    try:
        _replace(path, text)
    except OSError as error:
        raise BankStorageError(f"{path} cannot be written: {error}") from error


def _replace(path: Path, text: str) -> None:
    # Not a fixed name, under which two writers would meet.
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync(path.parent)


def disk_bytes(path: Path) -> int:
    """Returns the bytes that a directory and all below it take on disk."""
    num_blocks = 0
    for directory, _, names in os.walk(path):
        for name in ("", *names):
            with suppress(FileNotFoundError):  # removed meanwhile
                num_blocks += os.lstat(os.path.join(directory, name)).st_blocks
    return num_blocks * 512  # whatever the file system's own blocks are
