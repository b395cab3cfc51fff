"""Ages and shares, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from carls_jax.training import Staleness


def test_nothing_is_told_of_nothing() -> None:
    staleness = Staleness()
    staleness.add(np.empty(0, np.int64), num_found=0, num_asked=0)

    assert staleness.summary() == {}
    assert staleness.percentile(50) is None
    assert staleness.found_share is None


@pytest.mark.parametrize(
    ("percent", "age"), [(0, 1), (10, 1), (20, 1), (21, 2), (50, 3), (60, 3), (80, 40), (100, 500)]
)
def test_a_percentile_is_the_age_that_so_many_do_not_exceed(percent: float, age: float) -> None:
    staleness = Staleness()
    staleness.add(np.array([3, 1, 500]), num_found=3, num_asked=3)
    staleness.add(np.array([40, 2]), num_found=2, num_asked=2)

    assert staleness.percentile(percent) == age


def test_a_summary_adds_up_all_steps() -> None:
    staleness = Staleness()
    staleness.add(np.full(99, 4), num_found=99, num_asked=150)
    staleness.add(np.array([1000]), num_found=1, num_asked=50)

    assert staleness.summary() == {"age_p50": 4.0, "age_p95": 4.0, "found_share": 0.5}


def test_rows_that_were_found_but_never_written_have_no_age() -> None:
    staleness = Staleness()
    staleness.add(np.empty(0, np.int64), num_found=2, num_asked=4)

    assert staleness.summary() == {"found_share": 0.5}


def test_a_row_from_the_future_counts_as_new() -> None:
    staleness = Staleness()
    staleness.add(np.array([-3]), num_found=1, num_asked=1)

    assert staleness.percentile(100) == 0


def test_values_that_lack_own_writes_are_told() -> None:
    staleness = Staleness()
    staleness.add(np.zeros(3, np.int64), behind=np.array([0, 2, 0]), num_found=3, num_asked=3)
    staleness.add(np.zeros(1, np.int64), behind=np.array([7]), num_found=1, num_asked=1)

    summary = staleness.summary()
    assert (summary["behind_p95"], summary["behind_share"]) == (7, 0.5)
