"""What the writers of the crash tests do: each operation follows from its writer and its number.

So whoever knows the two knows what a bank must hold. Pushed gradients are -1 and the learning rate
is 1, so a row of "counts" tells how often it was pushed to. A row of "values" belongs to one
writer, who writes into all its elements the number of the operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.interface import Bank
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec

WIDTH = 32
NUM_SHARED = 64
"""Keys of "counts" that all writers push to."""
NUM_OWN = 12
"""Keys of "values" that each writer has."""
_FIRST_OWN = 1000

_COUNTED = optimizer("sgd", learning_rate=1.0)
COUNTS = TableSpec(
    "counts",
    {
        "now": Field((WIDTH,), optimizer=_COUNTED),
        "late": Field((WIDTH,), optimizer=_COUNTED, lazy=Lazy(max_wait_s=0.05, combine="sum")),
    },
)
VALUES = TableSpec(
    "values",
    {"row": Field((WIDTH,), "float64", group="g"), "number": Field((), "int64", group="g")},
)

Kind: TypeAlias = Literal["push", "update", "create", "delete"]
_KINDS: tuple[Kind, ...] = ("push", "update", "create", "delete")


@dataclass(frozen=True)
class Operation:
    """Is one call of a writer.

    Attributes:
      kind: What it calls.
      number: Which of the writer's calls it is, from 1.
      keys: int64 [n], with repeats where it is a push. The last is `own_keys(writer)[0]`, for that
        key alone tells whether a push was applied.
    """

    kind: Kind
    number: int
    keys: NDArray[np.int64]


def own_keys(writer: int) -> NDArray[np.int64]:
    """Returns the keys that only this writer writes."""
    return _FIRST_OWN * (writer + 1) + np.arange(NUM_OWN)


def owner_of(key: int) -> int:
    """Returns the writer whose key this is."""
    return key // _FIRST_OWN - 1


def operation(writer: int, number: int) -> Operation:
    """Returns what a writer does in its call of this number."""
    chance = np.random.default_rng([writer, number])
    kind = _KINDS[chance.choice(4, p=[0.5, 0.3, 0.1, 0.1])]
    own = own_keys(writer)
    if kind == "push":
        return Operation(kind, number, np.append(chance.integers(0, NUM_SHARED, 20), own[0]))
    return Operation(kind, number, chance.choice(own, 5, replace=False))


def perform(bank: Bank, done: Operation) -> None:
    """Has a bank do an operation."""
    keys = done.keys
    if done.kind == "push":
        ones = np.full((keys.size, WIDTH), -1.0)
        bank.table(COUNTS).push(keys, {"now": ones, "late": ones})
    elif done.kind == "update":
        rows = np.full((keys.size, WIDTH), float(done.number))
        numbers = np.full(keys.size, done.number)
        bank.table(VALUES).update(keys, {"row": rows, "number": numbers})
    elif done.kind == "create":
        bank.table(VALUES).lookup(keys, create=True)
    else:
        bank.table(VALUES).delete(keys)
