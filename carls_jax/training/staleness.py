"""`Staleness`: how old the knowledge was that the training steps read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Staleness:
    """Counts ages in steps and the share of rows found, over a stretch of training."""

    def __init__(self) -> None:
        self._counts = np.zeros(1, np.int64)  # how often each age was seen
        self._num_found = 0
        self._num_asked = 0

    def add(self, ages: NDArray[np.int64], *, num_found: int, num_asked: int) -> None:
        """Adds what one step read.

        Args:
          ages: int `[n]` of the values that were found; an age below 0 (written by a maker that
            was put back to an earlier step) counts as 0.
          num_found: Rows found.
          num_asked: Rows asked for.
        """
        counts = np.bincount(np.maximum(ages, 0), minlength=self._counts.size)
        counts[: self._counts.size] += self._counts
        self._counts = counts
        self._num_found += num_found
        self._num_asked += num_asked

    def percentile(self, percent: float) -> float | None:
        """Returns the age that `percent` of the values did not exceed; None: nothing was read.

        It is the smallest such age; 0 percent gives the smallest age of all.
        """
        total = int(self._counts.sum())
        if not total:
            return None
        enough = max(percent / 100 * total, 1)
        return float(np.searchsorted(np.cumsum(self._counts), enough))

    @property
    def found_share(self) -> float | None:
        """Share of the rows asked for that were found; None: nothing was asked for."""
        return self._num_found / self._num_asked if self._num_asked else None

    def summary(self) -> dict[str, float]:
        """Returns what can be told: "age_p50", "age_p95" in steps, and "found_share"."""
        told = {
            "age_p50": self.percentile(50),
            "age_p95": self.percentile(95),
            "found_share": self.found_share,
        }
        return {name: value for name, value in told.items() if value is not None}
