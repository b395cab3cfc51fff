"""`Writes`: sends the outputs of steps to the bank, in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Bank
from carls_jax.errors import InvalidInputError, ShapeError
from carls_jax.training.knowledge import Keys
from carls_jax.training.plan import Push, Update, name_of


class Writes:
    """Sends what steps give out, in the order of the steps and a bounded number of them at a time.

    Args:
      bank: Where to.
      executor: Where to send from; it must run its tasks in order.
      max_pending: Steps that may be under way before `send` waits for the oldest.
    """

    def __init__(self, bank: Bank, executor: Executor, *, max_pending: int) -> None:
        self._bank = bank
        self._executor = executor
        self._max_pending = max_pending
        self._pending: deque[Future[None]] = deque()

    @property
    def num_pending(self) -> int:
        """Steps whose writes are under way."""
        return sum(not future.done() for future in self._pending)

    def send(
        self,
        step: int,
        outputs: Mapping[str, Any],
        writes: Mapping[str, Update],
        targets: Mapping[str, Keys],
    ) -> None:
        """Begins to send a step's outputs; raises the error of an earlier step, if there was one.

        Args:
          step: The step.
          outputs: By write, `[*target.shape, *field.shape]`.
          writes: What is done with each output.
          targets: By write, the keys that the output goes to.

        Raises:
          InvalidInputError: An output is not among the writes; nothing is sent.
        """
        unknown = sorted(outputs.keys() - writes.keys())
        if unknown:
            raise InvalidInputError(
                f"outputs {', '.join(unknown)} are not among the writes of look_ahead: "
                f"{', '.join(writes) or 'none'}"
            )
        self._pending.append(self._executor.submit(self._send, step, outputs, writes, targets))
        while len(self._pending) > self._max_pending or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def flush(self) -> None:
        """Waits until the bank has acknowledged everything; raises the first error of any."""
        while self._pending:
            self._pending.popleft().result()

    def _send(
        self,
        step: int,
        outputs: Mapping[str, Any],
        writes: Mapping[str, Update],
        targets: Mapping[str, Keys],
    ) -> None:
        for name, output in outputs.items():
            write, keys = writes[name], targets[name]
            table = self._bank.table(name_of(write.table))
            values = {write.field: _rows(name, output, keys, table.spec.field(write.field).shape)}
            if isinstance(write, Push):
                table.push(keys.ravel(), values, step=step, combine=write.combine)
            else:
                table.update(keys.ravel(), values, step=step)


def _rows(name: str, output: Any, keys: Keys, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns an output as `[n, *shape]`, on the host."""
    array = np.asarray(output)
    if array.shape != keys.shape + shape:
        raise ShapeError(
            f"output {name!r} has shape {list(array.shape)}, expected {[*keys.shape, *shape]}"
        )
    return array.reshape(keys.size, *shape)
