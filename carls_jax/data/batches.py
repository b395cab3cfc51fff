"""`Batches`: endless shuffled batches of arrays, which resume where they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.errors import InvalidInputError, ShapeError


class Batches:
    """Iterates over rows of arrays in batches, epoch after epoch, each in an order of its own.

    The order is a function of seed and epoch. Rows that do not fill the last batch of an epoch are
    left out of it.

    Args:
      columns: By name, arrays `[n, ...]` of one length.
      batch_size: Rows of a batch.
      seed: Seed of the order.
      shuffle: False: in the order of the arrays.

    Raises:
      ShapeError: The arrays have different lengths.
      InvalidInputError: `batch_size` is not in 1..n.
    """

    def __init__(
        self,
        columns: Mapping[str, ArrayLike],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self._columns = {name: np.asarray(column) for name, column in columns.items()}
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"columns have different lengths: {lengths}")
        self._num_rows = next(iter(lengths.values()))
        if not 1 <= batch_size <= self._num_rows:
            raise InvalidInputError(f"batch_size={batch_size}: allowed is 1 to {self._num_rows}")
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drawn = 0
        self._epoch = -1
        self._order: NDArray[np.intp] = np.arange(self._num_rows)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, NDArray[Any]]:
        epoch, place = divmod(self._drawn, self._num_rows // self._batch_size)
        if self._shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._num_rows)
            self._epoch = epoch
        self._drawn += 1
        chosen = self._order[place * self._batch_size : (place + 1) * self._batch_size]
        return {name: column[chosen] for name, column in self._columns.items()}

    def get_state(self) -> int:
        """Returns where the iteration is: how many batches were drawn."""
        return self._drawn

    def set_state(self, state: int) -> None:
        """Goes on where `get_state` was."""
        self._drawn = state
