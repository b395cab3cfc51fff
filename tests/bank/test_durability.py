"""What a bank's directory keeps, through closings and crashes at any instant."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import durability, incarnation
from carls_jax.bank.incarnation import JournalMode
from carls_jax.bank.journal import Journal
from carls_jax.bank.journal_segments import PAGE_BYTES, segment_files
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankClosedError,
    BankStorageError,
    InvalidInputError,
    JournalCorruptError,
    SnapshotCorruptError,
)

SPEC = TableSpec("t", {"x": Field(), "w": Field(optimizer=optimizer("adam", learning_rate=0.1))})
StateOf = Callable[[Shard], Any]
MODES: tuple[JournalMode, ...] = ("off", "process", "fsync")


def crashed(root: Path) -> Path:
    """Returns a directory as the death of the process would leave that of an open bank."""
    copy = root.with_name(f"{root.name}-crashed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    return copy


def write(bank: LocalBank, *keys: int, step: int = 1) -> None:
    table = bank.table(SPEC)
    table.update(keys, {"x": [float(key) for key in keys]}, step=step)
    table.push(keys, {"w": np.ones(len(keys))}, step=step)


def journal_bytes(root: Path) -> int:
    return sum(file.num_bytes for file in segment_files(root / "journal"))


@pytest.mark.parametrize("mode", ["process", "fsync"])
def test_a_crash_loses_nothing(tmp_path: Path, state_of: StateOf, mode: JournalMode) -> None:
    with LocalBank(tmp_path / "root", journal=mode) as bank:
        write(bank, 1, 2)
        bank.snapshot("s")
        write(bank, 2, 3)
        bank.table(SPEC).delete([1])
        bank.table(SPEC).lookup([7], create=True)
        expected, identity = state_of(bank._open()), bank.identity
        root = crashed(tmp_path / "root")
    for _ in range(2):  # what is recovered is recovered again
        with LocalBank(root, journal=mode) as bank:
            assert state_of(bank._open()) == expected
            assert bank.identity == identity
    with LocalBank(root, journal=mode) as bank:
        write(bank, 9)
        expected = state_of(bank._open())
        root = crashed(root)
    with LocalBank(root, journal=mode) as bank:
        assert state_of(bank._open()) == expected


def test_without_a_journal_a_bank_goes_on_from_its_newest_snapshot(
    tmp_path: Path, state_of: StateOf
) -> None:
    with LocalBank(tmp_path, journal="off") as bank:
        write(bank, 1)
        bank.snapshot("s")
        expected = state_of(bank._open())
        write(bank, 2)
        incarnation = bank.identity.incarnation
    assert not (tmp_path / "journal").exists()
    with LocalBank(tmp_path, journal="off") as bank:
        assert state_of(bank._open()) == expected
        assert bank.identity.incarnation != incarnation


@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("after", MODES)
def test_the_incarnation_is_the_same_if_nothing_can_have_been_lost(
    tmp_path: Path, before: JournalMode, after: JournalMode
) -> None:
    with LocalBank(tmp_path / "root", journal=before) as bank:
        write(bank, 1)
        first = bank.identity.incarnation
        root = crashed(tmp_path / "root")
    for place in (root, tmp_path / "root"):
        with LocalBank(place, journal=after) as bank:
            assert (bank.identity.incarnation == first) == (before != "off")


def test_turning_the_journal_off_keeps_what_it_held(tmp_path: Path, state_of: StateOf) -> None:
    with LocalBank(tmp_path) as bank:
        write(bank, 1)
        expected = state_of(bank._open())
    with LocalBank(tmp_path, journal="off") as bank:
        assert state_of(bank._open()) == expected
        assert not (tmp_path / "journal").exists()
        lost = bank.identity.incarnation
        write(bank, 2)
    with LocalBank(tmp_path) as bank:
        assert state_of(bank._open()) == expected
        assert bank.identity.incarnation != lost


def test_a_loss_of_power_makes_another_incarnation_unless_the_journal_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {}
    for mode in ("process", "fsync"):
        with LocalBank(tmp_path / mode, journal=mode) as bank:
            write(bank, 1)
            roots[mode] = (bank.identity.incarnation, crashed(tmp_path / mode), True)
        roots[f"closed {mode}"] = (bank.identity.incarnation, tmp_path / mode, True)
    monkeypatch.setattr(incarnation, "_this_boot", lambda: "another")
    same = {}
    for name, (before, root, _) in roots.items():
        with LocalBank(root) as bank:
            same[name] = bank.identity.incarnation == before
    assert same == {"process": False, "closed process": True, "fsync": True, "closed fsync": True}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"incarnation": 1'])
def test_a_damaged_incarnation_is_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    with LocalBank(tmp_path) as bank:
        before = bank.identity.incarnation
    (tmp_path / "incarnation.json").write_text(text)
    with LocalBank(tmp_path) as bank:
        assert bank.identity.incarnation != before
    assert "is damaged, so this is another incarnation" in caplog.text


def test_a_journal_that_was_moved_away_makes_another_incarnation(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as bank:
        write(bank, 1)
        before = bank.identity.incarnation
    shutil.rmtree(tmp_path / "journal")
    with LocalBank(tmp_path) as bank:
        assert bank.tables() == {}
        assert bank.identity.incarnation != before


def test_a_snapshot_cuts_the_journal(tmp_path: Path, state_of: StateOf) -> None:
    with LocalBank(tmp_path / "root") as bank:
        write(bank, *range(1000))
        assert journal_bytes(tmp_path / "root") > 20_000
        bank.snapshot("s")
        assert journal_bytes(tmp_path / "root") == PAGE_BYTES
        write(bank, 5)
        with LocalBank(crashed(tmp_path / "root")) as again:
            assert state_of(again._open()) == state_of(bank._open())


def test_what_journal_builds_on_is_never_removed(
    tmp_path: Path, state_of: StateOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the clock was put back, so that the newest snapshot looks like the oldest."""
    now = iter(range(1000, 0, -1))
    with LocalBank(tmp_path / "root", max_snapshots=1) as bank:
        monkeypatch.setattr("carls_jax.bank.local.time.time", lambda: float(next(now)))
        for key in (1, 2, 3):
            write(bank, key)
            bank.snapshot(f"s{key}")
        write(bank, 4)
        with LocalBank(crashed(tmp_path / "root")) as again:
            assert state_of(again._open()) == state_of(bank._open())


