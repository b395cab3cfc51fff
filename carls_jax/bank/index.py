"""The key index of a table: 64-bit keys to slots (row numbers).

It is a hash table with open addressing whose cells hold slots alone; keys are compared through
the table's key column. The cells form partitions, chosen by the highest bits of the hash through
a directory (extendible hashing). The first partition doubles while the table is small; a full one
is split in two, or cleaned of deleted marks, alone. So no pause grows with the table: splitting one
of 16,384 cells takes 0.15 ms, remaking an index of 10 M keys 2 s (measured).

Probe r of a key lies r cells beyond its probe r − 1 (triangular probing, which visits every cell of
a power of two).

Others may search the index while its one writer changes it, in other processes too (`home_of`,
`position_of`). A cell that they find is of their key if the key column says so. A key that they do
not find is absent if `state[SEQUENCE]` was even before and is the same afterwards: it is odd while
a partition is remade, and counts how often that was done.

n is the number of keys in a call.

Source: Fagin et al., "Extendible hashing" (1979); Knuth, TAOCP vol. 3, section 6.4, exercise 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from carls_jax.bank.columns import MAX_RESERVED_BYTES, reserve
from carls_jax.bank.machine import (
    address_of,
    compiled,
    fence_release,
    inlined,
    load_int32,
    load_int64,
    prefetch,
    release_int32,
    release_int64,
)
from carls_jax.errors import BankFullError, DtypeError, InvalidInputError, ShapeError

EMPTY = np.int32(-1)
DELETED = np.int32(-2)

PARTITION_CELLS = 16_384
FIRST_CELLS = 1_024
MAX_DEPTH = 22
"""A directory of at most 4 M entries: eight times what 2**31 well-spread keys need."""

# What `state` holds: how often partitions were remade (odd: one is), bits of the hash that choose
# the partition, and cells of each partition less one.
SEQUENCE, DEPTH, MASK = range(3)
STATE_SIZE = 8

_RESERVED_CELLS_PER_KEY = 8
_MAX_ROWS = (1 << 31) - 1
_INT64 = np.dtype(np.int64)
# Keys whose memory is asked for before any of them is searched.
_BLOCK = 64

Array = npt.NDArray[Any]


@inlined
def hash_of(key: Any) -> Any:
    """Mixes a key; SplitMix64, as `keys.splitmix64`."""
    mixed = np.uint64(key) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@inlined
def home_of(key: Any, state: Any, directory: Any) -> Any:
    """Returns the first position that is probed for a key."""
    mixed = hash_of(key)
    entry = (mixed >> np.uint64(1)) >> np.uint64(63 - load_int64(state + 8 * DEPTH))
    home = np.uint64(load_int64(directory + 8 * np.int64(entry)))
    return np.int64(home + (mixed & np.uint64(load_int64(state + 8 * MASK))))


@inlined
def position_of(home: Any, key: Any, keys_column: Any, state: Any, cells: Any) -> Any:
    """Returns the position of a key whose home is given, or of an empty cell: it is absent."""
    mask = load_int64(state + 8 * MASK)
    position = home
    for step in range(1, mask + 2):
        slot = np.int64(load_int32(cells + 4 * position))
        if slot == EMPTY or (slot >= 0 and load_int64(keys_column + 8 * slot) == key):
            break
        position = (position & ~mask) | ((position + step) & mask)
    return position


@inlined
def slot_from(home: Any, key: Any, keys_column: Any, state: Any, cells: Any) -> Any:
    """Returns the slot of a key whose home is given; below 0: it is absent."""
    return np.int64(load_int32(cells + 4 * position_of(home, key, keys_column, state, cells)))


@compiled
def _locate(
    keys: Array, keys_column: int, state: int, directory: int, cells: int, located: Array
) -> None:
    """Gives the position of each key, or of the empty cell that proves it absent."""
    for start in range(0, keys.size, _BLOCK):
        stop = min(start + _BLOCK, keys.size)
        for i in range(start, stop):
            located[i] = home_of(keys[i], state, directory)
            prefetch(cells + 4 * located[i])
        for i in range(start, stop):
            slot = np.int64(load_int32(cells + 4 * located[i]))
            if slot >= 0:
                prefetch(keys_column + 8 * slot)
        for i in range(start, stop):
            located[i] = position_of(located[i], keys[i], keys_column, state, cells)


@inlined
def _place(key: Any, slot: Any, state: Any, directory: Any, cells: Any) -> None:
    """Writes a slot to the first free cell of its key's probes, from the home on."""
    mask = load_int64(state + 8 * MASK)
    position, step = home_of(key, state, directory), 0
    while load_int32(cells + 4 * position) >= 0:
        step += 1
        position = (position & ~mask) | ((position + step) & mask)
    release_int32(cells + 4 * position, np.int32(slot))


