"""`MakerRunner`: refreshes what one worker of a maker writes, from one checkpoint at a time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carls_jax.bank import Bank
from carls_jax.bank.changes import DEFAULT_CLOCK
from carls_jax.checkpoints import HostCheckpoint
from carls_jax.errors import ConfigError
from carls_jax.makers.blocks import blocks_of, check_tables
from carls_jax.makers.context import Context, Predict, Predictor, random_key
from carls_jax.makers.maker import Maker
from carls_jax.makers.state import StateStore
from carls_jax.metrics import Flow, MetricsWriter


@dataclass(frozen=True)
class Report:
    """Tells what a refresh did.

    Attributes:
      step: The checkpoint it used.
      rows_written: Rows sent to the bank.
      values_kept: Field values among them that the bank kept as they were, since they were newer.
      seconds: How long it took.
      lag_steps: How far the trainer was ahead of the checkpoint at the end.
      is_complete: False if it was stopped before its last block.
    """

    step: int
    rows_written: int
    values_kept: int
    seconds: float
    lag_steps: int
    is_complete: bool


class MakerRunner:
    """Runs one worker of a maker against a bank. Not thread-safe.

    Attributes:
      maker: The maker.
      bank: Where it reads and writes.
      source: The name under which its rows are written, `<maker>/<worker>`.

    Args:
      maker: The maker.
      bank: Where it reads and writes.
      data: What the experiment loaded; `ctx.data`.
      predict: The experiment's `predict(variables, inputs)`, which can be jitted; `ctx.predict`.
      worker: Which worker this is, from 0.
      num_workers: How many workers share the maker's keys.
      seed: Seed of `ctx.key`.
      state_directory: Where `ctx.state` is kept; each worker has its own. None: in memory only.
      metrics: Where each refresh leaves a line.

    Raises:
      ConfigError: `worker` is out of range, or a maker that refreshes whole tables has several.
    """

    def __init__(
        self,
        maker: Maker,
        bank: Bank,
        *,
        data: Any = None,
        predict: Predict | None = None,
        worker: int = 0,
        num_workers: int = 1,
        seed: int = 0,
        state_directory: Path | None = None,
        metrics: MetricsWriter | None = None,
    ) -> None:
        if not 0 <= worker < num_workers:
            raise ConfigError(f"worker={worker}: allowed is 0 to num_workers-1={num_workers - 1}")
        if maker.is_refresh and num_workers > 1:
            raise ConfigError(
                f"maker {maker.name!r} refreshes whole tables, so num_workers={num_workers} would "
                "do the same work several times: write make(ctx, keys) to split it"
            )
        self.maker = maker
        self.bank = bank
        self._worker = worker
        self._num_workers = num_workers
        self.source = f"{maker.name}/{worker}"
        self._data = data
        self._predictor = Predictor(predict)
        self._seed = seed
        self._states = StateStore(state_directory)
        self._cached: dict[Any, Any] = {}
        self._metrics = metrics

    def refresh(self, checkpoint: HostCheckpoint, *, stop: threading.Event | None = None) -> Report:
        """Makes this worker's rows from a checkpoint and writes them, block by block.

        A block that cannot be written changes nothing; those before it stay. The same refresh may
        be done again: it finds the state, and makes the rows, that it did before; a maker that
        blends brings them nearer to these once more.

        Args:
          checkpoint: What to make them from.
          stop: Ends the refresh before its next block when it is set.

        Raises:
          TableNotFoundError, FieldNotFoundError: The bank lacks what the maker reads or writes.
          InvalidInputError: The function gave rows that it does not declare, or of wrong shape.
          Exception: Whatever the function raises.
        """
        began = time.monotonic()
        context = self.context(checkpoint)
        check_tables(self.maker, context)
        rows_written, values_kept, is_complete = 0, 0, True
        for block in blocks_of(self.maker, context):
            if stop is not None and stop.is_set():
                is_complete = False
                break
            applied = self.bank.table(block.table).update(
                block.keys,
                block.values,
                step=checkpoint.step,
                source=self.source,
                if_newer=True,
                blend=self.maker.blend,
            )
            rows_written += np.size(block.keys)
            values_kept += applied.num_kept
        if is_complete:
            self._states.save(checkpoint.step, context.state)
        seconds = time.monotonic() - began
        lag_steps = max(0, self.bank.stats().clocks.get(DEFAULT_CLOCK, 0) - checkpoint.step)
        report = Report(checkpoint.step, rows_written, values_kept, seconds, lag_steps, is_complete)
        self._note(checkpoint, report, context)
        return report

    def context(self, checkpoint: HostCheckpoint) -> Context:
        """Returns what the maker's function is given; also for trying the function by hand.

        Its state is what the last refresh from an earlier checkpoint left.
        """
        return Context(
            step=checkpoint.step,
            variables=checkpoint.variables,
            data=self._data,
            bank=self.bank,
            key=random_key(self._seed, self.maker.name, self._worker, checkpoint.step),
            state=self._states.before(checkpoint.step),
            worker=self._worker,
            num_workers=self._num_workers,
            _predictor=self._predictor,
            _cached=self._cached,
        )

    def _note(self, checkpoint: HostCheckpoint, report: Report, context: Context) -> None:
        self.bank.ledger.add(
            Flow(self.source, "", "", "checkpoint"), num_bytes=checkpoint.bytes_read, num_rows=0
        )
        if self._metrics is not None:
            own = {
                "lag_steps": report.lag_steps,
                "refresh_seconds": report.seconds,
                "rows_written": report.rows_written,
                "values_kept": report.values_kept,
                "rows_per_second": report.rows_written / max(report.seconds, 1e-9),
                "checkpoint_bytes": checkpoint.bytes_read,
            }
            self._metrics.write(checkpoint.step, {**context.metrics, **own})