def test_a_long_journal_is_cut_by_a_snapshot_of_the_banks_own(
    tmp_path: Path, state_of: StateOf
) -> None:
    with LocalBank(tmp_path / "root", max_journal_bytes=50_000) as bank:
        kept, seen = bank.snapshot("kept"), set()
        while len(seen) < 3:
            write(bank, *range(200))
            with bank._snapshot_lock:  # none is being taken now
                own = [one for one in bank.snapshots() if one.label == "automatic"]
                assert len(own) <= 1
                seen |= {one.uuid for one in own}
        with bank._snapshot_lock:
            root, expected = crashed(tmp_path / "root"), state_of(bank._open())
            assert kept in bank.snapshots()
        # Three snapshots were taken at 50 kB or more, and the journal is not as long.
        assert journal_bytes(root) < 150_000
        with LocalBank(root) as again:
            assert state_of(again._open()) == expected
        assert bank._durability is not None
        with bank._durability._taking:  # nor is one about to be taken
            bank.snapshot("newer")
            assert [one.label for one in bank.snapshots()] == ["kept", "newer"]


def test_a_snapshot_that_fails_is_not_tried_at_once_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = threading.Event()

    def fail(*_: Any, **__: Any) -> None:
        failing.set()
        raise BankStorageError("the disk is full")

    monkeypatch.setattr(SnapshotStore, "write", fail)
    with LocalBank(tmp_path, max_journal_bytes=40_000) as bank, caplog.at_level(logging.ERROR):
        write(bank, *range(1000))
        write(bank, *range(1000))
        assert failing.wait(30)
        assert bank._durability is not None
        with bank._durability._taking:
            failing.clear()
        write(bank, 1)
        assert not failing.is_set()
        write(bank, *range(1000))
        assert failing.wait(30)
        with bank._durability._taking:
            pass
    assert "no snapshot could be taken: the disk is full" in caplog.text


@pytest.mark.parametrize("label", ["automatic", "restored"])
def test_the_banks_own_labels_are_not_given(tmp_path: Path, label: str) -> None:
    with LocalBank(tmp_path) as bank, pytest.raises(InvalidInputError, match="bank's own"):
        bank.snapshot(label)


