"""The arrays of a snapshot: tables as zarr3 arrays in one OCDBT database.

Tables are written and read in blocks of rows, all columns of a block together. Blocks are staged in
one buffer and committed in groups, since a transaction holds what it writes in memory until it
commits; tensorstore takes the buffer without copying it. Every block of a column has a checksum,
kept outside of the database, which reads a flipped bit of a value without an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from carls_jax.bank.array_files import files_of_chunks
from carls_jax.bank.specs import TableSpec
from carls_jax.errors import BankError, SnapshotCorruptError

# PERFORMANCE: with 1 M × 128 float32, groups of 16 MiB are written as fast as groups of 64 or 128
# MiB, and whoever answers lookups meanwhile waits less long for a core and for the disk.
GROUP_BYTES = 16 << 20
# PERFORMANCE: 1 to 16 MiB are equally fast on a local disk. 4 MiB is worth a request to an object
# store, and little is wasted by the last chunk of an array, which is always stored whole.
CHUNK_BYTES = 4 << 20

_ALIGNMENT = 64
_CONTEXT = {
    # PERFORMANCE: a sync at the end instead of one per group lets the disk work meanwhile: 0.6
    # instead of 1.8 s for 512 MB on a busy machine.
    "file_io_sync": False,
    # PERFORMANCE: one thread writes, so that of two cores one is left for those who answer lookups.
    # The rate stays the same.
    "file_io_concurrency": {"limit": 1},
    "data_copy_concurrency": {"limit": 1},
}


class Described(Protocol):
    """Says what a table is whose rows are to be read."""

    @property
    def spec(self) -> TableSpec:
        """What the table is."""

    @property
    def num_rows(self) -> int:
        """Rows that there are to be read."""

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """What the numbers in the columns stand for."""

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of the columns' types and shapes `[any, ...]`."""


class Readable(Described, Protocol):
    """Is what can be written: a table whose rows are read once, in order, as of a `TableImage`."""

    def read(self, out: Mapping[str, NDArray[Any]]) -> None:
        """Fills arrays `[m, ...]`, one for each column, with the next m rows."""


