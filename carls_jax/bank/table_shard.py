"""`TableShard`: the memory of one table in one server process: key index, columns, metadata.

Storage only: what the changes mean is in `applying.py`, what a lookup answers in `reading.py`.

n is the number of keys.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.before_images import Room
from carls_jax.bank.changes import DEFAULT_CLOCK, Keys
from carls_jax.bank.columns import SLICE_BYTES, SLICE_ROWS, Slots, reservable_rows, reserve
from carls_jax.bank.compact import encode
from carls_jax.bank.huge_pages import HUGE_PAGE
from carls_jax.bank.index import NO_KEYS_INDEX, KeyIndex, index_of, index_parts
from carls_jax.bank.initializers import zeros
from carls_jax.bank.layout import Column, columns_of
from carls_jax.bank.limiter import Limiter
from carls_jax.bank.limits import Limit
from carls_jax.bank.names import Counts, Names
from carls_jax.bank.optimizers import RowOptimizer, row_optimizer
from carls_jax.bank.row_pusher import RowPusher
from carls_jax.bank.row_reader import RowReader
from carls_jax.bank.row_writer import RowWriter
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.table_image import TableImage
from carls_jax.bank.table_memory import Part, TableMemory
from carls_jax.errors import BankFullError
from carls_jax.keys import PADDING

Arrays = Mapping[str, NDArray[Any]]

MAX_CLOCKS = 1 << 8
MAX_SOURCES = 1 << 16
# In a per-source table each author has an index of its own.
MAX_AUTHORS = 1 << 12
# Rows that `take_over` enters in the key index at once.
_ENTERED_ROWS = 1 << 16


class TableShard:
    """Keeps one table's rows in memory.

    Two locks: `writer` is held by a change for its whole length, so changes have one order; `lock`
    is held by the writer, by scans and by snapshots for one slice of rows at a time, so these wait
    for a slice and never for a change. `read` takes neither: see `row_access`. Only the holder of
    `writer` may call methods that alter the table; it may read without `lock`.

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
      memory: Where the columns, the guards and the key index are.
      guards: uint32 `[max_rows]`, see `row_guard`.
      pushers: What pushes to some of the fields, by their names.
      limiter: What the table's limit is decided by. None: it has no limit.
    """

    def __init__(self, spec: TableSpec, *, min_slots: int = 0) -> None:
        self.writer = threading.Lock()
        self.lock = threading.Lock()
        self.sources = Names("", limit=MAX_AUTHORS if spec.per_source else MAX_SOURCES)
        self.clocks = Names(DEFAULT_CLOCK, limit=MAX_CLOCKS)
        self.counts = Counts()
        self.rows_written = Counts()
        layout = self._learn(spec)
        num_slots = max(self._max_rows, min_slots)
        self.memory = TableMemory(_parts(layout, num_slots))
        self.columns: dict[str, NDArray[Any]] = {name: self.memory.arrays[name] for name in layout}
        self.guards: NDArray[np.uint32] = self.memory.arrays["guards"]
        self._reader = RowReader(self.memory.arrays)
        self._writer = RowWriter(self.columns, self.guards)
        value_bytes = sum(field.row_bytes for field in spec.fields.values())
        self._slice_rows = max(1, min(SLICE_ROWS, SLICE_BYTES // value_bytes))
        # By author; "" in a table without authors.
        self._indexes: dict[str, KeyIndex] = {}
        if not spec.per_source:
            self._indexes[""] = KeyIndex(self.columns["key"], memory=index_of(self.memory.arrays))
        self._num_rows = 0
        self._used = 0  # slots below this were given out at least once
        self._free = reserve(num_slots, (), np.int32)  # a stack of slots to be used again
        self._num_free = 0
        self._image: TableImage | None = None  # while a snapshot is under way
        self.limiter: Limiter | None = None
        self.limit_to(spec.limit)

    def _learn(self, spec: TableSpec) -> dict[str, Column]:
        """Notes what a spec says, and returns the columns that it wants."""
        self.spec = spec
        self.optimizers = _optimizers(spec)
        self.pushers: dict[tuple[str, ...], RowPusher] = {}
        layout = columns_of(spec, self.optimizers)
        self._fills = {name: column.fill for name, column in layout.items() if column.fill}
        self._row_bytes = sum(column.row_bytes for column in layout.values())
        self._max_rows = _max_rows(spec, layout)
        return layout

    def can_follow(self, spec: TableSpec) -> bool:
        """Tells whether the columns are those that another spec wants, and enough of them.

        Raises:
          ConfigError: The spec's limit allows no row.
        """
        layout = columns_of(spec, _optimizers(spec))
        if spec.limit:
            spec.limit.num_rows(sum(column.row_bytes for column in layout.values()))
        shapes = {name: (column.dtype, column.shape) for name, column in layout.items()}
        own = {name: (column.dtype, column.shape[1:]) for name, column in self.columns.items()}
        return shapes == own and _max_rows(spec, layout) <= len(self.guards)

    def follow(self, spec: TableSpec) -> None:
        """Goes on with another spec, which wants the same columns."""
        limits = self.spec.limit, self._max_rows
        self._learn(spec)
        if (spec.limit, self._max_rows) != limits:
            self.limit_to(spec.limit)

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
        return index.find(keys)

    def read(
        self, keys: Keys, names: tuple[str, ...], *, source: str = ""
    ) -> tuple[list[NDArray[Any]], NDArray[np.bool_]]:
        """Copies columns `[n, ...]` of keys' rows, each row as it was at one moment; needs no lock.

        Returns:
          The columns' rows, blank (zeros, and -1 for a step) where a key has none, and which keys
          have one, bool `[n]`.
        """
        index = self._indexes.get(self._author(source))
        memory = NO_KEYS_INDEX if index is None else index.memory
        rows = self._reader.read(keys, names, memory)
        assert rows is not None, "a reader that may wait for ever gave up"
        return rows

    def limit_to(self, limit: Limit | None) -> None:
        """Has the table keep to another limit, from the next change on.

        Raises:
          ConfigError: The limit allows no row.
        """
        earlier, self.limiter = self.limiter, None
        if limit is not None:
            self.limiter = Limiter(
                limit,
                row_bytes=self._row_bytes,
                max_rows=self._max_rows,
                reserved_rows=len(self.guards),
            )
        if earlier and self.limiter:
            self.limiter.take_over(earlier, num_slots=self._used)
        # Lookups in other processes would go unnoticed.
        self.memory.arrays["retired"][0] = not self.is_shared

    @property
    def is_shared(self) -> bool:
        """Whether other processes may read the table's memory."""
        is_noticed = self.limiter is None or self.limiter.used is None
        return self.memory.is_shared and not self.spec.per_source and is_noticed

    def note_lookup(self, keys: Keys, sources: Iterable[str]) -> None:
        """Notes that rows of keys `[n]` and of sources are being used; needs no lock."""
        limiter = self.limiter  # a change may set another one meanwhile
        for source in sources:
            index = self._indexes.get(self._author(source))
            if limiter is not None and index is not None:
                limiter.note_lookup(keys, self.columns["key"], index.memory)

    def keys_by_source(self, slots: Slots) -> Iterator[tuple[str, Keys]]:
        """Yields the keys of rows `[n]`, those of a source together; "" in a table without."""
        for source, rows in self._by_source(slots):
            yield source, self.columns["key"][rows]

    def _by_source(self, slots: Slots) -> Iterator[tuple[str, Slots]]:
        if not self.spec.per_source:
            yield "", slots
            return
        authors, sources = self.columns["author"][slots], list(self.sources)
        for author in np.unique(authors).tolist():
            yield sources[author], slots[authors == author]

    def retire(self) -> None:
        """Tells the processes that read the table's memory to read it no more."""
        self.memory.arrays["retired"][0] = 1

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
            f"value/{name}": encode(
                field,
                field.init.rows(
                    keys, seed=self.spec.seed, field=name, shape=field.shape, dtype=field.dtype
                ),
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

        The caller holds `lock`.
        """
        slots = self.place(keys, first_values, by=by)
        self.enter(keys, slots, by=by)
        return slots

    def place(self, keys: Keys, first_values: Mapping[str, Any], *, by: pb.Author) -> Slots:
        """Writes new rows where nobody finds them until they are entered; else as `add`."""
        slots = self._take_slots(keys.size)
        if keys.size:
            self.keep_before(slots)
            values = dict(first_values)
            if self.spec.per_source:
                values["author"] = self.sources.add(by.source)
            self._writer.write(slots, values)
        return slots

    def enter(self, keys: Keys, slots: Slots, *, by: pb.Author) -> None:
        """Lets readers find rows that were placed. The caller holds `lock`."""
        if keys.size:
            # Who found the slot when it was the key's before does not take it for the key's again.
            self._writer.write(slots, {"key": keys})
            self._indexes[self._author(by.source)].insert(keys, slots)
            self.counts.add({"rows_created": keys.size})

    def write(self, groups: Iterable[str], slots: Slots, columns: Arrays, *, by: pb.Author) -> None:
        """Writes columns of unique rows, those of whole groups, and notes who did it and when.

        The caller holds `lock`.
        """
        self.keep_before(slots)
        told: dict[str, Any] = {
            "step": by.step,
            "updated_at": by.updated_at,
            "source": self.sources.add(by.source),
            "clock": self.clocks.add(by.clock),
        }
        written = dict(columns)
        for group in groups:
            told["version"] = self.columns[f"version/{group}"][slots] + np.uint32(1)
            written |= {f"{kind}/{group}": value for kind, value in told.items()}
            for name in self.spec.groups[group]:
                if self.spec.field(name).history:
                    written |= self._rings(name, slots, {**told, "value": columns[f"value/{name}"]})
        self._writer.write(slots, written)

    def put(self, slots: Slots, columns: Mapping[str, Any]) -> None:
        """Overwrites columns of unique rows and notes nothing. The caller holds `lock`."""
        self.keep_before(slots)
        self._writer.write(slots, columns)

    def _rings(self, name: str, slots: Slots, told: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Returns the history of a field, with one more write, for rows `[n]`."""
        place = (told["version"] - 1) % self.spec.field(name).history
        rings = {}
        for kind, value in told.items():
            column = f"history/{name}/{kind}"
            rings[column] = self.columns[column][slots]
            rings[column][np.arange(slots.size), place] = value
        return rings

    def remove(self, keys: Keys, slots: Slots, *, by: pb.Author) -> None:
        """Removes unique, present rows. The caller holds `lock`."""
        self.keep_before(slots)
        self._indexes[self._author(by.source)].remove(keys)
        self._writer.write(slots, {**dict.fromkeys(self.columns, 0), "key": PADDING})
        self._free[self._num_free : self._num_free + slots.size] = slots
        self._num_free += slots.size
        self._num_rows -= slots.size

    def keep_before(self, slots: Slots) -> None:
        """Keeps what different slots `[n]` hold, if a snapshot that is under way needs it.

        The caller holds `lock` and is about to alter the rows at these slots. What alters columns
        by the methods of this class need not call it: they do.
        """
        if self._image is not None:
            self._image.keep(slots)

    def wait_for_room(self, num_rows: int) -> None:
        """Waits while a snapshot that is under way has no room to keep so many rows for it.

        The caller holds `writer` and not `lock`.
        """
        image = self._image
        if image is not None:
            image.wait_for_room(num_rows)

    def begin_image(self, room: Room) -> TableImage:
        """Returns the whole state, which later changes do not alter; one at a time.

        The caller holds `writer` for this call, and calls `end_image` when it has used it.
        """
        image = TableImage(
            self.spec,
            self._num_rows,
            {"sources": list(self.sources), "clocks": list(self.clocks)},
            {name: column[: self._used] for name, column in self.columns.items()},
            lock=self.lock,
            room=room,
            memory=self.memory,
        )
        self._image = image
        return image

    def end_image(self) -> None:
        """Keeps nothing for the image any more."""
        with self.lock:
            image, self._image = self._image, None
        if image is not None:
            image.close()

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
            index.insert(keys[chosen], slots[chosen])

    def take_over(self, other: TableShard) -> None:
        """Takes the rows of a table, at the same slots, and all else that it knows.

        Fields that the other lacks get their initial values. The caller holds the other's `writer`;
        nobody uses this table yet.
        """
        self.sources, self.clocks = other.sources, other.clocks
        self.counts, self.rows_written = other.counts, other.rows_written
        self._used, self._num_rows, self._num_free = other._used, other._num_rows, other._num_free
        self._free[: self._num_free] = other._free[: self._num_free]
        if self.limiter and other.limiter:
            self.limiter.take_over(other.limiter, num_slots=self._used)
        for name in self.columns.keys() & other.columns.keys():
            other.memory.copy(name, self.columns[name][: self._used])
        slots = self.live_slots()
        for part in self.slices(slots.size):
            keys = self.columns["key"][slots[part]]
            first = self.first_values(keys, but=other.spec.fields)
            added = {name: value for name, value in first.items() if name not in other.columns}
            self._writer.write(slots[part], added)
        for source, rows in self._by_source(slots):
            index = self._indexes.setdefault(self._author(source), KeyIndex(self.columns["key"]))
            for start in range(0, rows.size, _ENTERED_ROWS):
                entered = rows[start : start + _ENTERED_ROWS]
                index.insert(self.columns["key"][entered], entered)
        self.memory.grew()

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
        if self._used * self._row_bytes >= HUGE_PAGE:
            self.memory.grew()
        return slots


def _optimizers(spec: TableSpec) -> dict[str, RowOptimizer]:
    return {
        name: row_optimizer(field.optimizer, field.shape, np.dtype(field.dtype))
        for name, field in spec.fields.items()
        if field.optimizer
    }


def _max_rows(spec: TableSpec, layout: Mapping[str, Column]) -> int:
    """Returns the rows that there may be of a table: as the spec says, or fewer that fit."""
    return min(reservable_rows(spec.max_rows, column.row_bytes) for column in layout.values())


def _parts(layout: Mapping[str, Column], max_rows: int) -> dict[str, Part]:
    """Describes the memory of a table: its columns, the rows' guards, and its key index."""
    parts = {
        name: Part((max_rows, *column.shape), column.dtype.str) for name, column in layout.items()
    }
    parts |= {"guards": Part((max_rows,), "uint32"), "retired": Part((1,), "int64")}
    index = index_parts(max_rows).items()
    return parts | {name: Part((size,), dtype.str) for name, (size, dtype) in index}
