"""`RowReader`: copies rows out of a table's memory, in the table's own process or another.

n is the number of keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.index import IndexMemory
from carls_jax.bank.machine import address_of
from carls_jax.bank.row_access import (
    ADDRESS,
    BUFFER,
    FILL_OR_STRIDE,
    NUM_FACTS,
    ROW_BYTES,
    read_rows,
)

Array = NDArray[Any]

# A kind of metadata whose blank value is -1, all bits set; that of all others is 0.
_BLANK_IS_MINUS_ONE = "step/"
_ALIGNMENT = 64
_MAX_PLANS = 256


@dataclass(frozen=True)
class _Plan:
    """Holds what a call needs to know of the columns that it reads.

    Attributes:
      facts: As `read_rows` takes them.
      num_bytes: Size of the buffer.
      copies: Of each column the shape and dtype of its rows, and where in the buffer they begin.
    """

    facts: Array
    num_bytes: int
    copies: tuple[tuple[tuple[int, ...], np.dtype[Any], int], ...]


class RowReader:
    """Reads rows while the table's writer changes them; see `row_access.read_rows`.

    May be used from several threads at once.

    Args:
      arrays: The columns `[max_rows, ...]` by name, and "guards".
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._at = address_of(arrays["key"]), address_of(arrays["guards"])
        # By columns and number of keys; most calls are like earlier ones.
        self._plans: dict[tuple[tuple[str, ...], int], _Plan] = {}

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
        n = keys.size
        plan = self._plans.get((names, n)) or self._make_plan(names, n)
        if not keys.flags.carray:  # machine code is compiled anew for arrays of another kind
            keys = keys.copy()
        buffer, found = np.empty(plan.num_bytes, np.uint8), np.empty(n, np.bool_)
        num_read, deadline = 0, None
        while True:
            num_read = read_rows(
                keys, num_read, *self._at, *index.addresses, plan.facts, buffer, found
            )
            if num_read == n:
                break
            deadline = deadline or time.monotonic() + longest_s
            if time.monotonic() > deadline:
                return None
            time.sleep(0)  # the writer may need this core
        return [np.ndarray(shape, dtype, buffer, at) for shape, dtype, at in plan.copies], found

    def _make_plan(self, names: tuple[str, ...], n: int) -> _Plan:
        facts, copies, num_bytes = np.zeros((len(names), NUM_FACTS), np.int64), [], 0
        for name, fact in zip(names, facts, strict=True):
            array = self._arrays[name]
            shape, row_bytes = array.shape[1:], math.prod(array.shape[1:]) * array.dtype.itemsize
            fact[[ADDRESS, ROW_BYTES, BUFFER]] = address_of(array), row_bytes, num_bytes
            fact[FILL_OR_STRIDE] = 0xFF if name.startswith(_BLANK_IS_MINUS_ONE) else 0
            copies.append(((n, *shape), array.dtype, num_bytes))
            num_bytes += -(-n * row_bytes // _ALIGNMENT) * _ALIGNMENT
        if len(self._plans) >= _MAX_PLANS:
            self._plans = {}
        plan = self._plans[names, n] = _Plan(facts, num_bytes, tuple(copies))
        return plan