@dataclass(frozen=True)
class Column:
    """Describes a stored column.

    Attributes:
      dtype: NumPy name of the element type.
      shape: Shape of one row's value.
      checksums: CRC-32 of the bytes of each block.
    """

    dtype: str
    shape: tuple[int, ...]
    checksums: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's value."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class TableContent:
    """Describes a stored table and reads it. May be used from several threads.

    Attributes:
      spec: What the table is.
      num_rows: How many rows are stored.
      names: As in `TableImage`.
      block_rows: Rows of a block, but for the last.
      columns: The stored columns by name.
      database_url: Where the database is.
    """

    spec: TableSpec
    num_rows: int
    names: Mapping[str, Sequence[str]]
    block_rows: int
    columns: Mapping[str, Column]
    database_url: str

    def blocks(self, names: Collection[str] | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Reads all rows: in each block the named columns, `[m, ...]`, new arrays; None: all.

        A block is checked before it is handed out, so what was yielded is sound even if a later
        block is not.

        Raises:
          SnapshotCorruptError: A column cannot be read or does not have its checksum.
        """
        if not self.num_rows:
            return
        arrays = self._open(self.columns if names is None else names)
        for index, start in enumerate(range(0, self.num_rows, self.block_rows)):
            # Yielded without a name: this function does not keep the block while the next is read.
            yield self._read_block(arrays, index, slice(start, start + self.block_rows))

    def to_dict(self) -> dict[str, Any]:
        """Returns all but `database_url` as plain JSON types."""
        return {
            "spec": self.spec.to_dict(),
            "num_rows": self.num_rows,
            "names": {kind: list(names) for kind, names in self.names.items()},
            "block_rows": self.block_rows,
            "columns": {
                name: [one.dtype, list(one.shape), list(one.checksums)]
                for name, one in self.columns.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, database_url: str) -> TableContent:
        """Makes the content that `to_dict` described."""
        columns = {
            name: Column(dtype, tuple(shape), tuple(checksums))
            for name, (dtype, shape, checksums) in data["columns"].items()
        }
        parts = {**data, "spec": TableSpec.from_dict(data["spec"]), "columns": columns}
        return cls(**parts, database_url=database_url)

    def _open(self, names: Collection[str]) -> dict[str, ts.TensorStore]:
        opening = {
            name: ts.open(
                _array_spec(self.database_url, self.spec.name, name),
                open=True,
                # Expecting dtype and shape makes a difference in them an error.
                dtype=self.columns[name].dtype,
                shape=(self.num_rows, *self.columns[name].shape),
            )
            for name in names
        }
        arrays = {}
        for name, future in opening.items():
            try:
                arrays[name] = future.result()
            except ValueError as error:
                raise self._corrupt(name, "cannot be opened", error) from error
        return arrays

    def _read_block(
        self, arrays: Mapping[str, ts.TensorStore], index: int, rows: slice
    ) -> dict[str, NDArray[Any]]:
        rows = slice(rows.start, min(rows.stop, self.num_rows))
        reads = {name: array[rows].read() for name, array in arrays.items()}
        block: dict[str, NDArray[Any]] = {}
        for name, read in reads.items():
            try:
                block[name] = read.result()
            except ValueError as error:
                raise self._corrupt(name, f"cannot be read from row {rows.start}", error) from error
            expected, found = self.columns[name].checksums[index], zlib.crc32(block[name].data)
            if found != expected:
                problem = f"has checksum {found:#010x} in its rows {rows.start} to {rows.stop - 1}"
                files = self._files(name, arrays[name], rows)
                raise self._corrupt(name, f"{problem}, expected {expected:#010x}{files}")
        return block

    def _files(self, name: str, array: ts.TensorStore, rows: slice) -> str:
        """Tells which files hold rows of a column."""
        chunk = array.chunk_layout.read_chunk.shape
        chunk_rows = chunk[0] if chunk else None
        assert chunk_rows, "stored arrays are chunked"
        chunks = range(rows.start // chunk_rows, -(-rows.stop // chunk_rows))
        prefix = f"{_path(self.spec.name, name)}c/"
        try:
            files = files_of_chunks(self.database_url, prefix, chunks)
        except ValueError:  # the database is damaged, too
            return ""
        return f" (in {', '.join(files)})" if files else ""

    def _corrupt(
        self, name: str, problem: str, cause: ValueError | None = None
    ) -> SnapshotCorruptError:
        return SnapshotCorruptError(
            f"column {name!r} of table {self.spec.name!r} in {self.database_url} {problem}"
            + (f": {_message(cause)}" if cause else "")
        )


class ArrayWriter:
    """Writes tables into a new database. Not to be used from several threads.

    After `commit` the files hold what was written; the caller syncs them to make them durable.
    At most about `group_bytes` of memory are taken, or one row of a table if that is more.
    """

    def __init__(self, database_url: str, *, group_bytes: int = GROUP_BYTES) -> None:
        self._url = database_url
        self._group_bytes = group_bytes
        self._context = ts.Context(_CONTEXT)
        self._staging: NDArray[np.uint8] = np.empty(group_bytes, np.uint8)
        self._staged_bytes = 0
        self._begin()

    def write(self, image: Readable) -> TableContent:
        """Writes one table, which may go on changing; reads the image up.

        Raises:
          BankError: The database cannot be written, for want of room, say.
        """
        layout = {
            name: Column(array.dtype.name, array.shape[1:], ())
            for name, array in image.columns.items()
        }
        row_bytes = sum(one.row_bytes for one in layout.values())
        block_rows = _rows_within(self._group_bytes, row_bytes)
        arrays = self._create(image, layout, block_rows) if image.num_rows else {}
        checksums: dict[str, list[int]] = {name: [] for name in layout}
        for start in range(0, image.num_rows, block_rows):
            num_rows = min(block_rows, image.num_rows - start)
            self._make_room(num_rows * row_bytes + _ALIGNMENT * len(layout))
            block = {name: self._stage(num_rows, column) for name, column in layout.items()}
            image.read(block)
            for name, staged in block.items():
                checksums[name].append(zlib.crc32(staged.data))
                self._write(arrays[name], start, staged)
        return TableContent(
            spec=image.spec,
            num_rows=image.num_rows,
            names=image.names,
            block_rows=block_rows,
            columns={
                name: Column(one.dtype, one.shape, tuple(checksums[name]))
                for name, one in layout.items()
            },
            database_url=self._url,
        )

    def commit(self) -> None:
        """Puts what was written so far into the files; raises BankError if it cannot."""
        try:
            for future in self._copied:
                future.result()
            self._transaction.commit_sync()
        except ValueError as error:
            raise self._failed(error) from error
        self._begin()

    def _begin(self) -> None:
        self._staged_bytes = 0
        self._copied: list[ts.Future[None]] = []
        self._transaction = ts.Transaction(atomic=True)

    def _make_room(self, num_bytes: int) -> None:
        if self._staged_bytes and self._staged_bytes + num_bytes > self._staging.size:
            self.commit()
        if num_bytes > self._staging.size:
            self._staging = np.empty(num_bytes, np.uint8)

    def _stage(self, num_rows: int, column: Column) -> NDArray[Any]:
        """Returns the next part of the staging buffer, for rows of a column."""
        shape = (num_rows, *column.shape)
        staged = np.ndarray(shape, column.dtype, self._staging, self._staged_bytes)
        self._staged_bytes += -(-staged.nbytes // _ALIGNMENT) * _ALIGNMENT
        return staged

    def _create(
        self, image: Readable, layout: Mapping[str, Column], block_rows: int
    ) -> dict[str, ts.TensorStore]:
        """Makes the arrays of a table, at once and for all of its blocks."""
        transaction = ts.Transaction(atomic=True)
        creating = {
            name: ts.open(
                {
                    **_array_spec(self._url, image.spec.name, name),
                    "metadata": _metadata(column, num_rows=image.num_rows, block_rows=block_rows),
                },
                create=True,
                open=True,
                context=self._context,
                transaction=transaction,
            )
            for name, column in layout.items()
        }
        try:
            arrays = {name: future.result() for name, future in creating.items()}
            transaction.commit_sync()
        except ValueError as error:
            raise self._failed(error) from error
        return arrays

    def _write(self, array: ts.TensorStore, start: int, staged: NDArray[Any]) -> None:
        rows = array.with_transaction(self._transaction)[start : start + staged.shape[0]]
        # The staging buffer stays as it is until the transaction has been committed.
        writing = rows.write(staged, can_reference_source_data_indefinitely=True)
        self._copied.append(writing.copy)

    def _failed(self, cause: ValueError) -> BankError:
        return BankError(f"the arrays of a snapshot cannot be written: {_message(cause)}")


def _array_spec(database_url: str, table: str, column: str) -> dict[str, Any]:
    database = {"driver": "ocdbt", "base": database_url, "path": _path(table, column)}
    return {"driver": "zarr3", "kvstore": database}


def _path(table: str, column: str) -> str:
    # Names hold slashes; each must stay one level, so that no array lies within another.
    return f"{quote(table, safe='')}/{quote(column, safe='')}/"


def _metadata(column: Column, *, num_rows: int, block_rows: int) -> dict[str, Any]:
    chunk_rows = min(_rows_within(CHUNK_BYTES, column.row_bytes), block_rows, num_rows)
    chunks = {"chunk_shape": [chunk_rows, *column.shape]}
    return {
        "shape": [num_rows, *column.shape],
        "data_type": column.dtype,
        "chunk_grid": {"name": "regular", "configuration": chunks},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }


def _rows_within(num_bytes: int, row_bytes: int) -> int:
    """Returns the largest power of two of rows that fit, so that blocks consist of whole chunks."""
    return 1 << (max(num_bytes // row_bytes, 1).bit_length() - 1)


def _message(error: ValueError) -> str:
    """Returns tensorstore's message without the specification that it appends."""
    return str(error).split(" [tensorstore_spec", 1)[0]
