"""`TableImage`: a table as it was at one instant, read while the table goes on changing.

m is a number of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.before_images import BeforeImages, Room
from carls_jax.bank.columns import SLICE_BYTES, SLICE_ROWS, Slots
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.table_memory import TableMemory
from carls_jax.keys import PADDING


class TableImage:
    """Holds the state of one instant, that of its making.

    Rows are read once, in the order of their slots. What lies before `_next_slot` was read. Of
    what lies beyond, whoever alters a row calls `keep` first, under the table's `lock`.

    A row is copied without the lock, from columns that may be changing. What was torn was changed,
    so it was kept: what was kept is put in its place afterwards, under the lock.

    Args:
      spec: What the table is.
      num_rows: Rows that are there.
      names: What the numbers in the columns stand for: names of "sources" and "clocks".
      columns: All arrays by name, `[num_slots, ...]`. "key" tells which slots hold rows.
      lock: The table's.
      room: Bounds the memory of what is kept.
      memory: Where the columns are; None: in this process alone.

    Attributes:
      spec, num_rows, names, columns: As given.
    """

    def __init__(
        self,
        spec: TableSpec,
        num_rows: int,
        names: Mapping[str, Sequence[str]],
        columns: Mapping[str, NDArray[Any]],
        *,
        lock: threading.Lock,
        room: Room,
        memory: TableMemory | None = None,
    ) -> None:
        self.spec = spec
        self.num_rows = num_rows
        self.names = names
        self.columns = columns
        self._lock = lock
        self._room = room
        self._memory = memory
        self._before = BeforeImages(columns, room)
        self._num_slots = len(columns["key"])
        self._next_slot = 0
        self._num_read = 0
        self._slice_rows = max(1, min(SLICE_ROWS, SLICE_BYTES // self._before.row_bytes))

    def read(self, out: Mapping[str, NDArray[Any]]) -> None:
        """Fills arrays `[m, ...]`, one for each column, with the next m rows; there must be m.

        After the last row it is closed.
        """
        filled, num_rows = 0, out["key"].shape[0]
        while filled < num_rows:
            start = self._next_slot
            stop = min(start + self._slice_rows, start + num_rows - filled, self._num_slots)
            assert start < stop, "no rows are left"
            slots = self._live_slots(start, stop)
            rows = {name: array[filled : filled + slots.size] for name, array in out.items()}
            for name, array in rows.items():
                self._copy(name, slots, array)
            with self._lock:
                self._before.put_back(slots, rows)
                self._before.forget(start, stop)
                self._next_slot = stop
            filled += slots.size
        self._num_read += num_rows
        if self._num_read == self.num_rows:
            self.close()

    def keep(self, slots: Slots) -> None:
        """Keeps what is in different slots `[m]`, as far as that is still to be read.

        The caller holds `lock` and is about to alter them.
        """
        unread = (slots >= self._next_slot) & (slots < self._num_slots)
        if unread.any():
            self._before.keep(slots[unread])

    def wait_for_room(self, num_rows: int) -> None:
        """Waits until so many rows may change; see `Room`. The caller does not hold `lock`."""
        self._room.wait_for(num_rows * self._before.row_bytes)

    def close(self) -> None:
        """Keeps nothing any more; there is no reading on. May be called again."""
        with self._lock:
            self._next_slot = self._num_slots
        # From here on nobody keeps anything, so to free the memory needs no lock.
        self._before.clear()

    def _live_slots(self, start: int, stop: int) -> Slots:
        """Returns those slots in a range that held rows at the instant, ascending."""
        keys = self.columns["key"][start:stop].copy()
        with self._lock:
            self._before.put_back(np.arange(start, stop), {"key": keys})
        return start + np.flatnonzero(keys != PADDING)

    def _copy(self, name: str, slots: Slots, out: NDArray[Any]) -> None:
        """Copies what is at ascending slots `[m]` of a column now."""
        if not slots.size:
            return
        start, stop = int(slots[0]), int(slots[-1]) + 1
        if stop - start == slots.size:
            self._copy_range(name, start, out)
        else:
            every = np.empty((stop - start, *out.shape[1:]), out.dtype)
            self._copy_range(name, start, every)
            every.take(slots - start, axis=0, out=out, mode="clip")

    def _copy_range(self, name: str, start: int, out: NDArray[Any]) -> None:
        if self._memory is not None:
            self._memory.read(name, start, out)
        else:
            out[...] = self.columns[name][start : start + out.shape[0]]