@compiled
def _insert(keys: Array, slots: Array, state: int, directory: int, cells: int) -> None:
    fence_release()  # the keys are in the key column before their slots are found
    for i in range(keys.size):
        _place(keys[i], slots[i], state, directory, cells)


@compiled
def _remake(
    slots: Array,
    keys: Array,
    state: Array,
    directory: Array,
    cells: Array,
    starts: Array,
    depth: int,
    mask: int,
    entries: Array,
) -> None:
    """Fills partitions anew, at once for whoever searches meanwhile.

    Args:
      slots: Those that the partitions hold.
      keys: Theirs.
      state, directory, cells: The index.
      starts: First cell of each partition to fill.
      depth, mask: What `state` is to hold.
      entries: int64 [3]: first and last + 1 of the directory's entries to set, and to what.
    """
    at = state.ctypes.data
    release_int64(at + 8 * SEQUENCE, state[SEQUENCE] + 1)
    fence_release()
    if depth > state[DEPTH]:
        for entry in range((1 << depth) - 1, -1, -1):
            directory[entry] = directory[entry >> 1]
    directory[entries[0] : entries[1]] = entries[2]
    state[DEPTH], state[MASK] = depth, mask
    for start in starts:
        cells[start : start + mask + 1] = EMPTY
    for i in range(slots.size):
        _place(keys[i], slots[i], at, directory.ctypes.data, cells.ctypes.data)
    release_int64(at + 8 * SEQUENCE, state[SEQUENCE] + 1)


