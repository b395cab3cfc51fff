"""A bank in a server process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.connect import connect
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankUnavailableError

COMMAND = [sys.executable, "-m", "carls_jax.cli", "bank", "--bank-id", "b"]
SPEC = TableSpec("t", fields={"x": Field((64,), optimizer=optimizer("sgd", learning_rate=1.0))})
KEYS = np.arange(5000)


@contextmanager
def server_process(
    address: str, root: Path, *more: str, shard: str = "0/1"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs a server until the block ends; gives the process and its address."""
    arguments = ["--address", address, "--root", str(root), "--shard", shard, *more]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = re.search(r"connect\('([^']*)'", process.stdout.readline())
            assert told
            yield process, told[1]
        finally:
            process.kill()


def test_a_server_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with (
        server_process(f"unix:{tmp_path}/s", tmp_path / "root") as (process, address),
        connect(address, source="me", timeout_s=5) as bank,
    ):
        table = bank.table(SPEC)
        table.update(KEYS, {"x": np.ones((KEYS.size, 64))})
        table.push(KEYS, {"x": np.ones((KEYS.size, 64))})
        assert_array_equal(table.lookup(KEYS)["x"], np.zeros((KEYS.size, 64)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not os.path.exists(f"{tmp_path}/s")
        with pytest.raises(BankUnavailableError):
            bank.advance(1)


def test_a_client_outlives_a_killed_server(tmp_path: Path) -> None:
    address, root = f"unix:{tmp_path}/s", tmp_path / "root"
    ones = np.ones((KEYS.size, 64))
    with connect(address) as bank, ThreadPoolExecutor(1) as pool:
        with server_process(address, root) as (process, _):
            table = bank.table(SPEC)
            table.update(KEYS, {"x": ones})
            incarnation = bank.identity.incarnation
            process.kill()
            process.wait(30)
        pushing = pool.submit(table.push, KEYS, {"x": ones})
        with server_process(address, root):
            pushing.result(30)
            assert_array_equal(table.lookup(KEYS)["x"], 0 * ones)
            assert bank.identity.incarnation == incarnation


def test_a_server_without_a_journal_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    address, root = f"unix:{tmp_path}/s", tmp_path / "root"
    with connect(address) as bank:
        with server_process(address, root, "--journal", "off"):
            table = bank.table(SPEC)
            table.update(KEYS[:10], {"x": np.ones((10, 64))})
            bank.snapshot("s")
            table.update(KEYS[10:20], {"x": np.ones((10, 64))})
            incarnation = bank.identity.incarnation
        with server_process(address, root, "--journal", "off"):
            assert_array_equal(table.lookup(KEYS[:20]).found, [True] * 10 + [False] * 10)
            bank.stats()
            assert bank.identity.incarnation != incarnation


def test_shards_in_processes_are_one_bank(tmp_path: Path) -> None:
    token = ("--token-file", str(tmp_path / "token"))
    with (
        server_process("127.0.0.1:0", tmp_path / "0", *token, shard="0/2") as (_, zero),
        server_process("127.0.0.1:0", tmp_path / "1", *token, shard="1/2") as (_, one),
        connect(f"{zero},{one}", token_file=tmp_path / "token") as bank,
    ):
        bank.wait_ready(30)
        table = bank.table(SPEC)
        values = np.random.default_rng(0).standard_normal((KEYS.size, 64), np.float32)
        table.load(KEYS, {"x": values})
        assert_array_equal(table.lookup(KEYS[::-1])["x"], values[::-1])
        assert_array_equal(table.to_numpy()["x"], values)
