"""Hooks on 8 devices, of one process and of two joined ones, with a bank server in another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from carls_jax.bank import Bank, LocalBank, Table, TableStats, connect

from .hooks_on_devices import (
    MODELS,
    NUM_KEYS,
    SCENARIOS,
    WRITES,
    Model,
    all_keys,
    model_loss,
)
from .hooks_programs import expected, first_rows, spec
from .test_bank_server import server_process

ROOT = Path(__file__).parents[2]
SCRIPT = "tests.integration.hooks_on_devices"


@dataclass(frozen=True)
class Ran:
    """Is what the processes did.

    Attributes:
      bank: The bank that they used.
      stats: What they did to its tables.
      told: What each process told of each scenario.
    """

    bank: Bank
    stats: Mapping[str, TableStats]
    told: list[dict[str, Any]]

    def table(self, name: str) -> Table:
        return self.bank.table(spec(name))

    def rows_written(self, name: str) -> list[int]:
        """Returns how many rows of a table each process wrote."""
        written = self.stats[name].rows_written
        return [written.get(f"process-{one}", 0) for one in range(len(self.told))]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def run_script(address: str, directory: Path, num_processes: int) -> list[dict[str, Any]]:
    devices = f"--xla_force_host_platform_device_count={8 // num_processes}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    coordinator = f"127.0.0.1:{free_port()}"
    outs = [directory / f"{process}.json" for process in range(num_processes)]
    processes = []
    try:
        for process, out in enumerate(outs):
            joined = [coordinator, str(num_processes), str(process)] if num_processes > 1 else []
            command = [sys.executable, "-W", "error", "-m", SCRIPT, address, str(out), *joined]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        assert [process.wait(timeout=100) for process in processes] == [0] * num_processes
    finally:
        for started in processes:
            started.kill()
            started.wait()
    return [json.loads(out.read_text()) for out in outs]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    directory = tmp_path_factory.mktemp("ran")
    with (
        server_process(f"unix:{directory}/s", directory / "root") as (_, address),
        connect(address) as bank,
    ):
        sizes = {scenario.name: scenario.num_keys for scenario in SCENARIOS}
        for name in [*sizes, *WRITES, *MODELS, "closed"]:
            keys = np.arange(sizes.get(name, NUM_KEYS))
            bank.table(spec(name)).update(keys, {"embedding": first_rows(keys)})
        told = run_script(address, directory, request.param)
        yield Ran(bank, bank.stats().tables, told)


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(names))


SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}


@each(name for name in SCENARIO if "remat" not in name)  # JAX may look up after the pushes there
def test_all_devices_have_the_loss_of_one(ran: Ran, name: str) -> None:
    loss, _ = expected(SCENARIO[name].num_keys)

    assert_allclose([told[name] for told in ran.told], loss, rtol=1e-5)


@each(SCENARIO)
def test_the_rows_move_as_on_one_device(ran: Ran, name: str) -> None:
    keys = np.arange(SCENARIO[name].num_keys)

    rows = ran.table(name).lookup(keys)["embedding"]

    assert_allclose(rows, expected(keys.size)[1], rtol=1e-5, atol=1e-6)


@each(SCENARIO)
def test_rows_are_pushed_as_often_as_they_are_pulled(ran: Ran, name: str) -> None:
    scenario = SCENARIO[name]
    counters = ran.stats[name].counters
    # Where JAX does not tell that keys are equal, each device pulls them all and pushes its part.
    each_device = 8 if not scenario.axes and not scenario.check_vma else 1
    num_lookups = 2 if "remat" in name else 1

    assert counters["push_calls"] == scenario.calls
    assert counters["rows_pushed"] == scenario.num_keys * each_device
    assert counters["lookup_calls"] == scenario.calls * num_lookups
    assert counters["rows_looked_up"] == scenario.num_keys * each_device * num_lookups


def test_each_process_calls_for_the_keys_of_its_own_devices(ran: Ran) -> None:
    keys = np.arange(NUM_KEYS)
    owners = np.repeat([f"process-{one}" for one in range(len(ran.told))], 256 // len(ran.told))
    for name in ["grad-shard-over-row-column-256", "shard-grad-scan-vmap-over-row-column-256"]:
        rows = ran.table(name).lookup(keys, metadata=("source",))
        assert rows.source["embedding"].tolist() == owners.tolist()
        assert ran.rows_written(name) == [256 // len(ran.told)] * len(ran.told)


@each(["grad-shard-equal-256", "grad-scan-equal-256", "grad-vmap-over-row-column-256"])
def test_where_one_device_calls_for_all_it_is_of_the_first_process(ran: Ran, name: str) -> None:
    assert ran.rows_written(name) == [256, *[0] * (len(ran.told) - 1)]


@each(WRITES)
def test_what_was_written_is_read_by_all_devices_that_are_given_its_step(
    ran: Ran, name: str
) -> None:
    keys = np.arange(NUM_KEYS)
    pushed = first_rows(keys) - 0.5
    table = ran.table(name)
    axes, _ = WRITES[name]

    for told in ran.told:
        is_ok, step, scores, embeddings = told[name]
        assert (is_ok, step, scores) == (1, 7, keys.sum())
        assert_allclose(embeddings, pushed.sum(), rtol=1e-5)
    assert ran.stats[name].counters["push_calls"] == (8 if axes else 1)
    assert_allclose(table.lookup(keys)["embedding"], pushed, rtol=1e-6)


@each(MODELS)
def test_a_model_learns_on_all_devices_as_on_one(ran: Ran, name: str) -> None:
    keys = np.arange(NUM_KEYS)
    with LocalBank() as bank:
        table = bank.table(spec("model"))
        table.update(keys, {"embedding": first_rows(keys)})
        step = nnx.jit(nnx.value_and_grad(model_loss))
        loss, gradient = step(Model(table), jnp.asarray(all_keys()))
        jax.effects_barrier()
        rows = table.lookup(keys)["embedding"]

    for told in ran.told:
        assert_allclose(told[name][0], loss, rtol=1e-5)
        assert_allclose(told[name][1], gradient["readout"]["kernel"][...], rtol=1e-5, atol=1e-6)
    assert_allclose(ran.table(name).lookup(keys)["embedding"], rows, rtol=1e-5, atol=1e-6)
    assert ran.stats[name].counters["rows_pushed"] == NUM_KEYS


def test_a_closed_bank_finds_nothing_on_any_device_and_check_raises(ran: Ran) -> None:
    num_calls = 8 // len(ran.told)

    for told in ran.told:
        found, error, message = told["closed"]
        assert (found, error) == (0, "BankClosedError")
        assert f"({num_calls} calls of this bank's hooks have failed" in message
