"""What a bank holds, as plain values that tests compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest

from carls_jax.bank.shard import Shard
from carls_jax.bank.table_image import TableImage

State = dict[str, Any]


def rows_of(image: TableImage) -> dict[str, Any]:
    """Reads up all rows of an image, by column."""
    rows = {
        name: np.empty((image.num_rows, *column.shape[1:]), column.dtype)
        for name, column in image.columns.items()
    }
    image.read(rows)
    return rows


def _state_of(shard: Shard) -> State:
    """Returns all that a shard holds and a snapshot keeps; equal states behave alike."""
    with shard.frozen() as (images, clocks, sequence, clients):
        state: State = {"clocks": clocks, "sequence": sequence, "clients": clients}
        for image in images:
            columns = rows_of(image)
            # Slots may differ; in a per-source table a key has several rows.
            order = np.lexsort([columns.get("author", columns["key"]), columns["key"]])
            state[image.spec.name] = {
                "spec": image.spec,
                "names": image.names,
                "rows": {name: column[order].tobytes() for name, column in columns.items()},
            }
    return state


@pytest.fixture
def state_of() -> Callable[[Shard], State]:
    return _state_of


@pytest.fixture
def unchanged() -> Callable[[Shard], AbstractContextManager[None]]:
    """Gives what holds that a block alters nothing in a shard, nor what it counts as done."""

    @contextmanager
    def watch(shard: Shard) -> Iterator[None]:
        before, counted = _state_of(shard), _work_done(shard)
        yield
        assert _state_of(shard) == before
        assert _work_done(shard) == counted

    return watch


def _work_done(shard: Shard) -> dict[str, Any]:
    return {
        name: (stats.num_rows, stats.rows_written, stats.counters)
        for name, stats in shard.stats().tables.items()
    }
