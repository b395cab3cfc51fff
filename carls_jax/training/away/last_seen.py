"""`LastSeen`: the rows that were seen last, so many bytes of them at most.

n is the number of keys, m that of the distinct ones.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import TableSpec
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_STEP, Keys
from carls_jax.bank.index import KeyIndex
from carls_jax.bank.rows import Rows
from carls_jax.keys import PADDING

ALL = np.iinfo(np.int64).max
"""`as_of` of a row that the bank itself has just told."""

# Rows are forgotten by the block, so of all that may be remembered at least 15 in 16 are.
_NUM_BLOCKS = 16
# Of a key, beside its row: in the key column and in the index.
_KEY_BYTES = 24

Kind = tuple[str, ...]
Columns = dict[tuple[str, str], NDArray[Any]]

_BLANK: Mapping[str, tuple[Any, Any]] = {
    "version": (np.int64, 0),
    "step": (np.int64, NO_STEP),
    "updated_at": (np.float64, 0.0),
    "source": (object, ""),
    "clock": (object, ""),
}


@dataclass(frozen=True, repr=False, eq=False)
class RememberedRows(Rows):
    """Holds rows of which some were not told by the bank, but seen before.

    Attributes:
      as_of: int64 `[n]`, the step up to which the bank had acknowledged the reader's own writes
        when the row was seen (-1: not known); `ALL` for a row that the bank has just told.
    """

    as_of: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class LastSeen:
    """Remembers the last answer for each key, for each kind of lookup by itself.

    A kind is the table with the fields, metadata and authors that are asked for. Where the bytes
    are too many, the rows are forgotten that were seen for the first time longest ago. A row that
    is not there any more, when it is looked up again, is forgotten too. Methods may be called from
    several threads at once.

    Args:
      max_bytes: Of all rows together.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._blocks: list[_Block] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows that are remembered."""
        return sum(block.num_bytes for block in self._blocks)

    def remember(self, request: pb.Lookup, rows: Rows, *, as_of: int) -> None:
        """Remembers an answer to a lookup, which was begun as of a step of the reader's writes."""
        if not self._max_bytes:
            return
        keys, places = _distinct(rows.keys)
        found = np.logical_or.reduce(rows.found, axis=1) if rows.found.ndim == 2 else rows.found
        wanted = found.take(places)
        columns = {**_columns_of(rows), ("", "as_of"): np.full(rows.keys.size, as_of)}
        with self._lock:
            missing = np.flatnonzero(~wanted)
            wanted[missing] = self._is_known(_kind(request), keys[missing])
            wanted &= keys != PADDING
            self._store(_kind(request), rows.sources, keys[wanted], columns, places[wanted])

    def recall(self, spec: TableSpec, request: pb.Lookup, keys: Keys) -> RememberedRows:
        """Returns the rows of keys as they were seen last; not found: those never seen."""
        with self._lock:
            blocks = self._of(_kind(request))
            sources = tuple(sorted({name for block in blocks for name in block.sources}))
            rows = blank_rows(spec, request, keys, sources=sources)
            as_of = np.full(keys.size, NO_STEP)
            missing = np.flatnonzero(keys != PADDING)
            for block in blocks:
                slots = block.index.find(keys[missing])
                places, slots, missing = missing[slots >= 0], slots[slots >= 0], missing[slots < 0]
                as_of[places] = block.columns["", "as_of"][slots]
                where: Any = places
                if spec.per_source:
                    authors = [sources.index(name) for name in block.sources]
                    where = np.ix_(places, np.array(authors, np.intp))
                for place, column in _columns_of(rows).items():
                    column[where] = block.columns[place][slots]
        return RememberedRows(**vars(rows), as_of=as_of)

    def _of(self, kind: Kind) -> list[_Block]:
        """Returns the blocks of a kind, newest first."""
        return [block for block in reversed(self._blocks) if block.kind == kind]

    def _is_known(self, kind: Kind, keys: Keys) -> NDArray[np.bool_]:
        found = [block.index.find(keys) >= 0 for block in self._of(kind)]
        return np.logical_or.reduce([np.zeros(keys.size, np.bool_), *found])

    def _store(
        self,
        kind: Kind,
        sources: tuple[str, ...],
        keys: Keys,
        columns: Columns,
        places: NDArray[np.intp],
    ) -> None:
        """Stores the rows of distinct keys, which are at some places of columns."""
        blocks = self._of(kind)
        if blocks and blocks[0].fits(columns, sources):
            known = blocks[0].overwrite(keys, columns, places)
            keys, places = keys[~known], places[~known]
        while keys.size:
            blocks = self._of(kind)
            if not blocks or blocks[0].is_full or not blocks[0].fits(columns, sources):
                max_bytes = self._max_bytes // _NUM_BLOCKS
                blocks = [_Block(kind, sources, columns, max_bytes=max_bytes)]
                self._blocks += blocks
            num_added = blocks[0].num_free
            blocks[0].add(keys[:num_added], columns, places[:num_added])
            keys, places = keys[num_added:], places[num_added:]
            while self.num_bytes > self._max_bytes:
                self._blocks.pop(0)


