"""A training loop on 8 devices, of one process or of two that `jax.distributed` joins."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from carls_jax.bank import Bank, BankServer, LocalBank

PROGRAM = Path(__file__).with_name("processes_program.py")
TIMEOUT_S = 100


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def outcome(directory: Path, num_processes: int) -> tuple[list[Any], dict[str, Any]]:
    """Runs the program; returns what each process saw, and what is in the bank afterwards."""
    coordinator = f"127.0.0.1:{free_port()}"
    with (
        LocalBank(directory / "bank") as bank,
        BankServer(bank, f"unix:{directory}/socket") as server,
    ):
        fill(bank)
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(PROGRAM),
                    server.address,
                    str(directory),
                    coordinator,
                    str(num_processes),
                    str(index),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(num_processes)
        ]
        try:
            told = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * num_processes
        rows = bank.table("nodes").lookup(np.arange(16), metadata=("version", "step"))
        kinds = {"value": rows.values, "version": rows.version, "step": rows.step}
        held = {
            f"{kind} of {name}": array.tolist()
            for kind, of_fields in kinds.items()
            for name, array in of_fields.items()
        }
    return [json.loads(one.splitlines()[-1]) for one in told], held


def fill(bank: Bank) -> None:
    """Makes rows 0 to 15, of which each has itself and the one 5 further on as next."""
    import carls_jax as carls

    spec = carls.TableSpec(
        "nodes",
        {
            "z": carls.Field((2,), optimizer=carls.optimizer("sgd", learning_rate=0.5)),
            "score": carls.Field(),
            "mean": carls.Field(),
            "next": carls.Field((2,), dtype="int64"),
        },
    )
    keys = np.arange(16)
    near = np.stack([keys, (keys + 5) % 16], axis=1)
    bank.table(spec).update(keys, {"next": near, "z": np.stack([keys, -keys], 1) / 8}, step=0)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    ((whole,), expected) = outcome(tmp_path / "one", 1)
    ((first, second), held) = outcome(tmp_path / "two", 2)

    for errors in (first.pop("errors"), second.pop("errors")):
        expected_errors = (
            "sharded along other axes than its first",
            r"has shape \[8\], expected \[4, ...\]: 4 rows of the batch's 8 are this process's",
            r"has shape \[16, 1\], expected \[8, ...\]",
            "several processes would each look up the same part",
            "2 processes need a bank that a server holds",
        )
        assert len(errors) == len(expected_errors)
        assert all(map(re.search, expected_errors, errors))
    del whole["errors"]
    assert first == second
    # The steps after a checkpoint are made again by the resumed run, with the same result.
    assert [step for step, _ in whole["flat"]] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert whole["flat"][4] == whole["flat"][5]
    for name, seen in whole.items():
        np.testing.assert_allclose(
            [w for _, w in first[name]], [w for _, w in seen], rtol=1e-5, err_msg=name
        )
    for name, array in expected.items():
        np.testing.assert_allclose(held[name], array, rtol=1e-5, err_msg=name)
    # Sharded or equal everywhere, each row is written once for each batch that it is in.
    used = [(np.arange(8) * 3 + step) % 16 for steps in (8, 4) for step in range(1, steps + 1)]
    times = np.bincount(np.concatenate(used), minlength=16)
    assert held["version of score"] == held["version of mean"] == times.tolist()
    assert held["version of z"] == (times + 1).tolist()
    names = sorted(path.name for path in (tmp_path / "two/flat/metrics").glob("*.jsonl"))
    assert names == ["trainer-0.jsonl", "trainer-1.jsonl"]