@compiled
def _count_incoming(
    keys: Array, state: int, directory: int, partition_cells: int, incoming: Array
) -> None:
    """Counts the keys that each partition will receive."""
    for i in range(keys.size):
        incoming[home_of(keys[i], state, directory) // partition_cells] += 1


@dataclass(frozen=True)
class IndexMemory:
    """Holds what a search needs: int64 `state`, int64 `directory`, int32 `cells`."""

    state: Array
    directory: Array
    cells: Array

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Where the three begin."""
        return address_of(self.state), address_of(self.directory), address_of(self.cells)

    @staticmethod
    def layout(
        max_rows: int, partition_cells: int = PARTITION_CELLS
    ) -> dict[str, tuple[int, np.dtype[Any]]]:
        """Returns the lengths and dtypes of the arrays of an index of so many keys."""
        wanted = _RESERVED_CELLS_PER_KEY * max_rows + 4 * partition_cells
        num_partitions = min(wanted, MAX_RESERVED_BYTES // EMPTY.itemsize) // partition_cells
        return {
            "state": (STATE_SIZE, _INT64),
            "directory": (1 << MAX_DEPTH, _INT64),
            "cells": (num_partitions * partition_cells, np.dtype(np.int32)),
        }

    @classmethod
    def reserved(cls, max_rows: int, partition_cells: int = PARTITION_CELLS) -> IndexMemory:
        """Reserves memory of this process's own."""
        layout = cls.layout(max_rows, partition_cells)
        return cls(**{name: reserve(size, (), dtype) for name, (size, dtype) in layout.items()})


def index_parts(max_rows: int) -> dict[str, tuple[int, np.dtype[Any]]]:
    """Names the arrays of an index that is part of a table's memory."""
    return {f"index/{name}": part for name, part in IndexMemory.layout(max_rows).items()}


def index_of(arrays: Mapping[str, Array]) -> IndexMemory:
    """Returns the index that is part of a table's memory."""
    return IndexMemory(*(arrays[f"index/{name}"] for name in ("state", "directory", "cells")))


NO_KEYS_INDEX = IndexMemory(
    np.zeros(STATE_SIZE, np.int64), np.zeros(1, np.int64), np.full(1, EMPTY, np.int32)
)
"""The memory of an index without keys."""


class KeyIndex:
    """Maps the keys of a table to their slots.

    For the table's one writer; others search its memory, see above.
    """

    def __init__(
        self,
        keys_column: npt.NDArray[np.int64],
        *,
        memory: IndexMemory | None = None,
        partition_cells: int = PARTITION_CELLS,
    ) -> None:
        """Makes an empty index over a key column.

        Args:
          keys_column: int64 [max_rows], the key of each slot. Its owner writes a key there
            before `insert`, and leaves it until `remove`.
          memory: Zeros, where the index is to be. None: it reserves memory of its own.
          partition_cells: Cells of a full-grown partition, a power of two from 4 to 65,536. A
            partition holds at most two thirds of that in keys.

        Raises:
          ShapeError: `keys_column` is not [max_rows], or longer than 2**31 − 1.
          DtypeError: `keys_column` is not int64.
          InvalidInputError: `partition_cells` is not allowed.
        """
        _check_arguments(keys_column, partition_cells)
        self._memory = memory or IndexMemory.reserved(len(keys_column), partition_cells)
        self._keys = keys_column
        self._keys_at = address_of(keys_column)
        self._partition_cells = partition_cells
        self._max_partitions = len(self._memory.cells) // partition_cells
        # Positions within a partition are taken modulo a power of two: all partitions have the
        # same size, which is below `partition_cells` only while there is one.
        self._memory.state[MASK] = min(FIRST_CELLS, partition_cells) - 1
        self._memory.cells[: self._mask + 1] = EMPTY
        # Of each partition: the highest hash bits that its keys share, how many bits these are,
        # an upper bound of the cells that are not empty, and how many these may become.
        self._prefix = np.zeros(self._max_partitions, np.int64)
        self._prefix_bits = np.zeros(self._max_partitions, np.uint8)
        self._filled = np.zeros(self._max_partitions, np.int64)
        self._capacity = np.zeros(self._max_partitions, np.int64)
        self._capacity[0] = self._capacity_of(0)
        self._num_partitions = 1
        self._num_keys = 0

    def __len__(self) -> int:
        """Counts the keys."""
        return self._num_keys

    @property
    def memory(self) -> IndexMemory:
        """Where the index is."""
        return self._memory

    @property
    def memory_bytes(self) -> int:
        """Counts the bytes in use: 4 per cell (8 to 12 per key) and the directory."""
        cells = self._num_partitions * (self._mask + 1)
        facts = (self._prefix, self._prefix_bits, self._filled, self._capacity)
        bytes_per_partition = sum(fact.itemsize for fact in facts)
        return (
            cells * EMPTY.itemsize
            + self._num_partitions * bytes_per_partition
            + (1 << self._depth) * _INT64.itemsize
        )

    def find(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Finds the slots of keys: intp [n], −1 where a key is absent. Keys may repeat."""
        return self._memory.cells.take(self._located(keys), mode="clip").astype(np.intp)

    def make_room(self, keys: npt.NDArray[np.int64]) -> None:
        """Makes room for keys that are absent, int64 [n], each once: `insert` then cannot fail.

        Raises:
          BankFullError: As `insert`.
        """
        self._make_room(keys)

    def insert(self, keys: npt.NDArray[np.int64], slots: npt.NDArray[np.integer[Any]]) -> None:
        """Adds keys that are absent, each once, with slots that no other key has.

        Args:
          keys: int64 [n], already written to the key column at `slots`; not `PADDING`.
          slots: int [n].

        Raises:
          BankFullError: Too many hashes begin with the same bits, which only keys made for it
            reach. No key was added.
        """
        incoming = self._make_room(keys)
        _insert(keys, slots, *self._memory.addresses)
        self._filled[: self._num_partitions] += incoming
        self._num_keys += len(keys)

    def remove(self, keys: npt.NDArray[np.int64]) -> None:
        """Takes out keys, int64 [n], that are present, each once."""
        positions = self._located(keys)
        assert (self._memory.cells[positions] >= 0).all(), "removed a key that is absent"
        self._memory.cells[positions] = DELETED
        self._num_keys -= len(keys)

    @property
    def _depth(self) -> int:
        return int(self._memory.state[DEPTH])

    @property
    def _mask(self) -> int:
        return int(self._memory.state[MASK])

    def _located(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        located = np.empty(keys.size, np.int64)
        _locate(keys, self._keys_at, *self._memory.addresses, located)
        return located

    def _capacity_of(self, partition: int) -> int:
        """Gives between half and two thirds of the cells, another share for each partition.

        Hashing fills partitions evenly: with one limit, those that were born together would all
        be split within a few calls. Measured, splits in one call of 8,192 keys: 38, so 9.
        """
        cells = self._mask + 1
        golden_share = partition * 0.6180339887498949 % 1.0
        return 2 * cells // 3 - int(golden_share * cells / 6)

    def _make_room(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Remakes partitions until all keys fit; returns how many each will receive."""
        state, directory, _ = self._memory.addresses
        while True:
            incoming = np.zeros(self._num_partitions, np.int64)
            _count_incoming(keys, state, directory, self._partition_cells, incoming)
            filled = self._filled[: self._num_partitions] + incoming
            crowded = np.flatnonzero(filled > self._capacity[: self._num_partitions])
            if not crowded.size:
                return incoming
            for partition in crowded.tolist():
                self._relieve(partition, int(incoming[partition]))

    def _relieve(self, partition: int, num_incoming: int) -> None:
        cells = self._cells_of(partition)
        slots = cells[cells >= 0]
        # Cleaning must free a quarter, or it would soon be due again.
        if slots.size + num_incoming <= self._capacity[partition] * 3 // 4:
            self._remake([partition], slots, mask=self._mask)
        elif self._mask + 1 < self._partition_cells:
            self._remake([partition], slots, mask=2 * self._mask + 1)
        else:
            self._split(partition, slots)

    def _split(self, partition: int, slots: npt.NDArray[np.int32]) -> None:
        """Moves the keys whose next hash bit is 1 to a new partition."""
        bits = int(self._prefix_bits[partition]) + 1
        if self._num_partitions == self._max_partitions or bits > MAX_DEPTH:
            raise BankFullError(
                f"the key index cannot split a partition of {slots.size} keys that share "
                f"{bits - 1} hash bits ({self._num_partitions} partitions of "
                f"{self._max_partitions}); raise the table's max_rows or choose other keys"
            )
        added = self._num_partitions
        self._num_partitions += 1
        self._prefix[partition] *= 2
        self._prefix[added] = self._prefix[partition] + 1
        self._prefix_bits[[partition, added]] = bits
        depth = max(bits, self._depth)
        num_entries = 1 << (depth - bits)
        first = int(self._prefix[added]) * num_entries
        entries = (first, first + num_entries, added * self._partition_cells)
        self._remake([partition, added], slots, depth=depth, mask=self._mask, entries=entries)

    def _remake(
        self,
        partitions: list[int],
        slots: npt.NDArray[np.int32],
        *,
        mask: int,
        depth: int | None = None,
        entries: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Fills partitions with these slots and nothing else; see the function `_remake`."""
        memory = self._memory
        _remake(
            slots,
            self._keys[slots],
            memory.state,
            memory.directory,
            memory.cells,
            np.array(partitions) * self._partition_cells,
            self._depth if depth is None else depth,
            mask,
            np.array(entries),
        )
        for partition in partitions:
            self._filled[partition] = np.count_nonzero(self._cells_of(partition) >= 0)
            self._capacity[partition] = self._capacity_of(partition)

    def _cells_of(self, partition: int) -> npt.NDArray[np.int32]:
        start = partition * self._partition_cells
        cells: npt.NDArray[np.int32] = self._memory.cells[start : start + self._mask + 1]
        return cells


def _check_arguments(keys_column: npt.NDArray[np.int64], partition_cells: int) -> None:
    if keys_column.dtype != _INT64:
        raise DtypeError(f"keys_column must be int64, received {keys_column.dtype}")
    if keys_column.ndim != 1 or len(keys_column) > _MAX_ROWS:
        raise ShapeError(
            f"keys_column must be [max_rows] with max_rows at most {_MAX_ROWS}, "
            f"received {keys_column.shape}"
        )
    if partition_cells.bit_count() != 1 or not 4 <= partition_cells <= 1 << 16:
        raise InvalidInputError(
            f"partition_cells must be a power of two from 4 to 65536, received {partition_cells}"
        )
