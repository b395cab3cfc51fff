"""Changes to record, and journals read up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from carls_jax.bank import changes
from carls_jax.bank.changes import Change, author
from carls_jax.bank.journal import Journal, read_journal

BY = author(step=3, source="ann", updated_at=5.0)


def a_change(number: int, *, num_rows: int = 2) -> Change:
    """Makes a push that no other number makes."""
    keys = np.arange(num_rows, dtype=np.int64) + number
    gradients = np.full((num_rows, 3), number, np.float32)
    return changes.push("t", keys, {"w": gradients}, by=BY)


def open_journal(directory: Path, *, after: int = 0, **how: Any) -> Journal:
    given = {"mode": "process", "bank_id": "b", "shard_index": 1, **how}
    return Journal(directory, after=after, **given)


def read_up(directory: Path, *, after: int = 0) -> list[tuple[int, Change]]:
    return list(read_journal(directory, bank_id="b", shard_index=1, after=after))


def numbers(directory: Path, *, after: int = 0) -> list[int]:
    """Reads up changes that `a_change` made, and returns their numbers and sequences."""
    read = read_up(directory, after=after)
    for sequence, change in read:
        assert same(change, a_change(sequence))
    return [sequence for sequence, _ in read]


def same(first: Change, second: Change) -> bool:
    """Returns whether two changes are equal, bit for bit."""
    return seen(first) == seen(second)


def seen(change: Change) -> Any:
    arrays = {"": change.keys, **change.values}
    return change.header.SerializeToString(deterministic=True), {
        name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()
    }


@contextmanager
def recorded(directory: Path, first: int, last: int, **how: Any) -> Iterator[Journal]:
    """Gives a journal with the changes from one number to another."""
    journal = open_journal(directory, after=first - 1, **how)
    for number in range(first, last + 1):
        journal.append(a_change(number), number)
    yield journal
    journal.close()


def names(directory: Path) -> list[int]:
    """Returns the first sequences of the segments that are there."""
    listed = sorted(os.listdir(directory))
    return [int(name.removesuffix(".log")) for name in listed if name.endswith(".log")]


def begun(function: Callable[..., None], *given: object) -> Future[None]:
    """Calls a function in a thread of its own, for which no test that fails has to wait."""
    answer: Future[None] = Future()

    def call() -> None:
        try:
            answer.set_result(function(*given))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return answer
