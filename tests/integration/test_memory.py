"""The memory of a server that runs for long stays what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from carls_jax.bank.connect import connect
from carls_jax.bank.specs import Field, TableSpec

from .operations import COUNTS, WIDTH
from .servers import ServerProcess

ROUNDS, LONG_ROUNDS = 30, 600
# From the middle to the end; what is sent meanwhile is 25 MB in the short run, 490 in the long one.
MAX_GROWTH_BYTES = 10 << 20
NUM_KEYS = 1024
CHURNED = TableSpec("churned", {"x": Field((WIDTH,)), "n": Field((), "int64")})


def one_round(address: str, number: int) -> None:
    """Connects, writes, reads, deletes, takes a snapshot and goes."""
    keys = np.arange(NUM_KEYS) + NUM_KEYS * number
    rows = np.ones((NUM_KEYS, WIDTH))
    with connect(address, source=f"client-{number % 10}", timeout_s=60.0) as bank:
        counts, churned = bank.table(COUNTS), bank.table(CHURNED)
        for _ in range(4):
            counts.push(keys % NUM_KEYS, {"now": rows, "late": rows}, step=number)
            churned.update(keys, {"x": rows, "n": keys}, step=number)
        counts.lookup(keys % NUM_KEYS)
        churned.delete(keys)
        assert not churned.lookup(keys).found.any()
        bank.snapshot("round")


@pytest.mark.timeout(1800)
def test_memory_is_flat(tmp_path: Path, is_long: bool) -> None:
    rounds = LONG_ROUNDS if is_long else ROUNDS
    address = f"unix:{tmp_path}/s"
    with ServerProcess(tmp_path / "root", address, "--max-journal-bytes", "4000000") as server:
        server.start()
        server.wait_ready()
        process, resident = psutil.Process(server.pid), []
        for number in range(rounds):
            one_round(address, number)
            resident.append(process.memory_info().rss)
    half, last = np.median(resident[rounds // 2 : rounds // 2 + 5]), np.median(resident[-5:])
    told = [round(one / 1e6) for one in resident[:: max(rounds // 20, 1)]]
    print(f"MB resident: {told}")
    assert last - half < MAX_GROWTH_BYTES, told
