"""The loop around a maker: it waits for checkpoints, refreshes, and outlives its neighbours."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from carls_jax.checkpoints import CheckpointWatcher, HostCheckpoint
from carls_jax.errors import (
    BankTimeoutError,
    BankUnavailableError,
    CheckpointNotFoundError,
    ConfigError,
)
from carls_jax.makers import progress
from carls_jax.makers.runner import MakerRunner
from carls_jax.makers.schedule import Schedule

_log = logging.getLogger(__name__)

_PAUSE_S = 0.5  # between two tries to reach what is away


class MakerLoop:
    """Refreshes one worker's rows from checkpoint after checkpoint, until it is told to stop.

    It waits for a checkpoint directory that is not there yet, goes on to the newer checkpoint when
    one vanishes, waits for a bank that is away, and refreshes anew when the bank was put back to an
    earlier state. What has been done is asked of the bank and remembered nowhere else, so a loop
    that is started again goes on where the last one was. What the maker's own function raises ends
    it.

    Args:
      runner: The worker; the loop is its only user.
      watcher: Where the checkpoints are.
      schedule: When to refresh.
      earlier: In lockstep, the number of workers of each maker that must be done before this one.
      stop: Ends the loop, at the latest before the next block is written. Only a call that a bank
        does not answer lasts longer, until its deadline.
    """

    def __init__(
        self,
        runner: MakerRunner,
        watcher: CheckpointWatcher,
        *,
        schedule: Schedule,
        earlier: Mapping[str, int] | None = None,
        stop: threading.Event,
    ) -> None:
        self._runner = runner
        self._watcher = watcher
        self._schedule = schedule
        self._earlier = (earlier or {}) if schedule.is_lockstep else {}
        self._stop = stop

    def run(self) -> None:
        """Runs until `stop` is set.

        Raises:
          ConfigError: The delay of a lockstep schedule reaches back to a deleted checkpoint.
          Exception: Whatever the maker's function raises.
        """
        is_away = False
        while not self._stop.is_set():
            try:
                done = progress.done_step(self._runner.bank, self._runner.source)
                if is_away:
                    _log.warning("the bank is back")
                is_away = False
                self._turn(done)
            except (BankUnavailableError, BankTimeoutError) as error:
                if not is_away:
                    _log.warning("the bank is away, waiting for it: %s", error)
                is_away = True
                self._stop.wait(_PAUSE_S)
            except CheckpointNotFoundError as error:
                _log.info("going on to a newer checkpoint: %s", error)
                self._stop.wait(self._watcher.poll_s)

    def _turn(self, done: int) -> None:
        """Deals with the newest checkpoint above `done`, or waits a while for one."""
        step = self._watcher.wait_for(done, timeout_s=progress.WAIT_S, stop=self._stop)
        if step is None or self._must_wait_for_earlier(step):
            return
        used = self._used_checkpoint(step)
        checkpoint = None if used is None else _load(self._watcher, self._schedule, step, used)
        _deal_with(self._runner, checkpoint, step=step, stop=self._stop)

    def _must_wait_for_earlier(self, step: int) -> bool:
        late = progress.wait(
            self._runner.bank,
            self._earlier,
            step=step,
            timeout_s=progress.WAIT_S,
            stop=self._stop,
        )
        return bool(late)

    def _used_checkpoint(self, step: int) -> int | None:
        if self._schedule.is_lockstep or self._schedule.delay != "once":
            return self._schedule.used_checkpoint(step)
        # The trainer did not wait, so checkpoint 0 may be gone: the oldest has to do.
        has_run = progress.has_ever_told(self._runner.bank, self._runner.source)
        return None if has_run else min((*self._watcher.steps(), step))


def run_inline(
    runners: Sequence[MakerRunner],
    watcher: CheckpointWatcher,
    *,
    schedule: Schedule,
    step: int,
) -> None:
    """Lets makers deal with checkpoint `step` in this thread, one after another.

    Each writes what it would write in a process of its own, in lockstep. The checkpoint is read
    once for all of them.

    Raises:
      ConfigError: The delay of the schedule reaches back to a deleted checkpoint.
      CheckpointNotFoundError: There is no checkpoint `step`.
    """
    used = schedule.used_checkpoint(step)
    checkpoint = None if used is None else _load(watcher, schedule, step, used)
    for runner in runners:
        _deal_with(runner, checkpoint, step=step)


def _load(watcher: CheckpointWatcher, schedule: Schedule, step: int, used: int) -> HostCheckpoint:
    try:
        return watcher.load(used)
    except CheckpointNotFoundError as error:
        if not schedule.is_lockstep or used == step:
            raise
        # It does not come back, and the trainer waits for what is to be made of it.
        raise ConfigError(
            f"delay={schedule.delay}: at step {step} makers need checkpoint {used}, which was "
            f"deleted: keep more than {schedule.delay} checkpoints, or lower the delay ({error})"
        ) from error


def _deal_with(
    runner: MakerRunner,
    checkpoint: HostCheckpoint | None,
    *,
    step: int,
    stop: threading.Event | None = None,
) -> None:
    """Refreshes from a checkpoint, if there is one to use at `step`, and tells the bank so."""
    # Of before the refresh: if the bank is put back meanwhile, rows are lost and this one does not
    # count as done.
    incarnation = progress.incarnation_of(runner.bank)
    numbers = None
    if checkpoint is not None:
        report = runner.refresh(checkpoint, stop=stop)
        if not report.is_complete:
            return
        numbers = {
            "rows_written": report.rows_written,
            "lag_steps": report.lag_steps,
            "seconds": report.seconds,
        }
    progress.tell(
        runner.bank, runner.source, done_step=step, incarnation=incarnation, numbers=numbers
    )
