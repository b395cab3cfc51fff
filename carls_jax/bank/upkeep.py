"""`Upkeep`: does in the background what is due at a time, though nobody comes to ask for it.

Gathered gradients are applied that nobody reads, and rows go that nobody writes.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref

from carls_jax.bank.shard import Shard
from carls_jax.errors import CarlsError

# Of the shortest wait that a field or table allows, which is looked so many times.
_LOOKS = 4
_LONGEST_PAUSE_S = 3600.0
_SHORTEST_PAUSE_S = 0.001

_logger = logging.getLogger(__name__)


class Upkeep:
    """Has a shard do what is overdue, while it has lazy fields or rows that expire, in a thread.

    May be used from several threads at once. A shard that nobody uses any more ends it as well.

    Args:
      shard: Whose tables.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = weakref.ref(shard)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()
        self._is_stopped = False

    def wake(self) -> None:
        """Tells that the shard's tables are others now."""
        shard = self._shard()
        with self._lock:
            if self._is_stopped or shard is None or shard.shortest_wait_s is None:
                return
            self._woken.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after what is under way."""
        with self._lock:
            self._is_stopped = True
            self._woken.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        pause_s: float | None = 0.0
        while pause_s is not None:
            self._woken.wait(pause_s)
            self._woken.clear()
            pause_s = self._look()

    def _look(self) -> float | None:
        """Does what is overdue, and returns when to come again; None: never."""
        shard = self._shard()
        if shard is None or self._is_stopped:
            return None
        for do_overdue in (shard.flush_overdue, shard.evict_expired):
            try:
                do_overdue(time.time())
            except CarlsError:  # a snapshot was restored meanwhile: its tables may be others
                _logger.debug("what was due was refused", exc_info=True)
        wait_s = shard.shortest_wait_s
        if wait_s is None:
            return _LONGEST_PAUSE_S
        return min(max(wait_s / _LOOKS, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
