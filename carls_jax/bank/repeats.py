"""Which keys of a call are the same: each once, and the places where it stands.

n is the number of keys of the call, m that of different ones.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.changes import Keys
from carls_jax.bank.index import hash_of
from carls_jax.bank.machine import compiled
from carls_jax.keys import PADDING

Places = NDArray[np.intp]

# Nobody can choose keys that meet in one cell of `_link`. No result depends on it.
_SALT = np.uint64(secrets.randbits(64))


@dataclass(frozen=True)
class Distinct:
    """Holds the different keys of a call, in the order in which they first came.

    Attributes:
      keys: int64 `[m]`, without padding.
      firsts, lasts: intp `[m]`, where each key stands first and last.
      following: intp `[n]`, where the same key stands next, or -1.
    """

    keys: Keys
    firsts: Places
    lasts: Places
    following: Places


def distinct(keys: Keys) -> Distinct:
    """Finds the different keys `[n]` of a call; padding is none."""
    firsts, lasts, following = (np.empty(keys.size, np.intp) for _ in range(3))
    num_cells = 1 << max(2 * keys.size - 1, 1).bit_length()
    count = _link(keys, _SALT, np.full(num_cells, -1, np.int32), firsts, lasts, following)
    firsts, lasts = firsts[:count], lasts[:count]
    return Distinct(keys if count == keys.size else keys[firsts], firsts, lasts, following)


@compiled
def _link(keys: Any, salt: Any, cells: Any, firsts: Any, lasts: Any, following: Any) -> int:
    """Links equal keys, and returns how many different ones there are.

    `cells` is a hash table of numbers of keys, with linear probing; its size is a power of two, and
    at least half of it stays empty.
    """
    count, mask = 0, cells.size - 1
    for place in range(keys.size):
        key = keys[place]
        following[place] = -1
        if key == PADDING:
            continue
        cell = np.int64(hash_of(np.uint64(key) ^ salt) & np.uint64(mask))
        while cells[cell] >= 0 and keys[firsts[cells[cell]]] != key:
            cell = (cell + 1) & mask
        number = cells[cell]
        if number < 0:
            cells[cell] = number = count
            firsts[number] = place
            count += 1
        else:
            following[lasts[number]] = place
        lasts[number] = place
    return count
