"""Tests of one instant over several shards: no change is in a snapshot without those before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import (
    BankServer,
    LocalBank,
    ShardedBank,
    SnapshotIdentity,
    connect,
    freezing,
    open_snapshot,
)
from carls_jax.errors import (
    BankOverloadedError,
    BankStorageError,
    BankTimeoutError,
    InvalidInputError,
)
from carls_jax.keys import shard_of

NODES = carls.TableSpec("nodes", {"count": carls.Field(dtype="int64")})
KEYS = [int(np.flatnonzero(shard_of(np.arange(99), 3) == shard)[0]) for shard in range(3)]
UUID = "a" * 32
DEADLINE_S = 10.0


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[list[LocalBank]]:
    """Gives the three shards of a bank, each with a row that counts 0."""
    with ExitStack() as held:
        found = [
            held.enter_context(
                LocalBank(tmp_path / str(index), bank_id="b", shard_index=index, num_shards=3)
            )
            for index in range(3)
        ]
        for key, shard in zip(KEYS, found, strict=True):
            shard.table(NODES).update([key], {"count": [0]})
        yield found


def count(bank: carls.Bank, key: int, number: int) -> None:
    bank.table("nodes").update([key], {"count": [number]})


def counts(bank: carls.Bank) -> list[int]:
    found: list[int] = bank.table("nodes").lookup(KEYS)["count"].tolist()
    return found


def test_no_change_begins_while_a_shard_is_frozen_and_lookups_go_on(
    shards: list[LocalBank],
) -> None:
    shard = shards[0]
    shard.freeze(UUID)
    shard.freeze(UUID)  # a message that was sent again
    writing = threading.Thread(target=count, args=(shard, KEYS[0], 1))
    writing.start()
    writing.join(0.1)
    assert writing.is_alive()
    assert shard.table("nodes").lookup(KEYS[:1])["count"] == 0
    taken = shard.snapshot("s", uuid=UUID, is_frozen=True)
    writing.join(DEADLINE_S)
    assert shard.table("nodes").lookup(KEYS[:1])["count"] == 1
    shard.restore(taken)
    assert shard.table("nodes").lookup(KEYS[:1])["count"] == 0
    assert shard.snapshot("s", uuid=UUID, is_frozen=True) == taken  # sent again


def test_changes_begin_again_without_a_snapshot(
    shards: list[LocalBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shards[0]
    shard.freeze(UUID)
    shard.thaw("b" * 32)
    with pytest.raises(BankOverloadedError, match="another snapshot is being taken"):
        shard.freeze("b" * 32)
    shard.thaw(UUID)
    shard.thaw(UUID)
    count(shard, KEYS[0], 1)
    monkeypatch.setattr(freezing, "HOLD_S", 0.01)
    shard.freeze(UUID)
    count(shard, KEYS[0], 2)  # waits until nothing is frozen any more
    with pytest.raises(BankTimeoutError, match="was not taken"):
        shard.snapshot("s", uuid=UUID, is_frozen=True)
    assert shard.snapshots() == []
    shard.snapshot("s")


class Between(LocalBank):
    """Is a shard that calls `before_freeze` when the shards before it have been frozen.

    Attributes:
      fails: Whether it takes no snapshots.
    """

    fails = False

    def before_freeze(self) -> None:
        """Does nothing."""

    def freeze(self, uuid: str) -> None:
        self.before_freeze()
        super().freeze(uuid)

    def snapshot(self, label: str, **options: Any) -> SnapshotIdentity:
        if self.fails:
            raise BankStorageError("the disk is full")
        return super().snapshot(label, **options)


def test_what_comes_after_a_change_that_is_not_in_a_snapshot_is_not_either(
    shards: list[LocalBank], tmp_path: Path
) -> None:
    """Somebody writes to the first shard, and when that is acknowledged to the last."""
    shards[2].close()
    last = Between(tmp_path / "2", bank_id="b", shard_index=2, num_shards=3)
    writing = threading.Thread(
        target=lambda: [count(shards[0], KEYS[0], 1), count(last, KEYS[2], 1)]
    )

    def write_while_others_are_frozen() -> None:
        writing.start()
        writing.join(0.2)

    last.before_freeze = write_while_others_are_frozen  # type: ignore[method-assign]
    with ShardedBank([shards[0], shards[1], last]) as bank:
        bank.snapshot("s")
        writing.join(DEADLINE_S)
        assert counts(bank) == [1, 0, 1]
    with open_snapshot(tmp_path) as bank:
        assert counts(bank) == [0, 0, 0]


def test_two_who_take_snapshots_at_once_both_get_theirs(
    shards: list[LocalBank], tmp_path: Path
) -> None:
    with ExitStack() as held:
        addresses = [
            held.enter_context(BankServer(shard, f"unix:{tmp_path}/{index}.sock")).address
            for index, shard in enumerate(shards)
        ]
        clients = [held.enter_context(connect(",".join(addresses))) for _ in range(2)]
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for key in KEYS:
                    count(clients[0], key, number)

        writing = threading.Thread(target=write)
        taking = [
            threading.Thread(target=lambda one=one: [one.snapshot("s") for _ in range(3)])
            for one in clients
        ]
        for thread in (writing, *taking):
            thread.start()
        for thread in taking:
            thread.join(DEADLINE_S)
        stop.set()
        writing.join(DEADLINE_S)
        taken = clients[0].snapshots()
        assert len(taken) == 6
        for one in taken:
            with open_snapshot(tmp_path, snapshot=one.uuid) as bank:
                a, b, c = counts(bank)
                assert a >= b >= c >= a - 1


def test_a_snapshot_that_fails_on_one_shard_holds_nobody_up(
    shards: list[LocalBank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "HOLD_S", 3600.0)
    shards[2].close()
    last = Between(tmp_path / "2", bank_id="b", shard_index=2, num_shards=3)
    with ShardedBank([shards[0], shards[1], last]) as bank:
        last.fails = True
        with pytest.raises(BankStorageError, match="full"):
            bank.snapshot("s", uuid=UUID)
        for key in KEYS:
            count(bank, key, 1)  # nothing is frozen any more
        last.fails = False
        with pytest.raises(InvalidInputError, match="only some shards could take: choose another"):
            bank.snapshot("s", uuid=UUID)
        assert bank.snapshots() == []
        assert bank.snapshot("s", uuid="c" * 32) == bank.snapshot("s", uuid="c" * 32)


def test_only_single_shards_are_frozen(shards: list[LocalBank]) -> None:
    with ShardedBank(shards) as bank:
        for call in (bank.freeze, bank.thaw):
            with pytest.raises(InvalidInputError, match="ShardedBank is no single shard"):
                call(UUID)
    with LocalBank() as bank, pytest.raises(InvalidInputError, match="no root"):
        bank.freeze(UUID)
