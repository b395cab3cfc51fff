"""The rows that benchmarks work on, and the keys that they draw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Field, TableSpec

Rows = NDArray[np.float32]
Keys = NDArray[np.int64]
# Returns the keys of a round.
Draw = Callable[[int], Keys]

TABLE = "rows"
VALUE = "value"

# So many keys are drawn before they come again: their rows fit in no cache.
_NUM_DRAWN = 1 << 19


def table_of(field: Field) -> TableSpec:
    """Describes a table whose rows are of one field."""
    return TableSpec(TABLE, {VALUE: field})


def random_rows(num_rows: int, width: int) -> Rows:
    """Draws rows `[num_rows, width]`."""
    return np.random.default_rng(0).standard_normal((num_rows, width), np.float32)


def draws(num_rows: int, num_keys: int, *, seed: int = 1, repeat_one_in: int | None = None) -> Draw:
    """Draws keys `[num_keys]` of so many rows for each round, one in `repeat_one_in` of them twice.

    Other keys repeat by chance alone.
    """
    num_sets = max(_NUM_DRAWN // num_keys, 1)
    keys = np.random.default_rng(seed).integers(num_rows, size=(num_sets, num_keys))
    if repeat_one_in:
        num_repeated = num_keys // repeat_one_in
        keys[:, -num_repeated:] = keys[:, :num_repeated]
    return lambda number: keys[number % num_sets]
