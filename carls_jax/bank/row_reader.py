"""`RowReader`: copies rows out of a table's memory, in the table's own process or another.

n is the number of keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.index import IndexMemory
from carls_jax.bank.machine import address_of
from carls_jax.bank.row_access import (
    ADDRESS,
    ALIGNMENT,
    FILL_OR_STRIDE,
    NUM_FACTS,
    ROW_BYTES,
    read_rows,
)

Array = NDArray[Any]

# A kind of metadata whose blank value is -1, all bits set; that of all others is 0.
_BLANK_IS_MINUS_ONE = "step/"


@dataclass(frozen=True)
class _Columns:
    """Holds what a call needs to know of the columns that it reads.

    Attributes:
      facts: As `read_rows` takes them.
      kinds: Of each column the shape, dtype and bytes of a row.
    """

    facts: Array
    kinds: tuple[tuple[tuple[int, ...], np.dtype[Any], int], ...]

    def places(self, n: int) -> tuple[list[int], int]:
        """Returns where in a buffer n rows of each column begin, and the size of the buffer."""
        places, size = [], 0
        for _, _, row_bytes in self.kinds:
            places.append(size)
            size += -(-n * row_bytes // ALIGNMENT) * ALIGNMENT
        return places, size


class RowReader:
    """Reads rows while the table's writer changes them; see `row_access.read_rows`.

    May be used from several threads at once.

    Args:
      arrays: The columns `[max_rows, ...]` by name, and "guards".
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._at = address_of(arrays["key"]), address_of(arrays["guards"])
        self._columns: dict[tuple[str, ...], _Columns] = {}

    def read(
        self,
        keys: Array,
        names: tuple[str, ...],
        index: IndexMemory,
        *,
        longest_s: float = math.inf,
    ) -> tuple[list[Array], Array] | None:
        """Copies the rows of keys.

        Args:
          keys: int64 `[n]`.
          names: Names of the columns to read.
          index: Where the keys are found.
          longest_s: How long to wait for a row or the index that is being written.

        Returns:
          The columns' rows `[n, ...]`, blank where a key has none, and which have one, bool `[n]`.
          None: it took longer.
        """
        columns = self._columns.get(names) or self._learn(names)
        if not keys.flags.carray:  # machine code is compiled anew for arrays of another kind
            keys = keys.copy()
        n = keys.size
        places, size = columns.places(n)
        facts = columns.facts.copy()
        buffer, found = np.empty(size, np.uint8), np.empty(n, np.bool_)
        num_read, deadline = 0, None
        while True:
            num_read = read_rows(keys, num_read, *self._at, *index.addresses, facts, buffer, found)
            if num_read == n:
                break
            deadline = deadline or time.monotonic() + longest_s
            if time.monotonic() > deadline:
                return None
            time.sleep(0)  # the writer may need this core
        copies = [
            np.ndarray((n, *shape), dtype, buffer, place)
            for (shape, dtype, _), place in zip(columns.kinds, places, strict=True)
        ]
        return copies, found

    def _learn(self, names: Sequence[str]) -> _Columns:
        arrays = [self._arrays[name] for name in names]
        kinds = [
            (one.shape[1:], one.dtype, math.prod(one.shape[1:]) * one.dtype.itemsize)
            for one in arrays
        ]
        facts = np.zeros((len(names), NUM_FACTS), np.int64)
        facts[:, ADDRESS] = [address_of(array) for array in arrays]
        facts[:, ROW_BYTES] = [row_bytes for _, _, row_bytes in kinds]
        facts[:, FILL_OR_STRIDE] = [
            0xFF if name.startswith(_BLANK_IS_MINUS_ONE) else 0 for name in names
        ]
        columns = self._columns[tuple(names)] = _Columns(facts, tuple(kinds))
        return columns
