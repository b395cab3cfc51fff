"""`Meter`: what is measured of a training loop itself."""

from __future__ import annotations

import time

from carls_jax.training.knowledge import Fetched
from carls_jax.training.staleness import Staleness


class Meter:
    """Measures the steps of a training loop, from one line of metrics to the next.

    Attributes:
      staleness: How old all was that was read since the loop began.
    """

    def __init__(self) -> None:
        self.staleness = Staleness()
        self._begin_line()

    def _begin_line(self) -> None:
        self._recent = Staleness()
        self._num_steps = 0
        self._waited_s = 0.0
        self._began_at = time.monotonic()

    def add(self, fetched: Fetched, *, waited_s: float) -> None:
        """Adds a step: what was looked up for it, and how long it waited for that, in seconds."""
        for staleness in (self.staleness, self._recent):
            staleness.add(fetched.ages, num_found=fetched.num_found, num_asked=fetched.num_asked)
        self._num_steps += 1
        self._waited_s += waited_s

    def take_line(self) -> dict[str, float]:
        """Returns the measures since the last call, and begins anew."""
        seconds = max(time.monotonic() - self._began_at, 1e-9)
        line = {
            **self._recent.summary(),
            "steps_per_second": self._num_steps / seconds,
            "look_ahead_wait_s": self._waited_s,
        }
        self._begin_line()
        return line
