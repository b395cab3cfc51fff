from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import LocalBank
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import BankIdentityError, InvalidInputError
from tests.bank.stored_rows import fill, open_bank


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Gives a directory that holds those of a bank of three shards, and others."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "a-file").touch()
    roots = [tmp_path / f"bank-{index}" for index in range(3)]
    with open_bank(roots) as bank:
        fill(bank)
        bank.pin("run", [bank.snapshot("pinned")])
    with LocalBank(roots[1], bank_id="b" * 32, shard_index=1, num_shards=3) as shard:
        shard.snapshot("of-one")
    return tmp_path


def test_one_directory_stands_for_those_of_all_shards_in_it(directory: Path) -> None:
    stored = StoredBank(directory)
    assert [root.name for root in stored.roots] == ["bank-0", "bank-1", "bank-2"]
    assert [one.label for one in stored.snapshots()] == ["full", "pinned"]
    with carls.open_snapshot(directory) as bank:
        assert bank.identity.num_shards == 3
        assert len(bank.table("labels")) == 39


def test_all_snapshots_are_described(directory: Path) -> None:
    full, pinned, of_one = StoredBank(directory).describe()
    assert (full.identity.label, full.is_complete, full.pinned_by) == ("full", True, ())
    assert (pinned.identity.label, pinned.is_complete, pinned.pinned_by) == (
        "pinned",
        True,
        ("run",),
    )
    assert (of_one.identity.label, of_one.is_complete) == ("of-one", False)
    assert full.identity.num_rows == 35 + 39 + 69
    assert 0 < of_one.num_bytes < full.num_bytes


def test_directories_of_two_banks_are_told_apart(directory: Path) -> None:
    with LocalBank(directory / "other") as bank:
        bank.table(carls.TableSpec("t", {"x": carls.Field()})).update(np.arange(2), {"x": [1, 2]})
        bank.snapshot("a")
    with pytest.raises(BankIdentityError, match=r"2 banks \(bank-0, bank-1, bank-2, other\): name"):
        StoredBank(directory)
    assert [one.label for one in StoredBank(directory / "other").snapshots()] == ["a"]


def test_directories_that_are_none_or_not_all_are_refused(directory: Path) -> None:
    for wrong in ((), (directory / "logs",), (directory / "nowhere",), (directory / "a-file",)):
        with pytest.raises(InvalidInputError):
            StoredBank(*wrong)
    shutil.rmtree(directory / "bank-1")
    with pytest.raises(BankIdentityError, match="bank-0 belongs to shard 0 of 3"):
        StoredBank(directory)
