"""`Sightings`: how often each of very many keys was seen, roughly, in memory of a fixed size.

A count-min sketch: a key has a cell in each of four rows, and its count is the lowest of the four.
A sighting raises only those that are as low (conservative update), so counts are seldom too high
and, but for ageing, never too low.

n is the number of keys.

Source: Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch and its
applications" (2005); Estan and Varghese, "New directions in traffic measurement and accounting"
(2002); the ageing: Einziger et al., "TinyLFU" (2017).
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.changes import Keys
from carls_jax.bank.columns import reserve
from carls_jax.bank.index import hash_of
from carls_jax.bank.machine import compiled, inlined, prefetch
from carls_jax.keys import splitmix64

NUM_ROWS = 4
# A row's cells for each sighting before all counts are halved, so that keys seldom share all cells.
_CELLS_FOR_ONE = 4
_HIGHEST = 255
# Keys whose cells are asked for before any of them is read.
_BLOCK = 64


class Sightings:
    """Counts up to 255 sightings of each key; for one user at a time.

    Args:
      num_remembered: Sightings, a power of two, after which all counts are halved. It takes 16
        bytes for each.
    """

    def __init__(self, num_remembered: int) -> None:
        self._cells: NDArray[np.uint8] = reserve(
            NUM_ROWS * _CELLS_FOR_ONE * num_remembered, (), np.uint8
        )
        self._num_remembered = num_remembered
        self._num_noted = 0
        # Nobody can choose keys that meet in one cell. No change depends on it.
        self._salt = np.uint64(secrets.randbits(64))

    def counts(self, keys: Keys, *, of: int = 0) -> NDArray[np.uint8]:
        """Returns how often keys, int64 `[n]`, were seen; `of` tells apart equal keys."""
        counts = np.empty(keys.size, np.uint8)
        _count(keys, self._salt_of(of), self._cells, counts)
        return counts

    def note(self, keys: Keys, *, of: int = 0) -> None:
        """Counts one more sighting of each of different keys, int64 `[n]`."""
        _note(keys, self._salt_of(of), self._cells)
        self._num_noted += keys.size
        if self._num_noted >= self._num_remembered:
            self._num_noted = 0
            self._cells >>= 1

    def _salt_of(self, of: int) -> np.uint64:
        mixed: np.uint64 = splitmix64(np.array([of]).view(np.uint64))[0]
        return mixed ^ self._salt


@inlined
def _cell_of(mixed: Any, row: Any, width: Any) -> Any:
    """Returns the cell of a hashed key in a row: Kirsch and Mitzenmacher's double hashing."""
    step = (mixed >> np.uint64(32)) | np.uint64(1)
    return np.int64(row * width) + np.int64((mixed + np.uint64(row) * step) & np.uint64(width - 1))


@inlined
def _ask_for(keys: Any, start: Any, salt: Any, cells: Any) -> None:
    """Asks for the memory of a block of keys."""
    width = cells.size // NUM_ROWS
    for i in range(start, min(start + _BLOCK, keys.size)):
        mixed = hash_of(np.uint64(keys[i]) ^ salt)
        for row in range(NUM_ROWS):
            prefetch(cells.ctypes.data + _cell_of(mixed, row, width))


@inlined
def _lowest(mixed: Any, cells: Any) -> Any:
    width = cells.size // NUM_ROWS
    lowest = np.uint8(_HIGHEST)
    for row in range(NUM_ROWS):
        lowest = min(lowest, cells[_cell_of(mixed, row, width)])
    return lowest


@compiled
def _count(keys: Any, salt: Any, cells: Any, counts: Any) -> None:
    for start in range(0, keys.size, _BLOCK):
        _ask_for(keys, start, salt, cells)
        for i in range(start, min(start + _BLOCK, keys.size)):
            counts[i] = _lowest(hash_of(np.uint64(keys[i]) ^ salt), cells)


@compiled
def _note(keys: Any, salt: Any, cells: Any) -> None:
    width = cells.size // NUM_ROWS
    for start in range(0, keys.size, _BLOCK):
        _ask_for(keys, start, salt, cells)
        for i in range(start, min(start + _BLOCK, keys.size)):
            mixed = hash_of(np.uint64(keys[i]) ^ salt)
            raised = min(int(_lowest(mixed, cells)) + 1, _HIGHEST)
            for row in range(NUM_ROWS):
                cell = _cell_of(mixed, row, width)
                cells[cell] = max(cells[cell], np.uint8(raised))
