"""Reads what `export` wrote, in blocks of rows. m is a number of rows."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.specs import TableSpec
from carls_jax.errors import InvalidInputError
from carls_jax.snapshots.tables import Block, Content

BLOCK_BYTES = 16 << 20
_NAMES = ("sources", "clocks")


class ExportedTable:
    """Is a `StoredTable` of an export.

    Args:
      path: The file.
      folder: What the names of the table's members begin with.
      columns: Its members without that, and without `.npy`.
    """

    def __init__(self, path: Path, folder: str, columns: Collection[str]) -> None:
        self._path = path
        self._folder = folder
        self.spec = TableSpec.from_dict(json.loads(str(_read(path, f"{folder}/spec"))))
        self.names: Mapping[str, Sequence[str]] = {
            kind: _read(path, f"{folder}/{kind}").tolist() for kind in _NAMES
        }
        self.columns: dict[str, NDArray[Any]] = {}
        self.num_rows = 0
        for name in columns:
            with zipfile.ZipFile(path) as archive, archive.open(f"{folder}/{name}.npy") as member:
                (self.num_rows, *shape), dtype = _header(member)
                self.columns[name] = np.empty((0, *shape), dtype)

    def blocks(self, names: Collection[str]) -> Iterator[Block]:
        """Reads all rows of some columns; see `StoredTable`."""
        row_bytes = sum(prod(self.columns[name].shape[1:]) * 8 for name in names)
        num_rows = max(1, BLOCK_BYTES // max(row_bytes, 1))
        with ExitStack() as held:
            archive = held.enter_context(zipfile.ZipFile(self._path))
            members = {
                name: held.enter_context(archive.open(f"{self._folder}/{name}.npy"))
                for name in names
            }
            for member in members.values():
                _header(member)
            for start in range(0, self.num_rows, num_rows):
                size = min(num_rows, self.num_rows - start)
                yield {name: self._next(members[name], name, size) for name in names}

    def _next(self, member: IO[bytes], name: str, num_rows: int) -> NDArray[Any]:
        like = self.columns[name]
        data = member.read(num_rows * prod(like.shape[1:]) * like.itemsize)
        return np.frombuffer(data, like.dtype).reshape(num_rows, *like.shape[1:])


def exported_content(path: Path) -> Content:
    """Returns what an export holds.

    Raises:
      InvalidInputError: The file is no export, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        about = json.loads(str(_read(path, "snapshot")))
        folders: dict[str, list[str]] = {}
        for folder, _, column in (name.partition("/") for name in names):
            if column and column not in ("spec", *_NAMES):
                folders.setdefault(folder, []).append(column)
        return Content(
            title=str(path),
            identity=about["identity"],
            clocks=about["clocks"],
            tables={
                unquote(folder): ExportedTable(path, folder, columns)
                for folder, columns in folders.items()
            },
        )
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"file={path} is no export of a bank: {error!r}") from error


def _read(path: Path, name: str) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[name])


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads where an array's elements begin; returns its shape and dtype."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise InvalidInputError(f"an array of version {version}: exports have (1, 0)")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if is_fortran or dtype.hasobject:
        raise InvalidInputError(f"an array of {dtype} in Fortran order: exports have none")
    return tuple(shape), dtype
