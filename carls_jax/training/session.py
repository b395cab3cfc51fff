"""`Session`: a training loop's connection to bank, checkpoints and makers."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from carls_jax import hooks
from carls_jax.bank import Bank
from carls_jax.errors import InvalidInputError
from carls_jax.makers import MakerRunner
from carls_jax.metrics import MetricsWriter
from carls_jax.training import processes, saving
from carls_jax.training.away import outlast
from carls_jax.training.behind import behind_of
from carls_jax.training.checkpointing import RunCheckpointer
from carls_jax.training.fetching import Fetcher
from carls_jax.training.knowledge import Known
from carls_jax.training.look_ahead import Drawn, InlineExecutor, LookAhead, ResumableBatches
from carls_jax.training.meter import Meter
from carls_jax.training.placing import is_copied, place
from carls_jax.training.plan import Batch, Lookup, Update, check_plan
from carls_jax.training.session_config import SessionConfig
from carls_jax.training.staleness import Staleness
from carls_jax.training.writes import Writes

_log = logging.getLogger(__name__)


class Session:
    """Connects one training loop to the bank, its checkpoints and its makers.

    Steps are numbered from 1; checkpoint 0 is the state before the first. A session has one loop,
    and all methods are called from its thread. Made by `carls_jax.session`, or by the launcher.

    Attributes:
      bank: Where the knowledge is; its lookups and writes, and those of hooks that are given its
        tables, do as `config.when_away` says while it is away. The bank itself stays open.
      workdir: Directory of the run; checkpoints go to `workdir/checkpoints`.
      config: How training loop and makers work together.
      metrics: Where metrics go; also for numbers of one's own, such as an evaluation's.

    Args:
      runners: Makers that run in this process, one after another, at each checkpoint.
      remote_makers: Number of workers of each maker that runs in other processes; in lockstep the
        session waits for them.
    """

    def __init__(
        self,
        bank: Bank,
        workdir: Path,
        config: SessionConfig,
        *,
        runners: Sequence[MakerRunner] = (),
        remote_makers: Mapping[str, int] | None = None,
        metrics: MetricsWriter,
    ) -> None:
        self._outlasting = outlast(bank, config.when_away)
        self._outlasting.as_of = lambda: self._writes.acknowledged_step
        self._banks = (bank, self._outlasting)  # hooks may use tables of either
        self.bank: Bank = self._outlasting
        self.workdir = workdir
        self.config = config
        self.metrics = metrics
        self._checkpointer = RunCheckpointer(
            self.bank, workdir, config, runners=runners, remote_makers=remote_makers or {}
        )
        self._reader = self._executor("carls-look-ahead")
        self._writer = self._executor("carls-writes")
        self._writes = Writes(
            self.bank,
            self._writer,
            max_pending=config.max_pending_writes,
            is_settled=lambda: self._outlasting.is_settled,
        )
        self._num_skipped = 0  # checkpoints, since the bank was away
        self._plan: Mapping[str, Lookup] = {}
        self._write_plan: Mapping[str, Update] = {}
        self._sharding: jax.sharding.Sharding | None = None
        self._meter = Meter()
        self._begun_at: int | None = None
        self._ahead: LookAhead | None = None
        self._present: Drawn | None = None
        self._position: Any = None  # of the batches, after the present step's
        self._last_step: int | None = None

    def _executor(self, name: str) -> Executor:
        if self.config.schedule.is_lockstep:
            return InlineExecutor()
        return ThreadPoolExecutor(1, thread_name_prefix=name)

    @property
    def begun_at(self) -> int:
        """The step that this run started from; 0 for a new one."""
        if self._begun_at is None:
            raise InvalidInputError("call state = session.begin(state) before the training loop")
        return self._begun_at

    @property
    def staleness(self) -> Staleness:
        """How old all was that the steps so far read."""
        return self._meter.staleness

    @property
    def absences(self) -> dict[str, float]:
        """What it has cost so far that the bank was away, as numbers by name; {} if it never was.

        "times" and "seconds" that the loop went on without the bank, or waited for it; and with the
        policy "last_seen": "rows_last_seen", the rows, one for each lookup of one, that were
        answered as they were seen last, and "rows_never_seen" that were not; "changes_kept",
        "changes_dropped" (with "rows_dropped") and "changes_refused" of the loop's updates and
        pushes; and "checkpoints_skipped".
        """
        totals = self._outlasting.totals()
        if not totals.get("times"):
            return {}
        return {**totals, "checkpoints_skipped": self._num_skipped}

    def begin(self, state: Any) -> Any:
        """Resumes the run in the work directory, or starts it with `state`.

        A new run saves `state` as checkpoint 0. A resumed one puts the bank back to the snapshot
        that was taken with its newest checkpoint; tables of today that it lacks stay, empty.

        Args:
          state: A pytree with the entry "model", which is what makers get.

        Returns:
          The state to train from: the restored one, or `state` itself.

        Raises:
          InvalidInputError: `begin` was called before, or `state` is of another form than the one
            that was saved.
          SnapshotNotFoundError: The bank does not have the checkpoint's snapshot.
        """
        if self._begun_at is not None:
            raise InvalidInputError("begin() was called before: a session has one training loop")
        resumed = self._checkpointer.resume(like=state)
        if resumed is None:
            self._save(0, state)
            self._begun_at = 0
            return state
        self._begun_at, self._position = resumed.step, resumed.position
        return resumed.state

    def look_ahead(
        self,
        batches: Iterable[Batch],
        plan: Mapping[str, Lookup],
        *,
        num_steps: int | None = None,
        depth: int = 2,
        writes: Mapping[str, Update] | None = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> Iterator[tuple[int, Batch, dict[str, Known]]]:
        """Returns an iterator of (step, batch, knowledge), which fetches ahead of the loop.

        Args:
          batches: Any iterable of dicts; a resumed run goes on where the checkpoint was taken. As
            several are held at once, they must not share their arrays.
          plan: The lookups of each batch.
          num_steps: Last step of the run. None: until the batches end.
          depth: How many steps are held ready, the present one included.
          writes: What `write` does with the outputs of a step, by output name.
          sharding: Where the knowledge is put. None: the default device. Where it spans several
            processes joined by `jax.distributed`, each gives its own part of the batch, looks up
            the knowledge of that part, and the step gets global arrays. All processes make the same
            calls; their batches end together.

        Raises:
          TableNotFoundError, FieldNotFoundError: The plan names what is not there.
          InvalidInputError: `begin` was not called, or this was called before; or several processes
            would hold the same part of the batch, outside of lockstep.
        """
        if self._ahead is not None:
            raise InvalidInputError("look_ahead() was called before: a session has one loop")
        first_step = self.begun_at + 1
        if is_copied(sharding) and not self.config.schedule.is_lockstep:
            raise InvalidInputError(
                f"sharding={sharding}: several processes would each look up the same part of the "
                "batch, and might find different rows; shard the batch among all processes, or run "
                "in lockstep"
            )
        self._plan, self._write_plan = dict(plan), dict(writes or {})
        self._sharding, self._last_step = sharding, num_steps
        check_plan(self._plan, self._write_plan, self.bank)
        fetcher = Fetcher(
            self._plan,
            self._write_plan,
            self.bank,
            # In lockstep a step sees what is in the bank when its own rows are looked up.
            depth=1 if self.config.schedule.is_lockstep else depth,
            acknowledged=lambda: self._writes.acknowledged,
            sharding=sharding,
        )
        self._ahead = LookAhead(
            ResumableBatches(batches, self._position),
            fetcher,
            executor=self._reader,
            depth=depth,
            steps=itertools.count(first_step)
            if num_steps is None
            else range(first_step, num_steps + 1),
        )
        return self._steps(self._ahead)

    def _steps(self, ahead: LookAhead) -> Iterator[tuple[int, Batch, dict[str, Known]]]:
        asked_at = time.monotonic()
        for drawn in ahead:
            waited_s = time.monotonic() - asked_at
            self._present, self._position = drawn, drawn.position
            behind = behind_of(
                drawn.fetched, self._plan, self._write_plan, self._writes, now=drawn.step
            )
            self._meter.add(drawn.fetched, behind, waited_s=waited_s)
            known = {
                name: replace(known, behind=place(behind[name], self._sharding))
                for name, known in drawn.fetched.known.items()
            }
            yield drawn.step, drawn.batch, known
            asked_at = time.monotonic()

    def _at(self, step: int) -> Drawn:
        """Returns what was drawn for the present step, which must be `step`."""
        if self._present is None or self._present.step != step:
            present = "none yet" if self._present is None else self._present.step
            raise InvalidInputError(
                f"step={step}: give the step that look_ahead yielded last, which is {present}"
            )
        return self._present

    def write(self, step: int, outputs: Mapping[str, Any]) -> None:
        """Sends outputs of the present step to the bank, as the `writes` of `look_ahead` say.

        It returns at once and the transfer goes on in the background (in lockstep it returns when
        the bank has acknowledged). An error of a background write is raised by a later call.

        Args:
          step: The present step.
          outputs: Arrays by output name, `[*keys.shape, *field.shape]` each. Where the sharding of
            `look_ahead` spans several processes: global arrays, sharded along the batch or equal
            everywhere, of which each process writes its own rows.

        Raises:
          InvalidInputError: `step` is another one, or an output is not among the writes; nothing
            is sent.
        """
        targets = self._at(step).fetched.targets
        self._outlasting.check()

        def send() -> None:
            self._writes.send(step, outputs, self._write_plan, targets, sharding=self._sharding)

        if self.config.schedule.is_lockstep:
            processes.in_turns(send, f"write of step {step}")
        else:
            send()

    def place(self, tree: Any) -> Any:
        """Puts a pytree of arrays, such as a batch, where `look_ahead` puts the knowledge."""
        return place(tree, self._sharding)

    def flush(self) -> None:
        """Waits until the bank has acknowledged all writes; raises the first error of any.

        If the bank is away it waits for it, and raises BankUnavailableError as `when_away` says.
        """
        self._flush()

    def _flush(self, *, wait: bool = True) -> None:
        self._writes.flush()
        jax.effects_barrier()  # what hooks write inside jit
        self._outlasting.settle(wait=wait)
        for bank in self._banks:
            hooks.check(bank)

    def checkpoint(self, step: int, state: Any) -> bool:
        """Saves state and bank together if a checkpoint is due after `step`; says whether it was.

        One is due every `period_steps` and after step `num_steps`. A checkpoint names a snapshot of
        the bank. So while the bank is away this waits; with the policy "last_seen" the checkpoint
        is skipped, which is logged and counted, but for the last one, which waits.

        Raises:
          InvalidInputError: `step` is not the present step.
          BankError: In lockstep: the bank lost changes since the last checkpoint.
        """
        self._at(step)
        is_last = step == self._last_step
        if step % self.config.period_steps and not is_last:
            return False
        if is_last or self.config.when_away.policy != "last_seen":
            self._save(step, state)
            return True
        jax.block_until_ready(state)
        error = saving.save_unless_away(self._outlasting, self._flush, self._saver(step, state))
        if error is not None:
            self._num_skipped += 1
            _log.warning("no checkpoint is saved after step %d: %s", step, error)
        return error is None

    def _save(self, step: int, state: Any) -> None:
        jax.block_until_ready(state)  # then all hooks of this step have begun, and flush sees them
        saving.save(
            self._outlasting,
            self._flush,
            self._saver(step, state),
            when_away=self.config.when_away,
        )

    def _saver(self, step: int, state: Any) -> Callable[[], None]:
        """Returns what saves a checkpoint of what was flushed."""

        def save() -> None:
            self._checkpointer.save(step, state, position=self._position)
            if self._ahead:
                self._ahead.refetch()

        return save

    def log(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Writes metrics, beside the ages of what was read, if a line is due after `step`.

        One is due every `log_every_steps` and after step `num_steps`. Only then are arrays among
        the metrics fetched from the device.
        """
        if step % self.config.log_every_steps and step != self._last_step:
            return
        own = {
            **self._meter.take_line(),
            **self._writes.take_line(step),
            **self._outlasting.take_line(),
        }
        self.metrics.write(step, {**(metrics or {}), **own})

    def close(self) -> None:
        """Waits for what is under way and lets go of threads and files; the bank stays open."""
        try:
            self.flush()
        finally:
            self._outlasting.close()
            self._reader.shutdown(cancel_futures=True)
            self._writer.shutdown()
            self._checkpointer.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._outlasting.close()  # the error is not to wait for a bank that is away
        try:
            self.close()
        except Exception as further:
            if error is None:
                raise
            error.add_note(f"When the session was closed: {further!r}")
