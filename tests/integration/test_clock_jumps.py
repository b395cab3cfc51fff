"""The computer's clock jumps: orders, ages in seconds and snapshots are as if it had not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.limits import Limit
from carls_jax.bank.local import LocalBank
from carls_jax.bank.specs import Field, TableSpec

DAY_S = 86_400.0
JUMPS_S = (-400 * DAY_S, 3600.0, -30.0, 400 * DAY_S, -DAY_S, 0.0)
KEYS = np.arange(50)
SPEC = TableSpec("t", {"x": Field((8,), history=8)})
SHORT_LIVED = TableSpec("short", {"x": Field(())}, limit=Limit(ttl_s=3600.0))


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock so many seconds beside the true time."""
    true_time = time.time

    def to(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: true_time() + seconds)

    return to


def test_changes_keep_their_order_through_recoveries(
    tmp_path: Path, jump: Callable[[float], None]
) -> None:
    for number, seconds in enumerate(JUMPS_S, start=1):
        jump(seconds)
        with LocalBank(tmp_path) as bank:
            table = bank.table(SPEC)
            table.update(KEYS, {"x": np.full((KEYS.size, 8), 10.0 * number)}, step=number)
            jump(-seconds)
            table.update(KEYS, {"x": np.full((KEYS.size, 8), 10.0 * number + 1)}, step=number)
    with LocalBank(tmp_path) as bank:
        rows = bank.table(SPEC).lookup(KEYS, metadata=["version"])
        assert_array_equal(rows["x"], 10.0 * len(JUMPS_S) + 1)
        assert_array_equal(rows.version["x"], 2 * len(JUMPS_S))
        (writes,) = bank.table(SPEC).history(KEYS[:1], "x")
        newest = [10.0 * number + part for number in range(len(JUMPS_S), 2, -1) for part in (1, 0)]
        assert [one.value[0] for one in writes] == newest


def test_the_last_snapshot_is_the_last_taken(tmp_path: Path, jump: Callable[[float], None]) -> None:
    with LocalBank(tmp_path, journal="off", max_snapshots=3) as bank:
        table = bank.table(SPEC)
        for number, seconds in enumerate(JUMPS_S):
            jump(seconds)
            table.update(KEYS, {"x": np.full((KEYS.size, 8), float(number))})
            bank.snapshot(f"s{number}")
            bank.snapshot("same")
        assert [one.label for one in bank.snapshots()] == ["same", "s5", "same"], "not the newest"
    with LocalBank(tmp_path, journal="off", max_snapshots=3) as bank:
        assert_array_equal(bank.table(SPEC).lookup(KEYS)["x"], 5.0)
        bank.table(SPEC).update(KEYS, {"x": np.full((KEYS.size, 8), -1.0)})
        bank.restore("same")
        assert_array_equal(bank.table(SPEC).lookup(KEYS)["x"], 5.0)


def test_no_jump_makes_rows_older(tmp_path: Path, jump: Callable[[float], None]) -> None:
    """Neither while a bank runs, nor while none does."""
    with LocalBank(tmp_path) as bank:
        bank.table(SHORT_LIVED).update(KEYS, {"x": np.ones(KEYS.size)})
    for seconds in JUMPS_S:
        with LocalBank(tmp_path) as bank:
            bank._open().evict_expired(time.time())
            jump(seconds)
            bank._open().evict_expired(time.time())
            assert bank.table(SHORT_LIVED).lookup(KEYS).found.all(), seconds
