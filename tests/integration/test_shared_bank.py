"""Two runs of one experiment in one bank: each gets what it gets in a bank of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.testing import assert_array_equal

from carls_jax.bank.connect import connect
from carls_jax.bank.local import LocalBank
from carls_jax.bank.server import BankServer
from carls_jax.launch.experiment import load
from carls_jax.launch.roles import run_inline

TINY = Path(__file__).parent.parent / "launch" / "tiny_experiment.py"
LOCKSTEP = ("run.mode='inline'", "run.session.checkpoint_every_steps=2")


def run(workdir: Path, *overrides: str) -> dict[str, object]:
    run_inline(load(TINY, (*LOCKSTEP, *overrides)), workdir)
    result: dict[str, object] = json.loads((workdir / "result.json").read_text())
    return result


def test_two_runs_share_a_bank(tmp_path: Path) -> None:
    alone = {rate: run(tmp_path / f"alone-{rate}", f"rate={rate}") for rate in (0.5, 2.0)}
    with LocalBank(tmp_path / "root") as bank, BankServer(bank, f"unix:{tmp_path}/s") as server:
        shared = {
            rate: run(
                tmp_path / f"shared-{rate}",
                f"rate={rate}",
                f"run.bank.address={server.address!r}",
                f"run.bank.namespace={name!r}",
            )
            for rate, name in ((0.5, "slow"), (2.0, "fast"))
        }
        for rate, result in shared.items():
            assert result["w"] == alone[rate]["w"]
            assert result["rows_written"] == alone[rate]["rows_written"]
            assert result["snapshot_bank_id"] == bank.identity.bank_id
        assert shared[0.5]["w"] != shared[2.0]["w"]
        assert {name.split("/")[0] for name in bank.tables()} == {"slow", "fast"}
        with connect(server.address, namespace="fast") as fast:
            rows = fast.table("numbers").lookup(np.arange(8))
            assert_array_equal(rows["triple"], 3.0 * np.arange(8))
            assert {"numbers", "words"} <= {*fast.tables()}
