"""`Absence`: tells once that a bank went away, and once that it is back."""

from __future__ import annotations

import logging
import threading
import time

from carls_jax.errors import BankTimeoutError, BankUnavailableError

AWAY = (BankUnavailableError, BankTimeoutError)
"""What a bank that is away raises."""

_log = logging.getLogger(__name__)


class Absence:
    """Notes when somebody is away. Several threads may notice the same absence.

    Args:
      who: Who may be away, for the log.
      meanwhile: What is done meanwhile, for the log.
    """

    def __init__(self, who: str, *, meanwhile: str) -> None:
        self._who = who
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        self._num_notes = 0
        self._began_at = 0.0
        self._ended_s = 0.0
        self.num_times = 0

    @property
    def seconds(self) -> float:
        """How long it was away, in all."""
        with self._lock:
            present_s = time.monotonic() - self._began_at if self._num_notes else 0.0
            return self._ended_s + present_s

    def begin(self, error: Exception) -> None:
        """Notes that it is away, as an error says; each note needs an `end`."""
        with self._lock:
            self._num_notes += 1
            if self._num_notes > 1:
                return
            self.num_times += 1
            self._began_at = time.monotonic()
        _log.warning("%s is away; %s: %s", self._who, self._meanwhile, error)

    def end(self, *, is_back: bool = True, told: str = "") -> None:
        """Takes a note back. With the last of them the absence is over, or nobody asks any more.

        Args:
          is_back: Whether it answers again, which is logged.
          told: What else to log.
        """
        with self._lock:
            self._num_notes -= 1
            if self._num_notes:
                return
            lasted_s = time.monotonic() - self._began_at
            self._ended_s += lasted_s
        if is_back:
            _log.warning("%s is back after %.3g s%s", self._who, lasted_s, told)
