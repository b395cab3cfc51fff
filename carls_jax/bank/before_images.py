"""`BeforeImages`: what rows of a table were before they changed, until a snapshot has read them.

A row is kept once, all its columns, before its first change after the snapshot's instant. Its place
is used again as soon as the snapshot has read it, so memory follows what waits to be read.

m is a number of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.columns import Slots, reserve

# Half of 1 M rows of 128 float32 may change freely while a snapshot of a second or two is written.
MAX_BEFORE_BYTES = 256 << 20


class Room:
    """Bounds the before-images that all tables of one snapshot keep. For several threads at once.

    Args:
      max_bytes: What they may take together.
    """

    def __init__(self, max_bytes: int = MAX_BEFORE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._changed = threading.Condition()

    @property
    def num_bytes(self) -> int:
        """Bytes that are kept."""
        return self._num_bytes

    def wait_for(self, num_bytes: int) -> None:
        """Waits until so much more may be kept, or nothing is: what is larger goes alone."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._num_bytes or self._num_bytes + num_bytes <= self._max_bytes
            )

    def take(self, num_bytes: int) -> None:
        """Counts what is kept; a negative number gives back. Never waits."""
        with self._changed:
            self._num_bytes += num_bytes
            if num_bytes < 0:
                self._changed.notify_all()


class BeforeImages:
    """Keeps rows of one table. Not thread-safe: the table's lock covers every call.

    Args:
      columns: The table's arrays by name, `[num_slots, ...]`.
      room: Counts the bytes.

    Attributes:
      row_bytes: Bytes that a row takes.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], room: Room) -> None:
        self._columns = columns
        self._room = room
        self.row_bytes = sum(column.strides[0] for column in columns.values())
        num_slots = len(columns["key"])
        # Reserved as the table's own columns are: memory is taken for places that were used.
        self._kept = {
            name: reserve(num_slots, column.shape[1:], column.dtype)
            for name, column in columns.items()
        }
        self._place_of = reserve(num_slots, (), np.int32)  # by slot; one more, 0 is none
        self._free = reserve(num_slots, (), np.int32)  # a stack of places to be used again
        self._num_free = 0
        self._num_places = 0  # places below this were used

    def keep(self, slots: Slots) -> None:
        """Keeps what different slots `[m]` hold, but for those that are kept already."""
        slots = slots[self._place_of[slots] == 0]
        if not slots.size:
            return
        places = self._take_places(slots.size)
        for name, kept in self._kept.items():
            kept[places] = self._columns[name].take(slots, axis=0, mode="clip")
        self._place_of[slots] = places + 1
        self._room.take(slots.size * self.row_bytes)

    def put_back(self, slots: Slots, rows: Mapping[str, NDArray[Any]]) -> None:
        """Overwrites rows `[m, ...]`, by column, with what was kept of their slots `[m]`."""
        places = self._place_of[slots]
        kept = np.flatnonzero(places)
        if not kept.size:
            return
        places = places[kept] - 1
        for name, column in rows.items():
            column[kept] = self._kept[name][places]

    def forget(self, start: int, stop: int) -> None:
        """Gives back the places of slots from `start` to `stop`, which nobody will ask for."""
        places = self._place_of[start:stop]
        freed = places[np.flatnonzero(places)] - 1
        if not freed.size:
            return
        self._free[self._num_free : self._num_free + freed.size] = freed
        self._num_free += freed.size
        self._room.take(-freed.size * self.row_bytes)

    def clear(self) -> None:
        """Gives back everything."""
        self._room.take(-(self._num_places - self._num_free) * self.row_bytes)
        self._num_places = self._num_free = 0
        self._kept = {}

    def _take_places(self, num_rows: int) -> NDArray[np.int32]:
        reused = min(num_rows, self._num_free)
        places = np.empty(num_rows, np.int32)
        places[:reused] = self._free[self._num_free - reused : self._num_free]
        places[reused:] = np.arange(self._num_places, self._num_places + num_rows - reused)
        self._num_free -= reused
        self._num_places += num_rows - reused
        return places
