"""`Freezer`: keeps a shard as it is for a moment, so that all shards of a bank have one instant.

A snapshot of several shards is of the moment when all of them were frozen: they are frozen one
after another, and then take their snapshots, with which changes begin again. Lookups go on. Whoever
asked for it may be gone, so nothing is frozen for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from carls_jax.bank.shard import HeldState
from carls_jax.errors import BankOverloadedError

# Many times what a few messages take, and short enough for those who write meanwhile.
HOLD_S = 2.0


@dataclass(frozen=True)
class _Instant:
    """Is a shard that is frozen; `held` keeps it so, and lets nobody else take a snapshot."""

    uuid: str
    state: HeldState
    held: ExitStack
    timer: threading.Timer


class Freezer:
    """Freezes one shard, for one snapshot at a time. May be used from several threads.

    Args:
      lock: Held while a snapshot is taken, so also while the shard is frozen.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._guard = threading.Lock()
        self._instant: _Instant | None = None

    def freeze(self, uuid: str, hold: Callable[[], AbstractContextManager[HeldState]]) -> None:
        """Lets no change begin until `take` or `thaw`, or for `HOLD_S` seconds.

        Raises:
          BankOverloadedError: Another snapshot is being taken.
        """
        with self._guard:
            if self._instant and self._instant.uuid == uuid:
                return
        if not self._lock.acquire(blocking=False):
            raise BankOverloadedError("another snapshot is being taken; try again when it is")
        with ExitStack() as held:
            held.callback(self._lock.release)
            state = held.enter_context(hold())
            timer = threading.Timer(HOLD_S, self.thaw, [uuid])
            timer.daemon = True
            with self._guard:
                self._instant = _Instant(uuid, state, held.pop_all(), timer)
                timer.start()

    def take(self, uuid: str) -> tuple[HeldState, ExitStack] | None:
        """Gives what was frozen for a snapshot, and what keeps it so; None: nothing is."""
        with self._guard:
            instant = self._instant
            if instant is None or instant.uuid != uuid:
                return None
            self._instant = None
        instant.timer.cancel()
        return instant.state, instant.held

    def thaw(self, uuid: str) -> None:
        """Lets changes begin again without a snapshot."""
        if taken := self.take(uuid):
            taken[1].close()
