"""The key index of a table: 64-bit keys to slots (row numbers), vectorised over the keys of a call.

It is a hash table with open addressing whose cells hold slots alone; keys are compared through
the table's key column. The cells form partitions, chosen by the highest bits of the hash through
a directory (extendible hashing). The first partition doubles while the table is small; a full one
is split in two, or cleaned of deleted marks, alone. So no pause grows with the table: splitting one
of 16,384 cells takes 0.5 ms, remaking an index of 10 M keys 2 s (measured).

All keys of a call are probed together, round after round: probe r of a key lies r cells beyond
its probe r − 1 (triangular probing, which visits every cell of a power of two). Measured at 0.66
load: 40 rounds place 1.4 M keys, where linear probing needs 132.

n is the number of keys in a call.

Source: Fagin et al., "Extendible hashing" (1979); Knuth, TAOCP vol. 3, section 6.4, exercise 20.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carls_jax.bank.columns import MAX_RESERVED_BYTES, reserve
from carls_jax.errors import BankFullError, DtypeError, InvalidInputError, ShapeError
from carls_jax.keys import splitmix64

EMPTY = np.int32(-1)
DELETED = np.int32(-2)

PARTITION_CELLS = 16_384
FIRST_CELLS = 1_024
MAX_DEPTH = 22
"""A directory of at most 4 M entries: eight times what 2**31 well-spread keys need."""

_RESERVED_CELLS_PER_KEY = 8
_MAX_ROWS = (1 << 31) - 1
_INT64 = np.dtype(np.int64)


class KeyIndex:
    """Maps the keys of a table to their slots, int32.

    Not thread-safe: the table's lock covers every call.
    """

    def __init__(
        self, keys_column: npt.NDArray[np.int64], *, partition_cells: int = PARTITION_CELLS
    ) -> None:
        """Makes an empty index over a key column.

        Args:
          keys_column: int64 [max_rows], the key of each slot. Its owner writes a key there
            before `insert`, and leaves it until `remove`.
          partition_cells: Cells of a full-grown partition, a power of two from 4 to 65,536. A
            partition holds at most two thirds of that in keys.

        Raises:
          ShapeError: `keys_column` is not [max_rows], or longer than 2**31 − 1.
          DtypeError: `keys_column` is not int64.
          InvalidInputError: `partition_cells` is not allowed.
        """
        _check_arguments(keys_column, partition_cells)
        wanted_cells = _RESERVED_CELLS_PER_KEY * len(keys_column) + 4 * partition_cells
        max_cells = min(wanted_cells, MAX_RESERVED_BYTES // EMPTY.itemsize)
        self._keys = keys_column
        self._partition_cells = partition_cells
        self._max_partitions = max_cells // partition_cells
        self._cells = reserve(self._max_partitions * partition_cells, (), np.int32)
        # Positions within a partition are taken modulo a power of two: all partitions have the
        # same size, which is below `partition_cells` only while there is one.
        self._mask = min(FIRST_CELLS, partition_cells) - 1
        self._cells[: self._mask + 1] = EMPTY
        # directory[highest `depth` bits of the hash] is the first cell of the partition.
        self._depth = 0
        self._directory = np.zeros(1, np.int64)
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
    def memory_bytes(self) -> int:
        """Counts the bytes in use: 4 per cell (8 to 12 per key) and the directory."""
        cells = self._num_partitions * (self._mask + 1)
        facts = (self._prefix, self._prefix_bits, self._filled, self._capacity)
        bytes_per_partition = sum(fact.itemsize for fact in facts)
        return (
            cells * self._cells.itemsize
            + self._num_partitions * bytes_per_partition
            + self._directory.nbytes
        )

    def find(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Finds the slots of keys: int32 [n], −1 where a key is absent. Keys may repeat."""
        return self._cells.take(self._locate(keys), mode="clip")

    def make_room(self, keys: npt.NDArray[np.int64]) -> None:
        """Makes room for keys that are absent, int64 [n], each once: `insert` then cannot fail.

        Raises:
          BankFullError: As `insert`.
        """
        self._make_room(splitmix64(keys.view(np.uint64)))

    def insert(self, keys: npt.NDArray[np.int64], slots: npt.NDArray[np.int32]) -> None:
        """Adds keys that are absent, each once, with slots that no other key has.

        Args:
          keys: int64 [n], already written to the key column at `slots`; not `PADDING`.
          slots: int32 [n].

        Raises:
          BankFullError: Too many hashes begin with the same bits, which only keys made for it
            reach. No key was added.
        """
        hashes = splitmix64(keys.view(np.uint64))
        incoming = self._make_room(hashes)
        self._place(self._home(hashes), slots)
        self._filled[: self._num_partitions] += incoming
        self._num_keys += len(keys)

    def remove(self, keys: npt.NDArray[np.int64]) -> None:
        """Takes out keys, int64 [n], that are present, each once."""
        positions = self._locate(keys)
        assert (self._cells[positions] >= 0).all(), "removed a key that is absent"
        self._cells[positions] = DELETED
        self._num_keys -= len(keys)

    def _home(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Gives the first position that is probed for each hash."""
        prefixes = hashes >> np.uint64(64 - self._depth)
        positions = self._directory.take(prefixes.view(np.int64), mode="clip")
        positions += hashes.view(np.int64) & self._mask
        return positions

    def _advance(self, positions: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
        """Moves on by `step` cells, round within the partition."""
        return (positions & ~self._mask) | ((positions + step) & self._mask)

    def _locate(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Gives the position of each key, or of the empty cell that proves it absent."""
        located = self._home(splitmix64(keys.view(np.uint64)))
        pending = np.flatnonzero(self._is_passed(located, keys))
        positions, step = located[pending], 0
        while pending.size:
            step += 1
            positions = self._advance(positions, step)
            located[pending] = positions
            passed = np.flatnonzero(self._is_passed(positions, keys[pending]))
            pending, positions = pending[passed], positions[passed]
        return located

    def _is_passed(
        self, positions: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Tells where the search goes on: at another key and at a deleted mark."""
        slots = self._cells.take(positions, mode="clip")
        # "clip" reads slot 0 for the marks, whose key may be the one that is sought.
        is_passed: npt.NDArray[np.bool_] = self._keys.take(slots, mode="clip") != keys
        is_passed |= slots == DELETED
        is_passed &= slots != EMPTY
        return is_passed

    def _place(self, positions: npt.NDArray[np.int64], slots: npt.NDArray[np.int32]) -> None:
        """Writes each slot to the first free cell of its key's probes, from the home on."""
        step = 0
        while slots.size:
            is_free = self._cells[positions] < 0
            self._cells[positions[is_free]] = slots[is_free]
            # Of several slots written to one cell the last stays; the others go on.
            lost = np.flatnonzero(self._cells[positions] != slots)
            step += 1
            positions, slots = self._advance(positions[lost], step), slots[lost]

    def _capacity_of(self, partition: int) -> int:
        """Gives between half and two thirds of the cells, another share for each partition.

        Hashing fills partitions evenly: with one limit, those that were born together would all
        be split within a few calls. Measured, splits in one call of 8,192 keys: 38, so 9.
        """
        cells = self._mask + 1
        golden_share = partition * 0.6180339887498949 % 1.0
        return 2 * cells // 3 - int(golden_share * cells / 6)

    def _make_room(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Remakes partitions until all hashes fit; returns how many each will receive."""
        while True:
            partitions = self._home(hashes) // self._partition_cells
            incoming = np.bincount(partitions, minlength=self._num_partitions)
            filled = self._filled[: self._num_partitions] + incoming
            crowded = np.flatnonzero(filled > self._capacity[: self._num_partitions])
            if not crowded.size:
                return incoming
            for partition in crowded.tolist():
                self._relieve(partition, int(incoming[partition]))

    def _relieve(self, partition: int, num_incoming: int) -> None:
        start = partition * self._partition_cells
        cells = self._cells[start : start + self._mask + 1]
        slots = cells[cells >= 0]
        # Cleaning must free a quarter, or it would soon be due again.
        if slots.size + num_incoming <= self._capacity[partition] * 3 // 4:
            self._remake(partition, slots)
        elif self._mask + 1 < self._partition_cells:
            self._mask = 2 * self._mask + 1
            self._remake(partition, slots)
        else:
            self._split(partition, slots)

    def _remake(self, partition: int, slots: npt.NDArray[np.int32]) -> None:
        """Fills a partition with these slots and nothing else."""
        start = partition * self._partition_cells
        self._cells[start : start + self._mask + 1] = EMPTY
        homes = self._hashes_of(slots).view(np.int64) & self._mask
        self._place(start + homes, slots)
        self._filled[partition] = slots.size
        self._capacity[partition] = self._capacity_of(partition)

    def _split(self, partition: int, slots: npt.NDArray[np.int32]) -> None:
        """Moves the keys whose next hash bit is 1 to a new partition."""
        bits = int(self._prefix_bits[partition]) + 1
        if self._num_partitions == self._max_partitions or bits > MAX_DEPTH:
            raise BankFullError(
                f"the key index cannot split a partition of {slots.size} keys that share "
                f"{bits - 1} hash bits ({self._num_partitions} partitions of "
                f"{self._max_partitions}); raise the table's max_rows or choose other keys"
            )
        if bits > self._depth:
            self._directory = self._directory.repeat(2)
            self._depth = bits
        added = self._num_partitions
        self._num_partitions += 1
        self._prefix[partition] *= 2
        self._prefix[added] = self._prefix[partition] + 1
        self._prefix_bits[[partition, added]] = bits
        span = 1 << (self._depth - bits)
        first = int(self._prefix[added]) * span
        self._directory[first : first + span] = added * self._partition_cells
        moves = (self._hashes_of(slots) >> np.uint64(64 - bits)) & np.uint64(1) == 1
        self._remake(partition, slots[~moves])
        self._remake(added, slots[moves])

    def _hashes_of(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
        return splitmix64(self._keys[slots].view(np.uint64))


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