class _Block:
    """Holds rows of one kind, each key once."""

    def __init__(
        self, kind: Kind, sources: tuple[str, ...], columns: Columns, *, max_bytes: int
    ) -> None:
        self.kind = kind
        self.sources = sources
        self._row_bytes = _KEY_BYTES + sum(_row_bytes(one) for one in columns.values())
        num_rows = max(max_bytes // self._row_bytes, 1)
        self._keys = np.empty(num_rows, np.int64)
        self.index = KeyIndex(self._keys)
        self.columns: Columns = {
            place: np.empty((num_rows, *one.shape[1:]), one.dtype) for place, one in columns.items()
        }

    @property
    def num_bytes(self) -> int:
        return len(self.index) * self._row_bytes

    @property
    def num_free(self) -> int:
        return self._keys.size - len(self.index)

    @property
    def is_full(self) -> bool:
        return not self.num_free

    def fits(self, columns: Columns, sources: tuple[str, ...]) -> bool:
        """Whether rows of these authors, and with such fields, can be added."""
        return sources == self.sources and all(
            column.dtype == self.columns[place].dtype
            and column.shape[1:] == self.columns[place].shape[1:]
            for place, column in columns.items()
        )

    def overwrite(
        self, keys: Keys, columns: Columns, places: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Overwrites the rows of those distinct keys that are here, and tells which are."""
        slots = self.index.find(keys)
        known = slots >= 0
        if known.any():
            slots, places = slots[known], places[known]
            for place, column in columns.items():
                self.columns[place][slots] = column[places]
        return known

    def add(self, keys: Keys, columns: Columns, places: NDArray[np.intp]) -> None:
        """Adds rows of distinct keys that are not here, no more than are free."""
        start, stop = len(self.index), len(self.index) + keys.size
        self._keys[start:stop] = keys
        self.index.insert(keys, np.arange(start, stop))
        for place, column in columns.items():
            # PERFORMANCE: half the time that it takes with an array in between.
            column.take(places, axis=0, out=self.columns[place][start:stop], mode="clip")


def _distinct(keys: Keys) -> tuple[Keys, NDArray[np.intp]]:
    """Returns the distinct keys, ascending, and the place of each."""
    if (keys[1:] > keys[:-1]).all():  # as a training loop asks for them
        return keys, np.arange(keys.size)
    distinct, places = np.unique(keys, return_index=True)
    return distinct, places


def blank_rows(
    spec: TableSpec, request: pb.Lookup, keys: Keys, *, sources: tuple[str, ...] = ()
) -> Rows:
    """Returns what a bank answers if it has none of the rows, in arrays of its own."""
    outer = (keys.size, len(sources)) if spec.per_source else (keys.size,)
    fields = {name: spec.field(name) for name in request.fields}
    return Rows(
        keys=keys,
        values={
            name: np.zeros((*outer, *one.stored_shape), one.stored_dtype)
            for name, one in fields.items()
        },
        found=np.zeros(outer, np.bool_),
        present={name: np.zeros(outer, np.bool_) for name in fields},
        metadata={
            kind: {name: np.full(outer, _BLANK[kind][1], _BLANK[kind][0]) for name in fields}
            for kind in request.metadata
        },
        sources=sources,
    )


def _kind(request: pb.Lookup) -> Kind:
    asked = (request.fields, request.metadata, request.sources)
    return (request.table, *(name for names in asked for name in (*names, "")))


def _columns_of(rows: Rows) -> Columns:
    """Returns the arrays of rows by what they are and their field."""
    columns: Columns = {("", "found"): rows.found}
    columns |= {("value", name): one for name, one in rows.values.items()}
    columns |= {("present", name): one for name, one in rows.present.items()}
    for kind, by_field in rows.metadata.items():
        columns |= {(kind, name): one for name, one in by_field.items()}
    return columns


def _row_bytes(column: NDArray[Any]) -> int:
    return math.prod(column.shape[1:]) * column.dtype.itemsize
