"""`Meter`: what is measured of a training loop itself."""

from __future__ import annotations

import time

import numpy as np

from carls_jax.training.behind import Behind
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
        self._waited_s: list[float] = []
        self._fetched_s = 0.0
        self._num_asked = 0
        self._num_moved = 0
        self._began_at = time.monotonic()

    def add(
        self,
        fetched: Fetched,
        behind: Behind,
        *,
        waited_s: float,
    ) -> None:
        """Adds a step.

        Args:
          fetched: What was looked up for it.
          behind: By lookup and field, `Known.behind`.
          waited_s: How long the step waited for it, in seconds.
        """
        found = {name: one.rows.found[one.places] for name, one in fetched.found.items()}
        of_found = [
            array[found[name]] for name, fields in behind.items() for array in fields.values()
        ]
        for staleness in (self.staleness, self._recent):
            staleness.add(
                fetched.ages,
                behind=np.concatenate([np.empty(0, np.int32), *of_found]),
                num_found=fetched.num_found,
                num_asked=fetched.num_asked,
            )
        self._num_steps += 1
        self._waited_s.append(waited_s)
        self._fetched_s += fetched.took_s
        self._num_asked += fetched.num_asked
        self._num_moved += fetched.num_moved

    def take_line(self) -> dict[str, float]:
        """Returns the measures since the last call, and begins anew.

        Returns:
          What `Staleness` tells; "steps_per_second"; of the steps, "look_ahead_wait_s" and
          "look_ahead_wait_max_s", the mean and the longest of the seconds that they waited for
          their knowledge, and "fetch_s", the mean of the seconds that it took to look it up; and
          "moved_share", the rows that the bank sent of those that were asked for.
        """
        seconds = max(time.monotonic() - self._began_at, 1e-9)
        line = {**self._recent.summary(), "steps_per_second": self._num_steps / seconds}
        if self._num_steps:
            line["look_ahead_wait_s"] = sum(self._waited_s) / self._num_steps
            line["look_ahead_wait_max_s"] = max(self._waited_s)
            line["fetch_s"] = self._fetched_s / self._num_steps
        if self._num_asked:
            line["moved_share"] = self._num_moved / self._num_asked
        self._begin_line()
        return line
