"""`export`: writes a snapshot as a `.npz` file, which NumPy reads without anything of ours.

    data = np.load("bank.npz")
    data["nodes/key"]              int64 [n], the keys of table "nodes"
    data["nodes/value/score"]      [n, ...], values of field "score"; compact ones are decoded
    data["nodes/version/score"]    and "step", "updated_at"; of a group of fields under its name
    data["nodes/source/score"]     numbers, which stand for the names in data["nodes/sources"]
    data["nodes/clock/score"]      the same, for data["nodes/clocks"]
    data["nodes/author"]           of a per-source table, for data["nodes/sources"], too
    data["nodes/spec"]             the table's spec, as JSON
    data["snapshot"]               which snapshot it is, and its clocks, as JSON

"state/…", "history/…" and "pending/…" are what optimizers keep, earlier writes, and gathered
gradients; see `carls_jax.bank.layout`. A slash in a table's name is written as %2F.
"""

from __future__ import annotations

import fcntl
import json
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.durable_files import sync
from carls_jax.errors import BankError, InvalidInputError, TableNotFoundError
from carls_jax.snapshots.tables import Content, StoredTable


def export(content: Content, path: Path, *, tables: Collection[str] | None = None) -> int:
    """Writes a snapshot into a file, and returns how many bytes that has.

    It is written aside, block by block, and takes its name when it is whole: until then, and if it
    fails, whatever was there before stays. There is no limit but the disk's to its size.

    Args:
      content: The snapshot.
      path: A file, whose name ends with `.npz`.
      tables: Those to write. None: all.

    Raises:
      InvalidInputError: The name ends with something else, or the file is being written by another.
      TableNotFoundError: The snapshot has no such table.
      SnapshotCorruptError: The snapshot is damaged.
      BankError: The file cannot be written, for want of room, say.
    """
    if path.suffix != ".npz":
        raise InvalidInputError(f"file={path}: give a name that ends with .npz")
    chosen = list(content.tables if tables is None else dict.fromkeys(tables))
    for name in chosen:
        if name not in content.tables:
            there = ", ".join(content.tables) or "none"
            raise TableNotFoundError(f"no table {name!r} in {content.title}; it has {there}")
    try:
        with _aside(path) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                about = {"identity": dict(content.identity), "clocks": dict(content.clocks)}
                _write_array(archive, "snapshot", np.array(json.dumps(about)))
                for name in chosen:
                    _write_table(archive, quote(name, safe=""), content.tables[name])
            return file.tell()
    except OSError as error:
        raise BankError(f"{path} cannot be written: {error}") from error


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """Gives a new file, which takes the place of `path` when the block has ended."""
    # Its name is always the same, so that one export removes what an earlier one, killed, left.
    draft = path.with_name(f".{path.name}.partial")
    with open(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "wb") as file:
        if not _is_ours(file, draft):
            raise InvalidInputError(f"file={path} is being written by another export")
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
            sync(path.parent)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _is_ours(file: IO[bytes], draft: Path) -> bool:
    """Tells whether no other process writes an open file, nor has made it what it was meant for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), draft.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _write_table(archive: zipfile.ZipFile, folder: str, table: StoredTable) -> None:
    _write_array(archive, f"{folder}/spec", np.array(json.dumps(table.spec.to_dict())))
    for kind, names in table.names.items():
        _write_array(archive, f"{folder}/{kind}", np.array(list(names), np.str_))
    for name, empty in table.columns.items():
        with _member(
            archive, f"{folder}/{name}", empty.dtype, (table.num_rows, *empty.shape[1:])
        ) as (member):
            for block in table.blocks([name]):
                member.write(np.ascontiguousarray(block[name]).data)


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with _member(archive, name, array.dtype, array.shape) as member:
        member.write(array.tobytes())


@contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[IO[bytes]]:
    """Gives a file in the archive, of which NumPy makes an array when its elements are there."""
    # Without `force_zip64` it is an error when a member of unknown size grows beyond 2 GiB.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(member, header)
        yield member
