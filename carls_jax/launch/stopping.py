"""How a process ends when it is told to: what is under way ends first, and it never takes long."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from carls_jax.bank import LocalBank
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.errors import CarlsError

# From the signal to the end of a bank server's process, whatever happens: a launcher kills it then.
STOP_S = 9.5
# Of these, for the calls under way.
CALLS_S = 3.0
# And what is left for Python's own end.
_EXIT_S = 1.0
_LOOK_EVERY_S = 0.5

_logger = logging.getLogger(__name__)


class Stop(threading.Event):
    """Is set when the process was told to end.

    Attributes:
      at: When that was, on the monotonic clock in seconds; infinite before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at = math.inf

    def set(self) -> None:
        self.at = min(self.at, time.monotonic())
        super().set()

    def wait(self, timeout: float | None = None) -> bool:
        # A signal that comes just before the main thread sleeps does not wake it.
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left_s := deadline - time.monotonic()) > 0:
            super().wait(min(left_s, _LOOK_EVERY_S))
        return self.is_set()


@contextmanager
def stopped_by_signals(*, within_s: float | None = None) -> Iterator[Stop]:
    """Gives an event that SIGTERM and SIGINT set, in place of ending the process.

    The same signal once more ends the process at once.

    Args:
      within_s: Seconds after the first signal when the system ends the process, even if it is
        stuck, by SIGALRM. None: never.
    """
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if within_s is not None and not stop.is_set():
            signal.setitimer(signal.ITIMER_REAL, within_s)
        stop.set()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        if not (stop.is_set() and within_s is not None):  # else nothing goes on after this
            for number, handler in old.items():
                signal.signal(number, handler)


def close_in_time(bank: LocalBank, root: Path, stop: Stop, *, has_journal: bool) -> None:
    """Takes a last snapshot if anything changed since the one before, and closes the bank.

    With a journal nothing hangs on the snapshot, which only spares the next start the replay. When
    there is no time for it, or for what is under way, the process ends here: with 0 if a journal
    holds all changes, else with 1.

    Args:
      bank: It answers nobody any more.
      root: Its directory.
      stop: Says since when the process is to end; if it is not, the bank is just closed.
      has_journal: Whether all changes are kept without the snapshot.

    Raises:
      CarlsError: The bank could not be closed, or the snapshot not be taken where there is no
        journal: the last changes are lost.
    """
    failures: list[Exception] = []

    def close() -> None:
        try:
            with bank:
                if stop.is_set():
                    _take_last(bank, root, has_journal=has_journal)
        except Exception as error:
            failures.append(error)

    closing = threading.Thread(target=close, name="bank-closing", daemon=True)
    closing.start()
    left_s = stop.at + STOP_S - _EXIT_S - time.monotonic()
    closing.join(min(max(left_s, 0.0), threading.TIMEOUT_MAX))
    if closing.is_alive():
        _give_up(has_journal=has_journal)
    if failures:
        raise failures[0]


def _take_last(bank: LocalBank, root: Path, *, has_journal: bool) -> None:
    identity = bank.identity
    store = SnapshotStore(root, bank_id=identity.bank_id, shard_index=identity.shard_index)
    try:
        last = store.last()
        if bank.stats().sequence > (store.read(last).sequence if last else 0):
            bank.take_automatic()
    except (CarlsError, OSError) as error:
        if not has_journal:
            raise
        _logger.warning("no last snapshot, the journal holds the changes: %s", error)


def _give_up(*, has_journal: bool) -> None:
    """Ends the process in the middle of what does not end; a start cleans up after it."""
    if has_journal:
        _logger.warning("no time is left to take or end a snapshot; the journal holds all changes")
    else:
        _logger.error(
            "no time is left to take or end a snapshot: the changes since the last one "
            "are lost; a journal would hold them (--journal)"
        )
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0 if has_journal else 1)
