"""Rows with guards and a key index, as a table has them, for tests that read and write them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.index import KeyIndex, index_of, index_parts
from carls_jax.bank.layout import METADATA_COLUMNS
from carls_jax.bank.row_reader import RowReader
from carls_jax.bank.row_writer import RowWriter
from carls_jax.bank.table_memory import Part, TableMemory

MAX_ROWS = 1 << 12


class GuardedRows:
    """Holds columns "value/x" `[…, width]` float32, "value/y" int8 and "step/x".

    Args:
      width: Numbers of a row of "x".
    """

    def __init__(self, width: int = 3) -> None:
        parts = {
            "key": Part((MAX_ROWS,), "int64"),
            "value/x": Part((MAX_ROWS, width), "float32"),
            "value/y": Part((MAX_ROWS,), "int8"),
            "step/x": Part((MAX_ROWS,), METADATA_COLUMNS["step"].dtype.str),
            "guards": Part((MAX_ROWS,), "uint32"),
        }
        index = index_parts(MAX_ROWS).items()
        parts |= {name: Part((size,), dtype.str) for name, (size, dtype) in index}
        self.memory = TableMemory(parts)
        self.columns = {
            name: array
            for name, array in self.memory.arrays.items()
            if name.startswith(("key", "value/", "step/"))
        }
        self.guards = self.memory.arrays["guards"]
        self.index = KeyIndex(self.columns["key"], memory=index_of(self.memory.arrays))
        self.reader = RowReader(self.memory.arrays)
        self.writer = RowWriter(self.columns, self.guards)

    def put(self, keys: NDArray[np.int64], slots: NDArray[np.intp] | None = None) -> None:
        """Adds rows at slots (None: 0, 1, …): x is the key, y and the step its last digits."""
        slots = np.arange(keys.size) if slots is None else slots
        x = np.repeat(keys[:, None], self.columns["value/x"].shape[1], axis=1).astype(np.float32)
        values = {"key": keys, "value/x": x, "value/y": keys % 100, "step/x": keys % 10}
        self.writer.write(slots, values)
        self.index.insert(keys, slots)

    def read(
        self, keys: NDArray[np.int64], *names: str
    ) -> tuple[list[NDArray], NDArray[np.bool_]] | None:
        return self.reader.read(keys, names, self.index.memory, longest_s=0)
