"""`RowWriter`: overwrites rows; whoever reads them meanwhile gets the old or the new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank.machine import address_of
from carls_jax.bank.row_access import NUM_FACTS, write_rows

Array = NDArray[Any]


class RowWriter:
    """Writes columns of rows of one table; for its one writer.

    Args:
      columns: All columns `[max_rows, ...]` by name.
      guards: uint32 `[max_rows]`, see `row_guard`.
    """

    def __init__(self, columns: Mapping[str, Array], guards: Array) -> None:
        self._columns = columns
        self._guards_at = address_of(guards)
        self._places = {
            name: (address_of(column), math.prod(column.shape[1:]) * column.dtype.itemsize)
            for name, column in columns.items()
        }

    def write(self, slots: Array, values: Mapping[str, ArrayLike]) -> None:
        """Overwrites rows, each at once.

        Args:
          slots: intp `[n]`, no slot twice.
          values: By column, `[n, ...]` of its own shape and dtype, or one value for all elements.
        """
        table = np.empty((len(values), NUM_FACTS), np.int64)
        rows = []
        for number, (name, value) in enumerate(values.items()):
            column, (address, row_bytes) = self._columns[name], self._places[name]
            row, stride = np.asarray(value, column.dtype, order="C"), row_bytes
            if row.ndim == 0:
                row, stride = np.full(column.shape[1:], row, column.dtype), 0
            assert stride == 0 or row.shape == (slots.size, *column.shape[1:]), (name, row.shape)
            rows.append(row)  # it must outlive the call
            table[number] = address, row_bytes, address_of(row), stride
        write_rows(slots, self._guards_at, table)
