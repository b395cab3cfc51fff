"""`TableShard`: the memory of one table in one server process: key index, columns, metadata.

Storage only: what the changes mean is in `applying.py`, what a lookup answers in `reading.py`.

n is the number of keys.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import DEFAULT_CLOCK, Keys
from carls_jax.bank.columns import reservable_rows, reserve
from carls_jax.bank.index import KeyIndex
from carls_jax.bank.initializers import zeros
from carls_jax.bank.layout import columns_of
from carls_jax.bank.names import Counts, Names
from carls_jax.bank.optimizers import RowOptimizer, row_optimizer
from carls_jax.bank.snapshots import TableImage
from carls_jax.bank.specs import TableSpec
from carls_jax.errors import BankFullError
from carls_jax.keys import PADDING

# PERFORMANCE: NumPy's own index type. Others are converted at each use, 0.12 ms in an update of
# 8,192 rows.
Slots = NDArray[np.intp]
Arrays = Mapping[str, NDArray[Any]]

# A lock is held for so many rows at a time, or for fewer whose values are so many bytes: 0.1 ms.
# With 1,024 rows of 128 floats a lookup of 8,192 takes a fifth longer, since the key index costs
# 0.05 ms a slice; with 4,096 a push does, since the rows leave the cache. Readers beside a writer
# waited alike, 0.11 ms in the median for 256 rows (measured).
SLICE_ROWS = 2048
SLICE_BYTES = 1 << 20

MAX_CLOCKS = 1 << 8
MAX_SOURCES = 1 << 16
# In a per-source table each author has an index of its own.
MAX_AUTHORS = 1 << 12


class TableShard:
    """Keeps one table's rows in memory.

    Two locks: `writer` is held by a change for its whole length, so changes have one order; `lock`
    is held by readers and by the writer for one slice of rows at a time, so a reader waits for a
    slice and never for a change, and no row is seen half-written. Only the holder of `writer` may
    call methods that alter the table; it may read without `lock`.

    A slot that holds no row is zero in every column but "key", as reserved memory is from the
    start, so a new row costs only what it holds beside zeros.

    Attributes:
      spec: What the table is.
      columns: All arrays by name, indexed by slot; see `layout.columns_of`.
      optimizers: The row optimizer of each field that has one.
      sources: Names of those who wrote.
      clocks: Names of the clocks that steps are on.
      counts: Events since the table was made or restored in this process.
      rows_written: Rows written by each source, since the same moment.
    """

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.writer = threading.Lock()
        self.lock = threading.Lock()
        self.sources = Names("", limit=MAX_AUTHORS if spec.per_source else MAX_SOURCES)
        self.clocks = Names(DEFAULT_CLOCK, limit=MAX_CLOCKS)
        self.counts = Counts()
        self.rows_written = Counts()
        self.optimizers: dict[str, RowOptimizer] = {
            name: row_optimizer(field.optimizer, field.shape, np.dtype(field.dtype))
            for name, field in spec.fields.items()
            if field.optimizer
        }
        layout = columns_of(spec, self.optimizers)
        self._fills = {name: column.fill for name, column in layout.items() if column.fill}
        self._row_bytes = sum(column.row_bytes for column in layout.values())
        self._max_rows = min(
            reservable_rows(spec.max_rows, column.row_bytes) for column in layout.values()
        )
        self.columns: dict[str, NDArray[Any]] = {
            name: reserve(self._max_rows, column.shape, column.dtype)
            for name, column in layout.items()
        }
        value_bytes = sum(field.row_bytes for field in spec.fields.values())
        self._slice_rows = max(1, min(SLICE_ROWS, SLICE_BYTES // value_bytes))
        self._indexes: dict[str, KeyIndex] = {}  # by author; "" in a table without authors
        self._num_rows = 0
        self._used = 0  # slots below this were given out at least once
        self._free = reserve(self._max_rows, (), np.int32)  # a stack of slots to be used again
        self._num_free = 0

    @property
    def num_rows(self) -> int:
        """Rows that are there."""
        return self._num_rows

    @property
    def used_slots(self) -> int:
        """Slots below this may hold rows."""
        return self._used

    @property
    def num_bytes(self) -> int:
        """Bytes of the columns in use and of the key index."""
        with self.lock:
            index_bytes = sum(index.memory_bytes for index in self._indexes.values())
            return self._used * self._row_bytes + index_bytes

    def slices(self, num_rows: int) -> Iterator[slice]:
        """Cuts rows into those for which `lock` may be held at once."""
        for start in range(0, num_rows, self._slice_rows):
            yield slice(start, start + self._slice_rows)

    def find(self, keys: Keys, *, source: str = "") -> Slots:
        """Returns the slots `[n]` of keys, of a source's rows; -1 where there is no row."""
        index = self._indexes.get(self._author(source))
        if index is None:
            return np.full(keys.shape, -1, np.intp)
        return index.find(keys).astype(np.intp)

    def live_slots(self, start: int = 0, stop: int | None = None) -> Slots:
        """Returns the slots in a range that hold rows, ascending."""
        stop = self._used if stop is None else min(stop, self._used)
        return start + np.flatnonzero(self.columns["key"][start:stop] != PADDING)

    def make_room(self, keys: Keys, *, source: str = "") -> None:
        """Makes sure that adding rows of unique, absent keys cannot fail.

        Raises:
          BankFullError: There is no room for them.
        """
        if not keys.size:
            return
        if self._num_rows + keys.size > self._max_rows:
            raise BankFullError(
                f"table {self.spec.name!r} holds {self._num_rows} of at most {self._max_rows} "
                f"rows; {keys.size} more do not fit, so none of them was written: raise "
                "max_rows or delete rows"
            )
        author = self._author(source)
        index = self._indexes.get(author)
        if index is None:
            index = KeyIndex(self.columns["key"])
        with self.lock:
            index.make_room(keys)
            self._indexes[author] = index

    def first_values(self, keys: Keys, *, but: Container[str] = ()) -> dict[str, Any]:
        """Computes what new rows hold, by column, where that is not zero.

        The fields in `but` are left out, for a caller that writes them itself.
        """
        values = {
            f"value/{name}": field.init.rows(
                keys, seed=self.spec.seed, field=name, shape=field.shape, dtype=field.dtype
            )
            for name, field in self.spec.fields.items()
            if name not in but and field.init != zeros()
        }
        return {**self._fills, **values}

    def create(self, keys: Keys, *, by: pb.Author) -> Slots:
        """Adds unique, absent rows with their initial values and returns their slots `[n]`."""
        slots = np.empty(keys.size, np.intp)
        for part in self.slices(keys.size):
            first_values = self.first_values(keys[part])
            with self.lock:
                slots[part] = self.add(keys[part], first_values, by=by)
        return slots

    def add(self, keys: Keys, first_values: Mapping[str, Any], *, by: pb.Author) -> Slots:
        """Adds unique, absent rows and returns their slots `[n]`; cannot fail after `make_room`.

        The caller holds `lock`: readers find the rows as soon as it lets go.
        """
        slots = self._take_slots(keys.size)
        if not keys.size:
            return slots
        for name, value in first_values.items():
            self.columns[name][slots] = value
        self.columns["key"][slots] = keys
        if self.spec.per_source:
            self.columns["author"][slots] = self.sources.add(by.source)
        self._indexes[self._author(by.source)].insert(keys, slots.astype(np.int32))
        self.counts.add({"rows_created": keys.size})
        return slots

    def write(self, group: str, slots: Slots, columns: Arrays, *, by: pb.Author) -> None:
        """Writes columns of unique rows, all of one group, and notes who did it and when.

        The caller holds `lock`.
        """
        for name, rows in columns.items():
            self.columns[name][slots] = rows
        version = self.columns[f"version/{group}"]
        version[slots] += 1
        told: dict[str, Any] = {
            "step": by.step,
            "updated_at": by.updated_at,
            "source": self.sources.add(by.source),
            "clock": self.clocks.add(by.clock),
        }
        for kind, value in told.items():
            self.columns[f"{kind}/{group}"][slots] = value
        told["version"] = version[slots]
        for name in self.spec.groups[group]:
            if size := self.spec.field(name).history:
                place = (slots, (told["version"] - 1) % size)
                written = {"value": self.columns[f"value/{name}"][slots], **told}
                for kind, value in written.items():
                    self.columns[f"history/{name}/{kind}"][place] = value

    def remove(self, keys: Keys, slots: Slots, *, by: pb.Author) -> None:
        """Removes unique, present rows. The caller holds `lock`."""
        self._indexes[self._author(by.source)].remove(keys)
        for column in self.columns.values():
            column[slots] = 0
        self.columns["key"][slots] = PADDING
        self._free[self._num_free : self._num_free + slots.size] = slots
        self._num_free += slots.size
        self._num_rows -= slots.size
        self.counts.add({"rows_deleted": slots.size})

    def image(self) -> TableImage:
        """Returns the whole state; it must be used up while `writer` is held."""
        return TableImage(
            spec=self.spec,
            num_rows=self._num_rows,
            names={"sources": list(self.sources), "clocks": list(self.clocks)},
            columns=self.columns,
            slots=self.live_slots(),
        )

    def load(self, block: Arrays) -> None:
        """Takes rows of an image, all columns of each, into a table that nobody else uses yet.

        Raises:
          BankFullError: There is no room for them.
        """
        keys = block["key"]
        names = list(self.sources)
        authors = block["author"] if self.spec.per_source else np.zeros(keys.size, np.uint16)
        for author in np.unique(authors).tolist():
            self.make_room(keys[authors == author], source=names[author])
        slots = self._take_slots(keys.size)
        for name, column in self.columns.items():
            # Zeros are there already; to write them would take memory.
            if block[name].view(np.uint8).any():
                column[slots] = block[name]
        for author in np.unique(authors).tolist():
            chosen = authors == author
            index = self._indexes[self._author(names[author])]
            index.insert(keys[chosen], slots[chosen].astype(np.int32))

    def _author(self, source: str) -> str:
        return source if self.spec.per_source else ""

    def _take_slots(self, num_rows: int) -> Slots:
        reused = min(num_rows, self._num_free)
        slots = np.empty(num_rows, np.intp)
        slots[:reused] = self._free[self._num_free - reused : self._num_free]
        slots[reused:] = np.arange(self._used, self._used + num_rows - reused)
        self._num_free -= reused
        self._used += num_rows - reused
        self._num_rows += num_rows
        return slots
