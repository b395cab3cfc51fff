"""A bank and a table to call from jitted functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import jax
import pytest

from carls_jax import hooks
from carls_jax.bank import Bank, Field, LocalBank, Table, TableSpec
from carls_jax.bank.optimizers import optimizer

SPEC = TableSpec(
    "nodes",
    {
        # Rows start at zero and a gradient g moves them by -g / 2.
        "embedding": Field((2,), optimizer=optimizer("sgd", learning_rate=0.5)),
        "bias": Field((), optimizer=optimizer("sgd", learning_rate=0.5)),
        "score": Field(),
        "neighbors": Field((3,), dtype="int64"),
        "label": Field(dtype="int8"),
        "seen": Field(dtype="bool"),
    },
)

Calls = Callable[[], Counter[str]]


@pytest.fixture
def bank() -> Iterator[Bank]:
    with LocalBank() as bank:
        yield bank


@pytest.fixture
def table(bank: Bank) -> Iterator[Table]:
    table = bank.table(SPEC)
    yield table
    jax.effects_barrier()
    hooks.check(bank)


@pytest.fixture
def calls(table: Table) -> Calls:
    """Counts lookups, updates and pushes that reached the bank since the last count."""
    before: Counter[str] = Counter()

    def count() -> Counter[str]:
        jax.effects_barrier()
        kinds = ("lookup", "update", "push")
        counters = table.stats().counters
        now = Counter({kind: counters.get(f"{kind}_calls", 0) for kind in kinds})
        since = now - before
        before.update(since)
        return since

    return count
