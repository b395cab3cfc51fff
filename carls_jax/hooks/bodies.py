"""What the host does when a jitted function calls it: bodies for `callbacks`, with NumPy alone.

A body may run on any thread, several at once. It calls the bank as anybody would, and no JAX: row
optimizers are NumPy too. It never raises: what fails is kept in `failures`.

n is the number of rows: of all calls that `vmap` joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.changes import NO_STEP
from carls_jax.bank.rows import Rows
from carls_jax.bank.specs import Field
from carls_jax.bank.table import Table
from carls_jax.hooks import failures
from carls_jax.hooks.host_words import Words, from_words, join_keys, num_words, to_words

HEADER_WORDS = 3  # key low, key high, step

Some = slice | NDArray[np.bool_]


@dataclass(frozen=True)
class LookupBody:
    """Reads rows: `[..., 3]` words to `[..., width]`, for each field its value, present and step.

    Attributes:
      table: Where to read.
      fields: What to read.
      create: Makes the rows that are not there. A body that may run any number of times may do so,
        since a row made twice is the same row.
      max_age_steps: Fields older than so many steps are not found. None: any age.
      clock: Clock that the step is on.
    """

    table: Table
    fields: tuple[str, ...]
    create: bool
    max_age_steps: int | None
    clock: str

    @property
    def width(self) -> int:
        """Words of one row's answer."""
        return sum(num_words(field) + 2 for field in self._described)

    @property
    def _described(self) -> list[Field]:
        return [self.table.spec.field(name) for name in self.fields]

    def __call__(self, operand: Any) -> Words:
        packed = np.asarray(operand)
        words = packed.reshape(-1, HEADER_WORDS)
        try:
            answer = self._answer(words)
        except Exception as error:
            failures.keep(
                self.table.bank, hook=f"hooks.lookup of table {self.table.name!r}", error=error
            )
            answer = np.zeros((len(words), self.width), np.uint32)
        return answer.reshape(*packed.shape[:-1], self.width)

    def _answer(self, words: Words) -> Words:
        answer = np.empty((len(words), self.width), np.uint32)
        keys = join_keys(words[:, :2])
        for step, some in _by_step(words):
            rows = self.table.lookup(
                keys[some],
                fields=self.fields,
                create=self.create,
                max_age_steps=self.max_age_steps,
                now=None if step == NO_STEP else step,
                clock=self.clock,
            )
            answer[some] = self._packed(rows)
        return answer

    def _packed(self, rows: Rows) -> Words:
        columns = []
        for name, field in zip(self.fields, self._described, strict=True):
            step = np.minimum(rows.step[name], np.iinfo(np.int32).max).astype(np.int32)
            columns += [
                to_words(rows[name], field),
                rows.present[name].astype(np.uint32)[:, None],
                step.view(np.uint32)[:, None],
            ]
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class WriteBody:
    """Updates or pushes rows: `[..., 3 + values]` words to two, whether it was done and the step.

    Attributes:
      kind: Which of the two.
      table: Where to write.
      fields: What is written, in the order of their words.
      clock: Clock that the step is on.
    """

    kind: Literal["update", "push"]
    table: Table
    fields: tuple[str, ...]
    clock: str

    width = 2

    def __call__(self, operand: Any) -> Words:
        packed = np.asarray(operand)
        words = packed.reshape(-1, packed.shape[-1])
        try:
            self._write(words)
        except Exception as error:
            failures.keep(
                self.table.bank, hook=f"hooks.{self.kind} of table {self.table.name!r}", error=error
            )
            return np.array([False, _newest_step(words)], np.int32).view(np.uint32)
        return np.array([True, _newest_step(words)], np.int32).view(np.uint32)

    def _write(self, words: Words) -> None:
        write = self.table.update if self.kind == "update" else self.table.push
        keys = join_keys(words[:, :2])
        values = self._values(words)
        for step, some in _by_step(words):
            part = {name: array[some] for name, array in values.items()}
            write(keys[some], part, step=step, clock=self.clock)

    def _values(self, words: Words) -> dict[str, NDArray[Any]]:
        values = {}
        start = HEADER_WORDS
        for name in self.fields:
            field = self.table.spec.field(name)
            stop = start + num_words(field)
            values[name] = from_words(words[:, start:stop], field)
            start = stop
        return values


def _newest_step(words: Words) -> int:
    return int(words[:, 2].view(np.int32).max(initial=NO_STEP))


def _by_step(words: Words) -> Iterator[tuple[int, Some]]:
    """Gives each step with its rows, oldest first; only `vmap` over steps brings several."""
    steps = words[:, 2].view(np.int32)
    different = np.unique(steps)
    if different.size == 1:
        yield int(different[0]), slice(None)
        return
    for step in different:
        yield int(step), steps == step
