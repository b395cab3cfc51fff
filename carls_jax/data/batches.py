"""`Batches`: endless shuffled batches of arrays, which resume where they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.errors import InvalidInputError, ShapeError


class Batches:
    """Gives rows of arrays in batches, epoch after epoch, each in an order of its own.

    The order is a function of seed and epoch. Rows that do not fill the last batch of an epoch are
    left out of it. Each iterator begins at the first batch.

    Args:
      columns: By name, arrays `[n, ...]` of one length; a batch holds copies of its rows.
      batch_size: Rows of a batch.
      seed: Seed of the order, at least 0.
      shuffle: False: in the order of the arrays.

    Raises:
      ShapeError: The arrays have different lengths, or there are none.
      InvalidInputError: `batch_size` is not in 1..n, or `seed` is below 0.
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
            raise ShapeError(f"columns need one length and have {lengths}")
        self._num_rows = next(iter(lengths.values()))
        if not 1 <= batch_size <= self._num_rows:
            raise InvalidInputError(f"batch_size={batch_size}: allowed is 1 to {self._num_rows}")
        if seed < 0:
            raise InvalidInputError(f"seed={seed}: allowed is 0 and more")
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        return self._num_rows // self._batch_size

    def order(self, epoch: int) -> NDArray[np.intp]:
        """Returns int `[n]`, the numbers of the rows in the order of an epoch, counted from 0."""
        if not self._shuffle:
            return np.arange(self._num_rows)
        return np.random.default_rng([self._seed, epoch]).permutation(self._num_rows)

    def take(self, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Returns the rows with these numbers."""
        return {name: column[rows] for name, column in self._columns.items()}

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self, self._batch_size)


class BatchIterator(Iterator[dict[str, NDArray[Any]]]):
    """Goes through `Batches`, and can tell and be told where it is."""

    def __init__(self, batches: Batches, batch_size: int) -> None:
        self._batches = batches
        self._batch_size = batch_size
        self._num_drawn = 0
        self._epoch = 0
        self._order = batches.order(0)

    def __next__(self) -> dict[str, NDArray[Any]]:
        epoch, place = divmod(self._num_drawn, self._batches.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._batches.order(epoch)
        self._num_drawn += 1
        start = place * self._batch_size
        return self._batches.take(self._order[start : start + self._batch_size])

    def get_state(self) -> int:
        """Returns where the iteration is: how many batches were drawn."""
        return self._num_drawn

    def set_state(self, state: int) -> None:
        """Goes on where `get_state` was."""
        if state < 0:
            raise InvalidInputError(f"state={state}: allowed is 0 and more")
        self._num_drawn = state