def test_a_snapshot_that_was_taken_is_answered_when_it_is_asked_for_again(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as bank:
        taken = bank.snapshot("s", uuid="a" * 32)
        write(bank, 1)
        assert bank.snapshot("s", uuid="a" * 32) == taken
        with pytest.raises(InvalidInputError, match="there is such a snapshot"):
            bank.snapshot("other", uuid="a" * 32)
        assert [(one.label, one.num_rows) for one in bank.snapshots()] == [("s", 0)]


# Restoring


def test_a_restored_state_outlasts_a_crash(tmp_path: Path, state_of: StateOf) -> None:
    with LocalBank(tmp_path / "root") as bank:
        write(bank, 1)
        bank.snapshot("one")
        write(bank, 2)
        last = bank.stats().sequence
        bank.restore("one")
        assert bank.stats().sequence == last + 1
        restored, incarnation = state_of(bank._open()), bank.identity.incarnation
        at_once = crashed(tmp_path / "root")
        with LocalBank(at_once) as again:
            assert state_of(again._open()) == restored
            assert again.identity.incarnation == incarnation
        write(bank, 3)
        with LocalBank(crashed(tmp_path / "root")) as again:
            assert state_of(again._open()) == state_of(bank._open())
        bank.restore("one")
        assert [one.label for one in bank.snapshots()] == ["one", "restored"]


@pytest.mark.parametrize("instant", ["write", "begin_anew", "cut", "_remove_older"])
def test_a_crash_while_a_snapshot_is_restored_leads_to_the_state_of_before_or_after(
    tmp_path: Path, state_of: StateOf, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    """Whenever it is, the changes of before are not applied to the restored state."""
    left: list[Path] = []

    def crashing(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def crash(*arguments: Any, **options: Any) -> Any:
            for when in ("before", "after"):
                copy = tmp_path / f"{name}-{when}-{len(left)}"
                if when == "after":
                    result = call(*arguments, **options)
                shutil.copytree(tmp_path / "root", copy)
                left.append(copy)
            return result

        return crash

    with LocalBank(tmp_path / "root") as bank:
        write(bank, 1)
        bank.snapshot("one")
        write(bank, 2)
        before = state_of(bank._open())
        owner = {"write": SnapshotStore, "_remove_older": LocalBank}.get(
            instant, durability.Durability
        )
        monkeypatch.setattr(owner, instant, crashing(getattr(owner, instant), instant))
        first = bank.identity.incarnation
        bank.restore("one")
        after = state_of(bank._open())
        monkeypatch.undo()
    assert len(left) == 2
    for root in left:
        with LocalBank(root) as again:
            state = state_of(again._open())
            assert state == (before if root.name.startswith("write-before") else after)
            assert state == before or again.identity.incarnation != first
            write(again, 5)
            expected = state_of(again._open())
        with LocalBank(root) as again:
            assert state_of(again._open()) == expected


@pytest.mark.parametrize("owner", [SnapshotStore, Journal])
def test_a_restore_that_the_disk_refuses_changes_nothing(
    tmp_path: Path, state_of: StateOf, monkeypatch: pytest.MonkeyPatch, owner: type
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BankStorageError("full")

    with LocalBank(tmp_path / "root") as bank:
        write(bank, 1)
        bank.snapshot("one")
        write(bank, 2)
        before, identity = state_of(bank._open()), bank.identity
        monkeypatch.setattr(owner, "write" if owner is SnapshotStore else "__init__", refuse)
        with pytest.raises(BankStorageError):
            bank.restore("one")
        monkeypatch.undo()
        assert (state_of(bank._open()), bank.identity) == (before, identity)
        assert [one.label for one in bank.snapshots()] == ["one"]
        write(bank, 3)
        with LocalBank(crashed(tmp_path / "root")) as again:
            assert state_of(again._open()) == state_of(bank._open())


# Damage


def damage(path: Path) -> None:
    for one in path.rglob("*"):
        if one.is_file():
            one.write_bytes(one.read_bytes()[:-3])


def test_a_damaged_snapshot_is_passed_over_only_if_the_journal_has_its_changes(
    tmp_path: Path, state_of: StateOf
) -> None:
    root = tmp_path / "root"
    with LocalBank(root, journal="off") as bank:
        write(bank, 1)
        bank.snapshot("one")
        one = state_of(bank._open())
        write(bank, 2)
        two = bank.snapshot("two")
    damage(root / "snapshots" / "shard-00000" / two.uuid / "arrays")
    with LocalBank(root, journal="off") as bank:
        assert state_of(bank._open()) == one
        write(bank, 2)
    with LocalBank(root) as bank:
        write(bank, 3)
        three = bank.snapshot("three")
        write(bank, 4)
    damage(root / "snapshots" / "shard-00000" / three.uuid / "arrays")
    with pytest.raises(JournalCorruptError, match="are missing"):
        LocalBank(root)
    # And the directory was let go of.
    with pytest.raises(JournalCorruptError, match="are missing"):
        LocalBank(root)


@pytest.mark.parametrize("part", ["arrays", "manifest.json"])
def test_a_bank_whose_only_snapshot_is_damaged_is_not_an_empty_one(
    tmp_path: Path, part: str
) -> None:
    with LocalBank(tmp_path, journal="off") as bank:
        write(bank, 1)
        taken = bank.snapshot("one")
    path = tmp_path / "snapshots" / "shard-00000" / taken.uuid / part
    damage(path) if path.is_dir() else path.write_text(json.dumps({}))
    with pytest.raises(SnapshotCorruptError):
        LocalBank(tmp_path, journal="off")


def test_a_change_that_the_disk_refuses_is_not_made(
    tmp_path: Path, state_of: StateOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise BankStorageError("full")

    with LocalBank(tmp_path / "root") as bank:
        write(bank, 1)
        before = state_of(bank._open())
        monkeypatch.setattr(Journal, "append", refuse)
        with pytest.raises(BankStorageError):
            write(bank, 2)
        monkeypatch.undo()
        assert state_of(bank._open()) == before
        write(bank, 3)
        with LocalBank(crashed(tmp_path / "root")) as again:
            assert state_of(again._open()) == state_of(bank._open())


def test_a_bank_that_is_closed_under_load_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    bank = LocalBank(tmp_path, journal="fsync")
    table = bank.table(SPEC)
    begun = threading.Event()

    def work(key: int) -> int:
        number = 0
        while True:
            try:
                table.update([key], {"x": [number + 1.0]})
            except BankClosedError:
                return number
            number += 1
            begun.set()

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, key) for key in range(4)]
        assert begun.wait(30)
        bank.close()
        done = [one.result(30) for one in working]
    with LocalBank(tmp_path) as again:
        assert again.table("t").lookup(range(4))["x"].tolist() == done
