"""A bank's server is killed under load: what it acknowledged is there, and once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.changes import Keys
from carls_jax.bank.interface import Bank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.specs import Field, TableSpec

NUM_KILLS = {"process": 4, "fsync": 2}
NUM_KEYS = 300
SPEC = TableSpec("t", {"x": Field((4,), optimizer=optimizer("sgd", learning_rate=1.0))})


@contextmanager
def server(address: str, root: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a server until the block ends, and then kills it."""
    command = [sys.executable, "-m", "carls_jax.cli", "bank", "--root", str(root)]
    # So short a journal is cut by snapshots all the time.
    command += ["--address", address, "--journal", mode, "--max-journal-bytes", "500000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "connect with" in process.stdout.readline()
            yield process
        finally:
            process.kill()


class Load:
    """Pushes 1 to rows, in threads of its own, and counts what was acknowledged."""

    def __init__(self, banks: list[Bank]) -> None:
        self.banks = banks
        self.counts = np.zeros(NUM_KEYS, np.int64)
        self.num_acknowledged = 0
        self.stop = threading.Event()
        self.changed = threading.Condition()

    def run(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        table = self.banks[seed % len(self.banks)].table(SPEC)
        while not self.stop.is_set():
            keys: Keys = np.unique(generator.integers(0, NUM_KEYS, 20))
            table.push(keys, {"x": np.full((keys.size, 4), -1.0)}, create=True)
            with self.changed:
                self.counts[keys] += 1
                self.num_acknowledged += 1
                self.changed.notify_all()

    def wait_for(self, num_more: int) -> None:
        with self.changed:
            number = self.num_acknowledged + num_more
            assert self.changed.wait_for(lambda: self.num_acknowledged >= number, 60)


@pytest.mark.parametrize("mode", ["process", "fsync"])
def test_what_was_acknowledged_is_there_once(tmp_path: Path, mode: str) -> None:
    address, root = f"unix:{tmp_path}/s", tmp_path / "root"
    chance = random.Random(0)
    with RemoteBank(address, timeout_s=60) as one, RemoteBank(address, timeout_s=60) as two:
        load, incarnations = Load([one, two]), set()
        with ThreadPoolExecutor(4) as pool:
            for number in range(NUM_KILLS[mode] + 1):
                with server(address, root, mode) as process:
                    if number == 0:
                        one.wait_ready()
                        two.wait_ready()
                        working = [pool.submit(load.run, seed) for seed in range(4)]
                    load.wait_for(chance.randint(50, 400))
                    incarnations.add(one.identity.incarnation)
                    if number < NUM_KILLS[mode]:
                        process.kill()
                        continue
                    load.stop.set()
                    for done in working:
                        done.result(60)
                    rows = one.table("t").lookup(np.arange(NUM_KEYS), metadata=["version"])
    assert_array_equal(rows["x"], np.repeat(load.counts[:, None], 4, axis=1))
    assert_array_equal(rows.version["x"], load.counts)
    assert len(incarnations) == 1
