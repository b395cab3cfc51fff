from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from carls_jax.bank import limiter
from carls_jax.bank.limiter import Limiter
from carls_jax.bank.limits import Limit

from .guarded_rows import MAX_ROWS, GuardedRows


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000
        monkeypatch.setattr(limiter, "time", SimpleNamespace(monotonic_ns=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(limit: Limit) -> Limiter:
    return Limiter(limit, row_bytes=100, max_rows=50, reserved_rows=MAX_ROWS)


def test_it_keeps_only_what_its_limit_needs() -> None:
    by_use = made(Limit(max_rows=5))
    assert (by_use.max_rows, by_use.written, by_use.sightings) == (5, None, None)
    assert by_use.used is not None
    by_count = made(Limit(max_bytes=1000, evict="lowest_count", ttl_s=1.0, admit_after=2))
    assert by_count.max_rows == 10
    assert by_count.used is None
    assert by_count.written is not None
    assert by_count.sightings is not None
    for_ever = made(Limit(ttl_s=1.0))
    assert (for_ever.max_rows, for_ever.used) == (None, None)
    assert made(Limit(max_bytes=1 << 40)).max_rows == 50


def test_as_many_sightings_count_as_there_may_be_rows_within_bounds() -> None:
    for max_rows, expected in (
        (None, 1 << 20),
        (5, 1 << 20),
        (3_000_000, 1 << 22),
        (1 << 30, 1 << 24),
    ):
        limit = Limit(max_rows=max_rows, admit_after=2, evict="lowest_count")
        one = Limiter(limit, row_bytes=100, max_rows=1 << 31, reserved_rows=8)
        assert one.sightings is not None
        assert one.sightings._num_remembered == expected


def test_a_lookup_is_noted_of_each_row_that_is_there(clock: Clock) -> None:
    rows, one = GuardedRows(), made(Limit(max_rows=5))
    keys = np.arange(200, 400)
    rows.put(keys)
    asked = np.array([-1, 399, 200, 5, 200, -1, 7, 250])
    one.note_lookup(asked, rows.columns["key"], rows.index.memory)
    assert one.used is not None
    assert np.flatnonzero(one.used).tolist() == [0, 50, 199]
    assert set(one.used[[0, 50, 199]].tolist()) == {1000}
    clock.now = 2000
    one.note_lookup(np.arange(300, 500), rows.columns["key"], rows.index.memory)
    assert np.flatnonzero(one.used == 2000).tolist() == list(range(100, 200))


def test_a_write_is_a_use_of_all_rows_and_a_write_of_some(clock: Clock) -> None:
    one = made(Limit(max_rows=5, ttl_s=1.0))
    one.note_write(np.array([3, -1, 4]), np.array([True, True, False]))
    assert one.used is not None
    assert one.written is not None
    assert one.used[:6].tolist() == [0, 0, 0, 1000, 1000, 0]
    assert one.written[:6].tolist() == [0, 0, 0, 1000, 0, 0]
    assert one.used[-1] == one.written[-1] == 0
