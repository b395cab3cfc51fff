"""Where a training loop gets the rows of its neighbours from, and the loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Field, Table, TableSpec
from carls_jax.bench import encoder
from carls_jax.training import Lookup, session

ROWS = "embedding"
TABLE = TableSpec("nodes", {ROWS: Field((encoder.EMBEDDING_WIDTH,))})

# Pairs of inputs `[B, F]` and rows `[B, n, EMBEDDING_WIDTH]`, or the neighbours' inputs.
Feed = Iterator[tuple[Any, Any]]
Step = Callable[[encoder.Params, Any, Any], encoder.Params]


class Loop:
    """Is a training loop that runs a block of steps at a time.

    Attributes:
      num_steps: Steps made so far.
    """

    def __init__(self, feed: Feed, step: Step, params: encoder.Params, *, block_steps: int) -> None:
        self._feed = feed
        self._step = step
        self._params = jax.tree.map(jax.numpy.copy, params)  # the step takes its params over
        self._block_steps = block_steps
        self.num_steps = 0
        self._cpu_s = 0.0

    def run_block(self, number: int) -> None:
        """Makes so many steps and waits until they are done."""
        begun = time.process_time()
        for inputs, neighbors in itertools.islice(self._feed, self._block_steps):
            self._params = self._step(self._params, inputs, neighbors)
        jax.block_until_ready(self._params)
        self._cpu_s += time.process_time() - begun
        self.num_steps += self._block_steps

    @property
    def cpu_ms(self) -> float:
        """CPU time of this process for each step so far, all its threads together."""
        return 1e3 * self._cpu_s / self.num_steps


def on_device(num_neighbors: int) -> Feed:
    """Gives the same rows each time, which are on the device."""
    rows = np.zeros((encoder.BATCH_SIZE, num_neighbors, encoder.EMBEDDING_WIDTH), np.float32)
    return itertools.repeat((_inputs(), jax.device_put(rows)))


def looked_up(table: Table, num_rows: int, num_neighbors: int) -> Feed:
    """Looks the rows up when the step needs them."""
    for batch in _batches(num_rows, num_neighbors):
        keys = batch["neighbors"]
        rows = table.lookup(keys.ravel())[ROWS]
        yield batch["inputs"], rows.reshape(*keys.shape, -1)


@contextmanager
def looked_ahead(address: str, num_rows: int, num_neighbors: int) -> Iterator[Feed]:
    """Looks the rows up while the device computes the steps before."""
    plan = {"neighbors": Lookup(TABLE, ROWS, keys="neighbors")}
    with session(address) as opened:
        opened.begin({"model": np.zeros(1)})  # a state of some kind; it is not saved again
        ahead = opened.look_ahead(_batches(num_rows, num_neighbors), plan)
        yield ((batch["inputs"], know["neighbors"][ROWS]) for _, batch, know in ahead)


def encoded(num_neighbors: int) -> Feed:
    """Gives the neighbours' inputs, for a step that encodes them itself."""
    rng = np.random.default_rng(2)
    return itertools.repeat((_inputs(), encoder.features(rng, encoder.BATCH_SIZE, num_neighbors)))


def _inputs() -> NDArray[np.float32]:
    return encoder.features(np.random.default_rng(1), encoder.BATCH_SIZE)


def _batches(num_rows: int, num_neighbors: int) -> Iterator[dict[str, Any]]:
    inputs, rng = _inputs(), np.random.default_rng(3)
    while True:
        keys = rng.integers(num_rows, size=(encoder.BATCH_SIZE, num_neighbors))
        yield {"inputs": inputs, "neighbors": keys}
