from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax import metrics
from carls_jax.errors import ConfigError, NotFoundError
from carls_jax.launch import resolve
from carls_jax.launch.serving import ServerConfig, address_name, root_of

NODES = carls.TableSpec("nodes", {"score": carls.Field()})


def test_the_whole_bank_is_where_an_inline_run_has_it():
    run = Path("run")
    assert root_of(run, shard_index=0, num_shards=1) == run / "bank"
    assert root_of(run, shard_index=2, num_shards=3) == run / "bank-2"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"shard_index": 2, "num_shards": 2, "bank_id": "x"},
            "shard=2/2: the first is 0, the last",
        ),
        ({"num_shards": 2}, "several shards needs a bank_id"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(values, expected):
    with pytest.raises(ConfigError, match=expected):
        ServerConfig(Path("root"), "unix:/socket", **values)


@pytest.fixture
def serve(tmp_path):
    """Returns a function that serves a bank, and waits until it is ready."""
    servers = []

    def start(address: str) -> tuple[subprocess.Popen, carls.Bank]:
        command = (sys.executable, "-m", "carls_jax.cli", "bank", "--workdir", str(tmp_path))
        server = subprocess.Popen(
            (*command, "--address", address), stdout=subprocess.PIPE, text=True
        )
        servers.append(server)
        told = server.stdout.readline()
        _, address, _, token_file, _ = told.split("'")
        bank = carls.connect(address, token_file=token_file)
        bank.wait_ready(10)
        return server, bank

    yield start
    for server in servers:
        server.kill()
        server.communicate()


def test_a_killed_server_is_found_again_where_it_was_and_one_that_ends_is_not(serve, tmp_path):
    server, bank = serve("127.0.0.1:0")
    address = resolve(tmp_path, address_name(0), timeout_s=10)
    with bank:
        bank.table(NODES).update([1], {"score": [5]}, step=3)
        bank.snapshot("step-3")
        server.kill()
        server.wait(10)
        server, again = serve("127.0.0.1:0")
        again.close()
        assert resolve(tmp_path, address_name(0), timeout_s=10) == address
        # The first client goes on, with what the newest snapshot holds.
        assert bank.table("nodes").lookup([1])["score"] == np.float32(5)
    server.terminate()
    assert server.wait(10) == 0
    with pytest.raises(NotFoundError):
        resolve(tmp_path, address_name(0), timeout_s=0)
    lines, _ = metrics.read(tmp_path / "metrics" / "bank-0.jsonl")
    assert (lines[-1]["step"], lines[-1]["rows"]) == (3, 1)
