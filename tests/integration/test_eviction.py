"""Readers in other processes while rows come and go: none sees a row that is another key's."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from carls_jax.bank.limits import Limit
from carls_jax.bank.local import LocalBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec

WIDTH, NUM_KEYS, MAX_ROWS = 512, 400, 100

# Looks up random keys until it is told to stop; it says when it has found many rows.
READER = """
import select, sys
import numpy as np
from carls_jax.bank.connect import connect

num_found, has_told = 0, False
rng = np.random.default_rng(int(sys.argv[2]))
with connect(sys.argv[1]) as bank:
    table = bank.table("churned")
    print("reading", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        keys = rng.integers(0, NUM_KEYS, 64)
        rows = table.lookup(keys)
        right = np.where(rows.found, keys, 0)
        assert (rows["n"] == right).all(), "a row of another key"
        assert (rows["x"] == right[:, None]).all(), "a row of another key, or a torn one"
        num_found += int(rows.found.sum())
        if num_found > 500 and not has_told:
            print("many", flush=True)
            has_told = True
""".replace("NUM_KEYS", str(NUM_KEYS))


@pytest.mark.parametrize("policy", ["lowest_count", "least_recent"])
def test_no_reader_gets_a_row_of_another_key(tmp_path: Path, policy: str) -> None:
    """In shared memory, and, where lookups must be noticed, by asking the server."""
    fields = {"x": Field((WIDTH,)), "n": Field((), "int64")}
    limit = Limit(max_rows=MAX_ROWS, evict=policy)  # type: ignore[arg-type]
    spec = TableSpec("churned", fields, limit=limit)
    with LocalBank() as bank, BankServer(bank, f"unix:{tmp_path}/s") as server:
        table = bank.table(spec)
        assert bank.share("churned")[1].is_shared == (policy == "lowest_count")
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, server.address, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "reading\n"
            rng = np.random.default_rng(9)
            with ThreadPoolExecutor(len(readers)) as pool:
                told = [pool.submit(reader.stdout.readline) for reader in readers if reader.stdout]
                num_updates = 0
                while num_updates < 700 or not all(one.done() for one in told):
                    keys = rng.choice(NUM_KEYS, 30, replace=False)
                    table.update(keys, {"x": np.repeat(keys[:, None], WIDTH, axis=1), "n": keys})
                    num_updates += 1
            for reader in readers:
                reader.communicate("stop\n", timeout=60)
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        stats = table.stats()
        assert [reader.returncode for reader in readers] == [0, 0]
        assert [one.result() for one in told] == ["many\n", "many\n"]
        assert stats.counters["rows_evicted"] > 5_000
        assert stats.num_rows <= MAX_ROWS
        assert bank.share("churned")[1].used_slots <= MAX_ROWS
