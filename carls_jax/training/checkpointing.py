"""`RunCheckpointer`: saves a run as a whole, and puts all of it back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from carls_jax.bank import Bank, SnapshotIdentity
from carls_jax.checkpoints import Checkpointer, CheckpointWatcher
from carls_jax.errors import (
    BankError,
    BankUnavailableError,
    CheckpointNotFoundError,
    InvalidInputError,
)
from carls_jax.makers import PROGRESS, MakerRunner, progress, run_inline, wait_until_done
from carls_jax.training import processes
from carls_jax.training.away.absence import AWAY
from carls_jax.training.session_config import SessionConfig

TRAINER = "trainer"
"""In lockstep makers wait for the trainer as for a maker before them: it tells when a checkpoint is
saved and the bank is as it was then. Without that, makers that start before a resuming trainer
would write to a bank that is about to be put back."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Holds where a run goes on: after a step, with a state, and a position in the batches."""

    step: int
    state: Any
    position: Any


class RunCheckpointer:
    """Saves state, bank and position in the batches together, and lets the makers run after it.

    In a run of several processes all of them call every method; the first takes the bank's
    snapshots and lets the makers run, and the others wait.

    Args:
      bank: Where the knowledge is.
      workdir: Directory of the run; checkpoints go to `workdir/checkpoints`.
      config: How trainer and makers work together.
      runners: Makers that run in this process.
      remote_makers: Number of workers of each maker that runs in other processes.
    """

    def __init__(
        self,
        bank: Bank,
        workdir: Path,
        config: SessionConfig,
        *,
        runners: Sequence[MakerRunner],
        remote_makers: Mapping[str, int],
    ) -> None:
        directory = workdir / "checkpoints"
        self._bank = bank
        self._schedule = config.schedule
        self._goes_on_without = config.when_away.policy == "last_seen"
        self._timeout_s = config.lockstep_timeout_s
        self._runners = runners
        self._remote_makers = remote_makers
        self._checkpointer = Checkpointer(directory, max_to_keep=config.checkpoints_kept)
        self._watcher = CheckpointWatcher(directory)
        self._pins_of = f"checkpoints in {directory.absolute()}"
        self._incarnation = ""
        if remote_makers:
            # Makers read it at any time, so a bank that is put back must not be without it.
            bank.table(PROGRESS)

    def resume(self, *, like: Any) -> Resumed | None:
        """Puts everything back to the newest checkpoint; None: there is none.

        Tables of today that the bank's snapshot lacks stay, empty.

        Args:
          like: A state of the form of the one that was saved.

        Raises:
          InvalidInputError: The run had another number of processes.
        """
        if self._checkpointer.latest_step() is None:
            self._incarnation = self._bank.identity.incarnation
            return None
        restored = self._checkpointer.restore(like=like)
        if restored.bank is None or restored.extra is None:
            raise CheckpointNotFoundError(
                f"checkpoint {restored.step} in {self._checkpointer.directory} names no bank "
                "snapshot: it was not written by a session; give another workdir"
            )
        positions = restored.extra["positions"]
        if len(positions) != jax.process_count():
            raise InvalidInputError(
                f"checkpoint {restored.step} is of a run of {len(positions)} processes, each with "
                f"its own batches, and this one has {jax.process_count()}: resume it with as many"
            )
        if processes.is_first():
            specs = self._bank.tables()
            self._bank.restore(SnapshotIdentity(**restored.bank))
            self._pin_kept()
            for spec in specs.values():
                self._bank.table(spec)
        processes.wait_for_all("the bank was put back")
        self._bank.stats()  # a call, for a bank's answers tell its incarnation
        self._incarnation = self._bank.identity.incarnation
        _log.info("resumed from step %d", restored.step)
        # The snapshot was taken before makers saw the checkpoint, so they have it before them.
        self._let_makers_run(restored.step)
        return Resumed(restored.step, restored.state, positions[jax.process_index()])

    def save(self, step: int, state: Any, *, position: Any) -> None:
        """Saves everything; all writes of the run must have been acknowledged.

        Args:
          step: The step that was made last.
          state: The state after it.
          position: Of this process's batches after it, as JSON.

        Raises:
          BankError: In lockstep: the bank lost changes since the last checkpoint.
          BankUnavailableError, BankTimeoutError: The bank is away, and nothing was saved; raised in
            all processes.
        """
        positions = processes.gathered(position)  # and so all processes have come here
        # Before the checkpoint that names it, so that none names a snapshot that is not there; and
        # so that in lockstep makers, which wait for the checkpoint, write nothing before it.
        snapshot = self._snapshot(step)
        self._check_incarnation(step)
        self._checkpointer.save(step, state, bank=snapshot, extra={"positions": positions})
        if processes.is_first():
            try:
                self._pin_kept()
            except AWAY as error:  # until the next checkpoint some are kept for nothing
                _log.warning("snapshots of deleted checkpoints stay pinned: %s", error)
        self._let_makers_run(step)

    def _snapshot(self, step: int) -> dict[str, Any] | None:
        """Returns the snapshot that the first process takes, there, when all know that it could."""
        snapshot, error = None, None
        if processes.is_first():
            try:
                snapshot = self._take(step)
            except AWAY as away:
                error = away
        if any(processes.gathered(error is not None)):
            raise error or BankUnavailableError("the first process took no snapshot: see its log")
        return snapshot

    def _take(self, step: int) -> dict[str, Any]:
        self._bank.advance(step)
        snapshot = self._bank.snapshot(f"step-{step}")
        # Before a checkpoint names it, so that none ever names one that was removed.
        self._pin_kept(snapshot.uuid)
        return asdict(snapshot)

    def _pin_kept(self, *more: str) -> None:
        """Has the bank keep the snapshots that the kept checkpoints name, and no others for them.

        Of a checkpoint whose snapshot is lost, since the bank's directory was, none is kept.
        """
        about = [self._checkpointer.about(step) for step in self._checkpointer.steps()]
        named = {one.bank["uuid"] for one in about if one.bank} | {*more}
        there = [one for one in self._bank.snapshots() if one.uuid in named]
        self._bank.pin(self._pins_of, there)

    def _check_incarnation(self, step: int) -> None:
        """Notices a bank that was restarted, and so went on from an earlier state."""
        incarnation = self._bank.identity.incarnation
        if incarnation == self._incarnation:
            return
        message = f"before step {step} the bank was put back to an earlier state"
        if self._schedule.is_lockstep:
            raise BankError(
                f"{message}: start the trainer again, which resumes from checkpoint "
                f"{self._checkpointer.latest_step()}"
            )
        _log.warning("%s; changes since then are lost", message)
        self._incarnation = incarnation

    def _let_makers_run(self, step: int) -> None:
        if processes.is_first():
            self._begin_makers(step)
        processes.wait_for_all("makers have run")

    def _begin_makers(self, step: int) -> None:
        if self._runners:
            try:
                run_inline(self._runners, self._watcher, schedule=self._schedule, step=step)
            except AWAY as error:
                if not self._goes_on_without:
                    raise
                _log.warning("makers do not run after step %d: %s", step, error)
        elif self._schedule.is_lockstep and self._remote_makers:
            incarnation = progress.incarnation_of(self._bank)
            progress.tell(self._bank, f"{TRAINER}/0", done_step=step, incarnation=incarnation)
            self._check_incarnation(step)
            wait_until_done(self._bank, self._remote_makers, step=step, timeout_s=self._timeout_s)

    def close(self) -> None:
        """Lets go of threads and files."""
        self._checkpointer.close()
