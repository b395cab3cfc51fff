"""Which columns a table has: for each field its values, and what is kept beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from carls_jax.bank.changes import NO_STEP
from carls_jax.bank.optimizers import RowOptimizer
from carls_jax.bank.specs import Field, TableSpec


@dataclass(frozen=True)
class Column:
    """Describes a column.

    Attributes:
      dtype: Element type.
      shape: Shape of one row's value.
      fill: Value in every element of a new row.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    fill: float = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's value."""
        return math.prod(self.shape) * self.dtype.itemsize


# Who wrote a field when, for each row and metadata group: 23 bytes.
METADATA_COLUMNS = {
    "version": Column(np.dtype(np.uint32)),
    "step": Column(np.dtype(np.int64), fill=NO_STEP),
    "updated_at": Column(np.dtype(np.float64)),
    "source": Column(np.dtype(np.uint16)),
    "clock": Column(np.dtype(np.uint8)),
}


# What is kept of the gradients that a lazy field gathered, beside their sum; see `gathering`. It
# says nothing where the count is 0, but for the norm, which is the usual one of a row's gradients.
PENDING_COLUMNS = {
    "count": Column(np.dtype(np.int32)),
    "norm": Column(np.dtype(np.float64)),
    "since": Column(np.dtype(np.float64)),  # seconds since the epoch, of the first
    "step": Column(np.dtype(np.int64)),  # of the last, as what follows
    "source": METADATA_COLUMNS["source"],
    "clock": METADATA_COLUMNS["clock"],
}


def names_in(column: str) -> Literal["sources", "clocks"] | None:
    """Tells what the numbers in a column stand for: sources, clocks, or nothing but themselves."""
    first, _, rest = column.partition("/")
    kind = rest.rpartition("/")[2] if first in ("pending", "history") else first
    kinds: dict[str, Literal["sources", "clocks"]] = {
        "author": "sources",
        "source": "sources",
        "clock": "clocks",
    }
    return kinds.get(kind)


def columns_of(spec: TableSpec, optimizers: Mapping[str, RowOptimizer]) -> dict[str, Column]:
    """Describes the columns of a table by name.

    "key"; "author" in a per-source table; "METADATA/GROUP"; "value/FIELD"; "state/FIELD/NAME" of
    optimizers; "pending/FIELD/sum" and others of lazy fields; "history/FIELD/value" and
    "history/FIELD/METADATA".
    """
    columns = {"key": Column(np.dtype(np.int64))}
    if spec.per_source:
        columns["author"] = METADATA_COLUMNS["source"]
    for group in spec.groups:
        columns |= {f"{kind}/{group}": column for kind, column in METADATA_COLUMNS.items()}
    for name, field in spec.fields.items():
        columns[f"value/{name}"] = Column(field.stored_dtype, field.stored_shape)
        if name in optimizers:
            for state, one in optimizers[name].state_fields.items():
                columns[f"state/{name}/{state}"] = Column(one.dtype, one.shape, one.fill)
        if field.lazy:
            columns[f"pending/{name}/sum"] = Column(np.dtype(field.dtype), field.shape)
            for kind, column in PENDING_COLUMNS.items():
                columns[f"pending/{name}/{kind}"] = column
        if field.history:
            columns |= dict(_history_columns(name, field))
    return columns


def _history_columns(name: str, field: Field) -> Iterator[tuple[str, Column]]:
    """Yields rings of the last writes: write v of a field is at place (v - 1) % history."""
    yield (
        f"history/{name}/value",
        Column(field.stored_dtype, (field.history, *field.stored_shape)),
    )
    for kind, column in METADATA_COLUMNS.items():
        # Places never written have version 0, and whatever else is in them is not read.
        yield f"history/{name}/{kind}", Column(column.dtype, (field.history,))
