"""Times contestants in turns within one run, so that the machine's noise hits all of them alike.

On a shared machine times of different minutes cannot be compared; ratios within one run can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Milliseconds = NDArray[np.float64]
# Is given the number of the round, so that each round may have keys of its own.
Work = Callable[[int], object]

NUM_WARMUPS = 3


def in_turns(
    works: Mapping[str, Work], *, budget_s: float, min_rounds: int = 5, max_rounds: int = 2000
) -> dict[str, Milliseconds]:
    """Does every work once a round, and returns how long each took, `[rounds]`.

    Each round has another order, so that no work always follows the same one. Rounds end when
    `budget_s` is spent, but not before `min_rounds` or after `max_rounds`; the first `NUM_WARMUPS`
    are not measured.
    """
    names = list(works)
    rng = np.random.default_rng(0)
    for number in range(NUM_WARMUPS):
        for work in works.values():
            work(number)
    took: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_s
    for number in range(NUM_WARMUPS, NUM_WARMUPS + max_rounds):
        if number >= NUM_WARMUPS + min_rounds and time.perf_counter() > end:
            break
        for name in rng.permutation(names).tolist():
            took[name].append(milliseconds(works[name], number))
    return {name: np.array(of_name) for name, of_name in took.items()}


def milliseconds(work: Work, number: int = 0) -> float:
    """Returns how long a work takes once."""
    begun = time.perf_counter()
    work(number)
    return 1e3 * (time.perf_counter() - begun)


def until(is_over: Callable[[], bool], work: Work, *, pause_s: float = 0.0) -> Milliseconds:
    """Does a work again and again until something is over, and returns how long each took."""
    took = [milliseconds(work)]
    while not is_over():
        time.sleep(pause_s)
        took.append(milliseconds(work, len(took)))
    return np.array(took)


def lasting(seconds: float) -> Callable[[], bool]:
    """Returns what tells whether so many seconds have gone by from now."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end
