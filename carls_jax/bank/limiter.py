"""`Limiter`: what decides which rows a table lets in and which go, and no change tells.

It is this process's own and not kept: numbered changes name the rows that went, so applying them
needs none of it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.changes import Keys
from carls_jax.bank.columns import Slots, reserve
from carls_jax.bank.index import IndexMemory, home_of, slot_from
from carls_jax.bank.limits import Limit
from carls_jax.bank.machine import address_of, compiled, load_int32, prefetch
from carls_jax.bank.sightings import Sightings

Times = NDArray[np.int64]

_BLOCK = 64

# Sightings that count in full: 16 and 256 MiB.
MIN_REMEMBERED, MAX_REMEMBERED = 1 << 20, 1 << 24


class Limiter:
    """Knows when rows were used and written, and how often keys without a row were seen.

    `note_lookup` may be called from several threads at once; all else by the holder of the table's
    `writer`.

    Args:
      limit: What the table keeps to.
      row_bytes: Bytes of a row in all columns.
      max_rows: Rows that the table may hold in any case.
      reserved_rows: Slots of the table.

    Attributes:
      limit: What the table keeps to.
      max_rows: Rows beyond which rows are evicted. None: there is no such number.
      used: int64 `[reserved_rows]`, when rows were last looked up or written, in nanoseconds of a
        clock that never jumps; 0: not in this process. None: no eviction depends on it.
      written: The same, of writes alone.
      sightings: Counts keys without a row. None: all are let in.

    Raises:
      ConfigError: `limit.max_bytes` is less than one row takes.
    """

    def __init__(self, limit: Limit, *, row_bytes: int, max_rows: int, reserved_rows: int) -> None:
        self.limit = limit
        most = limit.num_rows(row_bytes)
        self.max_rows = None if most is None else min(most, max_rows)
        by_use = self.max_rows is not None and limit.evict == "least_recent"
        self.used: Times | None = reserve(reserved_rows, (), np.int64) if by_use else None
        self.written: Times | None = reserve(reserved_rows, (), np.int64) if limit.ttl_s else None
        self._turn = 0
        self.sightings: Sightings | None = None
        if limit.admit_after > 1:
            self.sightings = Sightings(_num_remembered(self.max_rows))

    def take_over(self, other: Limiter, *, num_slots: int) -> None:
        """Takes what another has noted of the same rows, as far as it is asked for here."""
        for mine, theirs in ((self.used, other.used), (self.written, other.written)):
            if mine is not None and theirs is not None:
                mine[:num_slots] = theirs[:num_slots]
        if self.sightings is not None and other.sightings is not None:
            self.sightings = other.sightings

    def next_turn(self) -> int:
        """Returns how often rows to go have been chosen before."""
        self._turn += 1
        return self._turn - 1

    def note_lookup(self, keys: Keys, keys_column: NDArray[np.int64], index: IndexMemory) -> None:
        """Notes that the rows of keys `[n]` that are there are being used."""
        if self.used is not None:
            now = time.monotonic_ns()
            _note(keys, now, address_of(keys_column), *index.addresses, self.used)

    def note_write(self, slots: Slots, is_written: NDArray[np.bool_]) -> None:
        """Notes that rows `[n]`, -1 where there is none, were used, and which were written."""
        now = time.monotonic_ns()
        if self.used is not None:
            self.used[slots[slots >= 0]] = now
        if self.written is not None:
            self.written[slots[is_written & (slots >= 0)]] = now

    def note_sightings(self, keys: Keys, *, of: int) -> None:
        """Notes that a change would have created, or has, rows of an author; see `Sightings`."""
        if self.sightings is not None:
            self.sightings.note(keys, of=of)


def _num_remembered(max_rows: int | None) -> int:
    """Returns how many sightings are to count: as many as there may be rows, within bounds."""
    wanted = min(max(max_rows or 0, MIN_REMEMBERED), MAX_REMEMBERED)
    return 1 << (wanted - 1).bit_length()


@compiled
def _note(
    keys: Any, now: int, keys_column: int, state: int, directory: int, cells: int, times: Any
) -> None:
    """Writes a time for each row; which it is may be a row's that has just gone, which is no harm.

    Args:
      keys: int64 `[n]`.
      keys_column, state, directory, cells: Addresses, as `read_rows` takes them.
      times: int64 `[reserved_rows]`.
    """
    homes = np.empty(_BLOCK, np.int64)
    for start in range(0, keys.size, _BLOCK):
        size = min(_BLOCK, keys.size - start)
        for i in range(size):
            homes[i] = home_of(keys[start + i], state, directory)
            prefetch(cells + 4 * homes[i])
        for i in range(size):
            guess = np.int64(load_int32(cells + 4 * homes[i]))
            if guess >= 0:
                prefetch(keys_column + 8 * guess)
                prefetch(times.ctypes.data + 8 * guess)
        for i in range(size):
            slot = slot_from(homes[i], keys[start + i], keys_column, state, cells)
            if slot >= 0:
                times[slot] = now
