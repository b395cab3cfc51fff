"""`Writes`: sends the outputs of steps to the bank, in the background."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Bank
from carls_jax.bank.changes import NO_KEYS, NO_STEP
from carls_jax.errors import InvalidInputError, ShapeError
from carls_jax.keys import PADDING
from carls_jax.training.held import Found, Keys
from carls_jax.training.placing import OwnRows, own_rows
from carls_jax.training.plan import Push, Update, name_of

# Sendings of which it is known what each wrote; before them, that of several together.
_MAX_RECENT = 128


@dataclass(frozen=True)
class _Sent:
    """Says which rows a step wrote: by table and field the keys, ascending."""

    number: int
    step: int
    began_at: float
    keys: Mapping[tuple[str, str], Keys]


class Writes:
    """Sends what steps give out, in the order of the steps and a bounded number of them at a time.

    Sendings are numbered from 1. All methods are called from one thread, but `acknowledged` may be
    read from any.

    Args:
      bank: Where to.
      executor: Where to send from; it must run its tasks in order.
      max_pending: Sendings that may be under way before `send` waits for the oldest.
      is_settled: Tells whether all has been acknowledged that the bank object has taken; one that
        outlasts its bank takes more.

    Attributes:
      acknowledged: The bank has acknowledged all sendings up to this number, but for those that
        failed or were dropped.
      acknowledged_step: The step of the last of them; -1: there is none.
    """

    def __init__(
        self,
        bank: Bank,
        executor: Executor,
        *,
        max_pending: int,
        is_settled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._bank = bank
        self._executor = executor
        self._max_pending = max_pending
        self._is_settled = is_settled
        self._pending: deque[Future[None]] = deque()
        self._num_sent = 0
        self._recent: deque[_Sent] = deque()
        self.acknowledged = 0
        self.acknowledged_step = NO_STEP
        self._took_s: deque[float] = deque()  # of sendings that no line has told yet

    @property
    def num_pending(self) -> int:
        """Sendings that are under way."""
        return sum(not future.done() for future in self._pending)

    def take_line(self, step: int) -> dict[str, float]:
        """Returns how far writes lag, and begins to measure anew.

        Returns:
          "pending_writes", the sendings under way; "write_lag_steps", how many steps before `step`
          the first of them was sent, 0 if there is none; and "write_s", the mean of the seconds
          from `send` until the bank had acknowledged, of the sendings since the last call.
        """
        pending = self.num_pending
        oldest = [sent.step for sent in self._recent if sent.number > self.acknowledged]
        lag = step - oldest[0] if pending and oldest else 0
        line = {"pending_writes": float(pending), "write_lag_steps": float(lag)}
        took_s = [self._took_s.popleft() for _ in range(len(self._took_s))]
        return {**line, "write_s": sum(took_s) / len(took_s)} if took_s else line

    def send(
        self,
        step: int,
        outputs: Mapping[str, Any],
        writes: Mapping[str, Update],
        targets: Mapping[str, Keys],
        *,
        sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        """Begins to send a step's outputs; raises the error of an earlier step, if there was one.

        Args:
          step: The step.
          outputs: By write, `[*target.shape, *field.shape]`, or a global array of which this
            process has that part.
          writes: What is done with each output.
          targets: By write, the keys that the output goes to.
          sharding: Of the batch; where it spans several processes each row is written by one.

        Raises:
          InvalidInputError: An output is not among the writes; nothing is sent.
        """
        unknown = sorted(outputs.keys() - writes.keys())
        if unknown:
            raise InvalidInputError(
                f"outputs {', '.join(unknown)} are not among the writes of look_ahead: "
                f"{', '.join(writes) or 'none'}"
            )
        parts = {name: own_rows(sharding, len(targets[name])) for name in outputs}
        own = {
            name: targets[name][part.places] if part else targets[name]
            for name, part in parts.items()
        }
        self._num_sent += 1
        sent = _Sent(self._num_sent, step, time.monotonic(), _written(outputs, writes, targets))
        self._recent.append(sent)
        self._shorten_recent()
        self._pending.append(self._executor.submit(self._send, sent, outputs, writes, own, parts))
        while len(self._pending) > self._max_pending or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def flush(self) -> None:
        """Waits until the bank has acknowledged everything; raises the first error of any."""
        while self._pending:
            self._pending.popleft().result()

    def behind(self, table: str, field: str, found: Found, *, now: int) -> NDArray[np.int32]:
        """Tells which rows may lack what was sent to a field after they were looked up.

        Returns:
          int32 `[*places.shape, (S)]`: how many steps before `now` the first such write was sent;
          0: none was. In a per-source table the rows of other authors are never written.
        """
        rows = found.rows
        behind = np.zeros(rows.keys.size, np.int32)
        for sent in reversed(self._recent):  # the first of them stays
            if not (is_later := found.as_of < sent.number).any():
                break
            keys = sent.keys.get((table, field), NO_KEYS)
            if not keys.size:
                continue
            place = np.minimum(np.searchsorted(keys, rows.keys), keys.size - 1)
            is_later &= (keys[place] == rows.keys) & (rows.keys != PADDING)
            behind[is_later] = now - sent.step
        if found.as_of_step is not None:
            unseen = now - 1 - found.as_of_step  # from the first step that may be lacking
            behind = np.maximum(behind, unseen.clip(0, now)).astype(np.int32)
        if rows.found.ndim == 2:
            is_own = np.array([name == self._bank.source for name in rows.sources], np.int32)
            behind = behind[:, None] * is_own[None, :]
        return behind[found.places]

    def forget(self, number: int) -> None:
        """Lets go of which rows were written by the sendings up to a number."""
        while self._recent and self._recent[0].number <= number:
            self._recent.popleft()

    def _shorten_recent(self) -> None:
        """Joins what pairs of sendings wrote, as if all were from the older; so it stays bounded.

        While the bank is away none is acknowledged, and so none is forgotten.
        """
        if len(self._recent) <= _MAX_RECENT:
            return
        newest = [self._recent.pop() for _ in range(_MAX_RECENT // 2)]
        older, pairs = list(self._recent), itertools.zip_longest
        self._recent = deque(_joined(*pair) for pair in pairs(older[::2], older[1::2]))
        self._recent.extend(reversed(newest))

    def _send(
        self,
        sent: _Sent,
        outputs: Mapping[str, Any],
        writes: Mapping[str, Update],
        targets: Mapping[str, Keys],
        parts: Mapping[str, OwnRows | None],
    ) -> None:
        for name, output in outputs.items():
            write, keys, part = writes[name], targets[name], parts[name]
            table = self._bank.table(name_of(write.table))
            shape = table.spec.field(write.field).shape
            rows = _rows(name, part.of(output) if part else np.asarray(output), keys, shape)
            if not keys.size:  # other processes write them all
                continue
            values = {write.field: rows}
            if isinstance(write, Push):
                table.push(keys.ravel(), values, step=sent.step, combine=write.combine)
            else:
                table.update(keys.ravel(), values, step=sent.step)
        if self._is_settled():
            self.acknowledged, self.acknowledged_step = sent.number, sent.step
        self._took_s.append(time.monotonic() - sent.began_at)


def _joined(older: _Sent, newer: _Sent | None) -> _Sent:
    """Returns both as one, which is as old as the older and as long to be acknowledged as both."""
    if newer is None:
        return older
    keys = {
        place: np.union1d(older.keys.get(place, NO_KEYS), newer.keys.get(place, NO_KEYS))
        for place in (*older.keys, *newer.keys)
    }
    return replace(older, number=newer.number, keys=keys)


def _written(
    outputs: Mapping[str, Any], writes: Mapping[str, Update], targets: Mapping[str, Keys]
) -> dict[tuple[str, str], Keys]:
    """Returns, by table and field, the keys that outputs go to, ascending.

    Those which another process writes of the rows that this one has too are among them.
    """
    keys: dict[tuple[str, str], list[Keys]] = {}
    for name in outputs:
        place = (name_of(writes[name].table), writes[name].field)
        keys.setdefault(place, []).append(targets[name].ravel())
    return {place: np.sort(np.concatenate(parts)) for place, parts in keys.items()}


def _rows(name: str, array: NDArray[Any], keys: Keys, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns an output as `[n, *shape]`."""
    if array.shape != keys.shape + shape:
        raise ShapeError(
            f"output {name!r} has shape {list(array.shape)}, expected {[*keys.shape, *shape]}"
        )
    return array.reshape(keys.size, *shape)
