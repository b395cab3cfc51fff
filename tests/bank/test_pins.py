"""Tests of pins: a snapshot that somebody needs stays, however old it becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import LocalBank, ShardedBank, pins
from carls_jax.bank.pins import pinned_by, read_pins, write_pins
from carls_jax.errors import (
    BankOverloadedError,
    InvalidInputError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
)

NODES = carls.TableSpec("nodes", {"score": carls.Field()})
RUN = "/home/me/runs/a: checkpoints"


def labels(bank: carls.Bank) -> list[str]:
    return [one.label for one in bank.snapshots()]


def test_a_pinned_snapshot_outlasts_newer_ones_and_the_server(tmp_path: Path) -> None:
    with LocalBank(tmp_path, max_snapshots=2) as bank:
        taken = [bank.snapshot(f"step-{step}") for step in range(3)]
        assert labels(bank) == ["step-1", "step-2"]
        bank.pin(RUN, [taken[1]])
    with LocalBank(tmp_path, max_snapshots=2) as bank:
        for step in range(3, 6):
            bank.snapshot(f"step-{step}")
        assert labels(bank) == ["step-1", "step-4", "step-5"]
        bank.pin(RUN, [])
        bank.snapshot("step-6")
        assert labels(bank) == ["step-5", "step-6"]


def test_pins_of_several_owners_do_not_disturb_one_another(tmp_path: Path) -> None:
    with LocalBank(tmp_path, max_snapshots=1) as bank:
        first = bank.snapshot("a")
        bank.pin("one", [first.uuid])
        bank.pin("two", [first, first])
        second = bank.snapshot("b")
        bank.pin("one", [second])
        bank.snapshot("c")
        assert labels(bank) == ["a", "b", "c"]
        assert pinned_by(read_pins(tmp_path)) == {first.uuid: ["two"], second.uuid: ["one"]}
        bank.pin("two", [])
        bank.snapshot("d")
        assert labels(bank) == ["b", "d"]


def test_what_cannot_be_pinned_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "MAX_OWNERS", 1)
    monkeypatch.setattr(pins, "MAX_PINS", 2)
    with LocalBank(tmp_path) as bank:
        taken = bank.snapshot("a")
        bank.pin(RUN, [taken])
        before = (tmp_path / "pins.json").read_bytes()
        for owner in ("", "x" * 1025, "two\nlines"):
            with pytest.raises(InvalidInputError, match="owner="):
                bank.pin(owner, [taken])
        with pytest.raises(
            SnapshotNotFoundError, match=rf"'{'0' * 32}'; there are: a \({taken.uuid}"
        ):
            bank.pin(RUN, [taken, "0" * 32])
        with pytest.raises(BankOverloadedError, match="at most 2"):
            bank.pin(RUN, [taken] * 3)
        with pytest.raises(BankOverloadedError, match="'other' is one owner of pins too many"):
            bank.pin("other", [taken])
        assert (tmp_path / "pins.json").read_bytes() == before
    with LocalBank() as bank, pytest.raises(InvalidInputError, match="no root"):
        bank.pin(RUN, [])


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": 3}', b"\xff"])
def test_where_pins_are_damaged_nothing_is_removed(tmp_path: Path, damage: bytes) -> None:
    with LocalBank(tmp_path, max_snapshots=1) as bank:
        bank.pin(RUN, [bank.snapshot("a")])
        (tmp_path / "pins.json").write_bytes(damage)
        with pytest.raises(SnapshotCorruptError, match=r"pins\.json is damaged.*put it back"):
            bank.snapshot("b")
        assert labels(bank) == ["a", "b"]
        with pytest.raises(SnapshotCorruptError):
            bank.pin(RUN, [])
        assert (tmp_path / "pins.json").read_bytes() == damage


def test_pins_that_are_the_same_are_not_written_again(tmp_path: Path) -> None:
    write_pins(tmp_path, owner=RUN, uuids=["a", "b"])
    written = (tmp_path / "pins.json").stat().st_ino
    write_pins(tmp_path, owner=RUN, uuids=["a", "b"])
    assert (tmp_path / "pins.json").stat().st_ino == written
    write_pins(tmp_path, owner=RUN, uuids=[])
    assert read_pins(tmp_path) == {}


def test_the_last_state_stays_although_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalBank(tmp_path, max_snapshots=1) as bank:
        table = bank.table(NODES)
        bank.pin(RUN, [bank.snapshot("of tomorrow".replace(" ", "-"))])
        monkeypatch.setattr("time.time", lambda: 1.0)
        table.update([5], {"score": [2.0]})
        bank.snapshot("last")
        bank.verify("last")
    with LocalBank(tmp_path) as bank:
        assert bank.table("nodes").lookup([5])["score"] == 2.0


def test_a_shard_that_cannot_restore_leaves_all_shards_as_they_were(tmp_path: Path) -> None:
    roots = [tmp_path / str(index) for index in range(3)]
    shards = [
        LocalBank(root, bank_id="b", shard_index=index, num_shards=3)
        for index, root in enumerate(roots)
    ]
    with ShardedBank(shards) as bank:
        nodes = bank.table(NODES)
        nodes.update(np.arange(30), {"score": np.ones(30)})
        taken = bank.snapshot("a")
        nodes.update(np.arange(30), {"score": np.full(30, 2.0)})
        for path in (roots[1] / "snapshots").rglob("arrays/d/*"):
            path.write_bytes(bytes(path.stat().st_size))
        incarnation = bank.identity.incarnation
        with pytest.raises(SnapshotCorruptError, match="table 'nodes'"):
            bank.restore(taken)
        np.testing.assert_array_equal(nodes.lookup(np.arange(30))["score"], np.full(30, 2.0))
        assert bank.identity.incarnation == incarnation
