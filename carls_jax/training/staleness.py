"""`Staleness`: how old the knowledge was that the training steps read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NONE = np.zeros(0, np.int32)


class Staleness:
    """Counts ages in steps and shares of rows, over a stretch of training."""

    def __init__(self) -> None:
        self._counts = np.zeros(1, np.int64)  # how often each age was seen
        self._behind = np.zeros(1, np.int64)  # how often a value was so many steps behind
        self._num_found = 0
        self._num_asked = 0

    def add(
        self,
        ages: NDArray[np.int64],
        *,
        behind: NDArray[np.int32] = _NONE,
        num_found: int,
        num_asked: int,
    ) -> None:
        """Adds what one step read.

        Args:
          ages: int `[n]` of the values that were found; an age below 0 (written by a maker that
            was put back to an earlier step) counts as 0.
          behind: int `[k]` of the values that were found of fields that the loop writes; see
            `Known.behind`.
          num_found: Rows found.
          num_asked: Rows asked for.
        """
        self._counts = _added(self._counts, np.maximum(ages, 0))
        self._behind = _added(self._behind, behind)
        self._num_found += num_found
        self._num_asked += num_asked

    def percentile(self, percent: float) -> float | None:
        """Returns the age that `percent` of the values did not exceed; None: nothing was read.

        It is the smallest such age; 0 percent gives the smallest age of all.
        """
        return _percentile(self._counts, percent)

    @property
    def found_share(self) -> float | None:
        """Share of the rows asked for that were found; None: nothing was asked for."""
        return self._num_found / self._num_asked if self._num_asked else None

    def summary(self) -> dict[str, float]:
        """Returns what can be told: "age_p50", "age_p95", "behind_p95" in steps, "found_share".

        And "behind_share", the share of the values of fields that the loop writes which may have
        lacked what it wrote before.
        """
        num_written = int(self._behind.sum())
        told = {
            "age_p50": self.percentile(50),
            "age_p95": self.percentile(95),
            "found_share": self.found_share,
            "behind_p95": _percentile(self._behind, 95),
            "behind_share": 1 - float(self._behind[0]) / num_written if num_written else None,
        }
        return {name: value for name, value in told.items() if value is not None}


def _added(counts: NDArray[np.int64], seen: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns how often each number was seen, in all."""
    total = np.bincount(seen, minlength=counts.size)
    total[: counts.size] += counts
    return total


def _percentile(counts: NDArray[np.int64], percent: float) -> float | None:
    total = int(counts.sum())
    if not total:
        return None
    enough = max(percent / 100 * total, 1)
    return float(np.searchsorted(np.cumsum(counts), enough))
