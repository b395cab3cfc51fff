"""Tests of `RunCheckpointer`: the bank keeps the snapshots that kept checkpoints name."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import Bank, BankServer, LocalBank, connect
from carls_jax.bank.pins import read_pins
from carls_jax.checkpoints import CheckpointWatcher
from carls_jax.training.checkpointing import RunCheckpointer

STATE = {"model": {"w": jnp.zeros(2)}}
NODES = carls.TableSpec("nodes", {"score": carls.Field()})


def a_checkpointer(bank: Bank, workdir: Path) -> RunCheckpointer:
    return RunCheckpointer(bank, workdir, carls.SessionConfig(), runners=(), remote_makers={})


def save(bank: Bank, checkpointer: RunCheckpointer, *steps: int) -> None:
    for step in steps:
        bank.table(NODES).update([1], {"score": [float(step)]})
        checkpointer.save(step, STATE, position=step)


def labels(bank: Bank) -> list[str]:
    return [one.label for one in bank.snapshots()]


def test_the_bank_keeps_what_kept_checkpoints_name_and_no_more(tmp_path: Path) -> None:
    with (
        LocalBank(tmp_path / "bank", max_snapshots=1) as held,
        BankServer(held, f"unix:{tmp_path}/socket") as server,
        connect(server.address) as bank,
    ):
        checkpointer = a_checkpointer(bank, tmp_path)
        checkpointer.resume(like=STATE)
        save(bank, checkpointer, *range(8))
        kept = [f"step-{step}" for step in (3, 4, 5, 6, 7)]
        assert CheckpointWatcher(tmp_path / "checkpoints").steps() == (3, 4, 5, 6, 7)
        assert len(read_pins(tmp_path / "bank")[f"checkpoints in {tmp_path}/checkpoints"]) == 5
        for _ in range(3):
            bank.snapshot("mine")
        assert labels(bank) == [*kept, "mine"]
        checkpointer.close()


def test_an_older_checkpoint_is_resumed_after_bank_and_trainer_were_started_anew(
    tmp_path: Path,
) -> None:
    with LocalBank(tmp_path / "bank", max_snapshots=1) as bank:
        checkpointer = a_checkpointer(bank, tmp_path)
        checkpointer.resume(like=STATE)
        save(bank, checkpointer, *range(6))
        checkpointer.close()
    for step in (5, 4):  # as if they had not been finished
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    with LocalBank(tmp_path / "bank", max_snapshots=1) as bank:
        for _ in range(3):
            bank.snapshot("mine")
        checkpointer = a_checkpointer(bank, tmp_path)
        resumed = checkpointer.resume(like=STATE)
        assert resumed is not None
        assert resumed.step == 3
        np.testing.assert_array_equal(bank.table("nodes").lookup([1])["score"], [3.0])
        bank.snapshot("mine")
        assert labels(bank) == ["step-1", "step-2", "step-3", "mine"]
        checkpointer.close()


def test_a_checkpoint_is_saved_though_the_bank_has_lost_earlier_snapshots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalBank(tmp_path / "bank") as bank:
        checkpointer = a_checkpointer(bank, tmp_path)
        checkpointer.resume(like=STATE)
        save(bank, checkpointer, 0, 1)
        checkpointer.close()
    with LocalBank(tmp_path / "another") as bank:
        checkpointer = a_checkpointer(bank, tmp_path)
        save(bank, checkpointer, 2)
        assert len(read_pins(tmp_path / "another")[f"checkpoints in {tmp_path}/checkpoints"]) == 1
        checkpointer.close()
