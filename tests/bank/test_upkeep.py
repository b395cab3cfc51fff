from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from carls_jax.bank import changes
from carls_jax.bank.changes import author
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.upkeep import Upkeep
from carls_jax.errors import InvalidInputError

SGD = optimizer("sgd", learning_rate=1.0)


def spec(name: str = "t", **lazy: Any) -> TableSpec:
    return TableSpec(name, {"x": Field(optimizer=SGD, lazy=Lazy(**lazy))}, max_rows=64)


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "upkeep"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.002)


def num_flushed(bank: LocalBank, table: str = "t") -> int:
    return bank.stats().tables[table].counters.get("rows_flushed", 0)


def test_a_bank_flushes_rows_that_nobody_reads() -> None:
    with LocalBank() as bank:
        table = bank.table(spec(max_wait_s=0.01))
        table.push([1, 2], {"x": [1.0, 2.0]})
        wait_until(lambda: num_flushed(bank) == 2)
        assert table.lookup([1, 2])["x"].tolist() == [-1, -2]


def test_only_a_bank_with_a_lazy_table_has_a_timer_and_closing_ends_it() -> None:
    with LocalBank() as bank:
        bank.table(TableSpec("plain", {"x": Field(optimizer=SGD)}))
        assert timers() == []
        bank.table(spec())
        bank.table(spec("u"))
        assert len(timers()) == 1
    assert timers() == []


def test_a_table_with_a_shorter_wait_is_not_kept_waiting_by_another() -> None:
    with LocalBank() as bank:
        bank.table(spec(max_wait_s=1e6))
        table = bank.table(spec("soon", max_wait_s=0.01))
        table.push([1], {"x": [1.0]})
        wait_until(lambda: num_flushed(bank, "soon") == 1)


def test_what_a_snapshot_holds_waits_on_in_the_bank_that_restores_it(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as bank:
        bank.table(spec(max_wait_s=1e6)).push([1], {"x": [1.0]})
        bank.snapshot("s")
        assert num_flushed(bank) == 0
    with LocalBank(tmp_path) as bank:
        bank.restore("s")
        assert len(timers()) == 1
        shard = bank._open()
        shard.flush_overdue(time.time() + 1e5)
        assert num_flushed(bank) == 0
        shard.flush_overdue(time.time() + 2e6)
        assert num_flushed(bank) == 1


def test_a_flush_that_is_refused_does_not_end_it() -> None:
    refused = threading.Event()

    class Stubborn(Shard):
        def flush_overdue(self, now: float) -> None:
            if not refused.is_set():
                refused.set()
                raise InvalidInputError("the table is another one now")
            super().flush_overdue(now)

    shard = Stubborn()
    shard.apply(changes.create_table(spec(max_wait_s=0.01)))
    timer = Upkeep(shard)
    timer.wake()
    try:
        assert refused.wait(30)
        values = {"x": np.ones(1, np.float32)}
        shard.apply(changes.push("t", np.array([1]), values, by=author()))
        wait_until(lambda: shard.table("t").counts.read().get("rows_flushed") == 1)
    finally:
        timer.stop()
    timer.wake()  # after its end it stays ended
    assert timers() == []


def test_it_ends_with_its_shard() -> None:
    shard = Shard()
    shard.apply(changes.create_table(spec(max_wait_s=0.01)))
    Upkeep(shard).wake()
    del shard
    gc.collect()
    wait_until(lambda: timers() == [])
