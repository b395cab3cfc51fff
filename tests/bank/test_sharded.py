from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.connect import connect
from carls_jax.bank.interface import Applied
from carls_jax.bank.local import LocalBank
from carls_jax.bank.rows import Rows
from carls_jax.bank.server import BankServer
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankError,
    BankFullError,
    BankIdentityError,
    BankUnavailableError,
    InvalidInputError,
    NonFiniteError,
    SnapshotNotFoundError,
    SpecMismatchError,
)
from carls_jax.keys import shard_of

from .cutting_proxy import CuttingProxy

SPEC = TableSpec("t", fields={"x": Field(())})


class WatchedBank(LocalBank):
    """Notes the keys and changes that reach it."""

    def __init__(self, index: int, root: Path | None = None) -> None:
        super().__init__(root, bank_id="b" * 32, shard_index=index, num_shards=3)
        self.keys: list[list[int]] = []
        self.kinds: list[str] = []

    def apply(self, change: Change) -> Applied:
        self.kinds.append(change.kind)
        self.keys.append(change.keys.tolist())
        return super().apply(change)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        self.keys.append(keys.tolist())
        return super().lookup(request, keys)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[list[WatchedBank]]:
    shards = [WatchedBank(index, tmp_path / str(index)) for index in range(3)]
    yield shards
    for shard in shards:
        shard.close()


@pytest.fixture
def bank(shards: list[WatchedBank]) -> Iterator[ShardedBank]:
    with ShardedBank(shards) as bank:
        bank.table(SPEC)
        for shard in shards:
            shard.keys.clear()
            shard.kinds.clear()
        yield bank


def test_each_shard_gets_its_own_keys_in_order(
    bank: ShardedBank, shards: list[WatchedBank]
) -> None:
    keys = np.array([5, -1, 3, 1, 5, -1, 4, 0, 9, 2])
    expected = [
        [[key for key in keys.tolist() if key >= 0 and shard_of(np.array([key]), 3)[0] == index]]
        for index in range(3)
    ]
    assert all(expected)
    table = bank.table("t")

    table.update(keys, {"x": keys})
    assert [shard.keys for shard in shards] == expected

    rows = table.lookup(keys)
    assert_array_equal(rows.found, keys >= 0)
    assert_array_equal(rows["x"], np.where(keys < 0, 0, keys))


def test_a_shard_without_a_key_learns_the_step_alone(
    bank: ShardedBank, shards: list[WatchedBank]
) -> None:
    table = bank.table("t")
    table.update([3], {"x": [1.0]})
    owner = int(shard_of(np.array([3]), 3)[0])
    assert [len(shard.kinds) for shard in shards] == [int(i == owner) for i in range(3)]

    table.update([3], {"x": [1.0]}, step=8)
    assert [shard.kinds[-1] for shard in shards] == [
        "update" if index == owner else "advance" for index in range(3)
    ]
    assert [shard.stats().clocks for shard in shards] == [{"main": 8}] * 3


def test_what_one_shard_would_refuse_reaches_none(
    bank: ShardedBank, shards: list[WatchedBank]
) -> None:
    keys = np.arange(30)
    values = np.zeros(30)
    values[17] = np.nan

    with pytest.raises(NonFiniteError, match="in 1 of 30 rows, first in row 17"):
        bank.table("t").update(keys, {"x": values})
    assert [shard.kinds for shard in shards] == [[], [], []]


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 1), (0, 1), (2,)])
def test_shards_must_be_all_of_them_in_order(
    shards: list[WatchedBank], order: tuple[int, ...]
) -> None:
    with (
        ShardedBank([shards[index] for index in order]) as bank,
        pytest.raises(BankIdentityError, match="in the order of their shards"),
    ):
        bank.stats()


def test_shards_must_be_of_one_bank(shards: list[WatchedBank]) -> None:
    stranger = LocalBank(bank_id="c", shard_index=2, num_shards=3)
    with (
        ShardedBank([*shards[:2], stranger]) as bank,
        pytest.raises(BankIdentityError, match=f"server 2 .* of bank c, expected .*{'b' * 32}"),
    ):
        bank.wait_ready()


def test_no_shards_are_no_bank() -> None:
    with pytest.raises(InvalidInputError, match="at least one bank"):
        ShardedBank([])


def test_addresses_in_the_wrong_order_are_refused(
    shards: list[WatchedBank], tmp_path: Path
) -> None:
    with (
        BankServer(shards[0], f"unix:{tmp_path}/s0") as zero,
        BankServer(shards[1], f"unix:{tmp_path}/s1") as one,
        BankServer(shards[2], f"unix:{tmp_path}/s2") as two,
    ):
        with connect(f"{zero.address},{one.address},{two.address}") as bank:
            assert bank.stats().tables == {}
        with (
            connect(f"{one.address},{zero.address},{two.address}") as bank,
            pytest.raises(BankIdentityError, match="server 0 holds shard 1 of 3"),
        ):
            bank.stats()
        with (
            connect(f"{zero.address},{one.address}") as bank,
            pytest.raises(BankIdentityError, match="has 3, and 2 were expected"),
        ):
            bank.stats()


def test_a_shard_that_is_away_is_named(shards: list[WatchedBank], tmp_path: Path) -> None:
    with (
        BankServer(shards[0], f"unix:{tmp_path}/s0") as zero,
        connect(f"{zero.address},unix:{tmp_path}/s1,unix:{tmp_path}/s2") as bank,
        pytest.raises(BankUnavailableError, match=f"at unix:{tmp_path}/s1"),
    ):
        bank.stats()


def test_a_scan_goes_on_only_where_one_ended(bank: ShardedBank) -> None:
    with pytest.raises(InvalidInputError, match="what the last scan returned"):
        bank.scan(pb.Scan(table="t", fields=["x"], num_rows=1, start=3 << 48))


def test_a_snapshot_is_listed_if_every_shard_has_it(
    bank: ShardedBank, shards: list[WatchedBank]
) -> None:
    bank.table("t").update(range(30), {"x": np.arange(30)})
    whole = bank.snapshot("whole")
    for shard in shards[:2]:
        shard.snapshot("half", uuid="a" * 32)

    assert bank.snapshots() == [whole]
    assert whole.num_rows == 30
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 'half'; there are: whole"):
        bank.restore("half")
    with pytest.raises(SnapshotNotFoundError):
        bank.restore("a" * 32)


def test_the_incarnation_changes_with_any_shard(
    bank: ShardedBank, shards: list[WatchedBank]
) -> None:
    before = bank.identity
    shards[1].snapshot("s")
    shards[1].restore("s")

    assert bank.identity.incarnation != before.incarnation
    assert bank.identity.bank_id == before.bank_id == "b" * 32
    assert bank.identity.num_shards == 3


def test_counts_are_added_and_clocks_are_the_highest(
    bank: ShardedBank, shards: list[WatchedBank]
) -> None:
    bank.table("t").update(range(30), {"x": np.arange(30)}, source="job")
    shards[2].advance(12)
    shards[0].advance(7, clock="other")

    stats = bank.stats()

    assert stats.clocks == {"main": 12, "other": 7}
    assert stats.tables["t"].num_rows == 30
    assert stats.tables["t"].rows_written == {"job": 30}
    assert stats.tables["t"].counters["rows_updated"] == 30
    assert stats.sequence == max(shard.stats().sequence for shard in shards)


def test_a_change_that_only_some_shards_could_apply_says_so(bank: ShardedBank) -> None:
    keys = np.arange(200)
    shard = shard_of(keys, 3)
    table = bank.table(TableSpec("small", {"x": Field(())}, max_rows=5))
    too_many = np.concatenate([keys[shard == 0][:9], keys[shard == 1][:2]])
    with pytest.raises(BankFullError, match=r"shards \[1\] applied their part, shards \[0\] ref"):
        table.update(too_many, {"x": np.zeros(11)})
    assert len(table) == 2
    with pytest.raises(BankFullError) as caught:
        table.update(keys[shard == 0][:9], {"x": np.zeros(9)})
    assert "applied their part" not in str(caught.value)


# Changes that only some shards have applied


def test_a_refused_part_is_resumed_alone(bank: ShardedBank, shards: list[WatchedBank]) -> None:
    keys = np.arange(200)
    shard = shard_of(keys, 3)
    table = bank.table(TableSpec("small", {"x": Field(())}, max_rows=5))
    some = [keys[shard == index][:3] for index in range(3)]
    full = keys[shard == 0][3:6]
    table.update(full, {"x": np.zeros(3)})
    values = np.arange(9)
    with pytest.raises(BankFullError, match="resume") as caught:
        table.update(np.concatenate(some), {"x": values}, step=4)
    values[:] = 0
    with pytest.raises(BankFullError, match=r"shards \[1, 2\] applied.*shards \[0\] ref") as again:
        bank.resume(caught.value)
    table.delete(full)
    for one in shards:
        one.kinds.clear()
    applied = bank.resume(again.value)
    assert (applied.num_created, applied.is_repeated) == (9, False)
    assert [one.kinds for one in shards] == [["update"], [], []]
    rows = table.lookup(np.concatenate(some), metadata=["version"])
    assert_array_equal(rows["x"], np.arange(9))
    assert_array_equal(rows.version["x"], np.ones(9))


def test_what_is_refused_everywhere_is_not_resumed(bank: ShardedBank) -> None:
    with pytest.raises(SpecMismatchError) as caught:
        bank.table(TableSpec("t", fields={"other": Field(())}))
    assert "applied their part" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="nothing is left"):
        bank.resume(caught.value)


def test_clocks_that_were_not_told_are_told_by_resuming(
    bank: ShardedBank, shards: list[WatchedBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = int(shard_of(np.array([3]), 3)[0])
    away = shards[(owner + 1) % 3]

    def refuse(_: Change) -> Applied:
        raise BankUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(away, "apply", refuse)
        with pytest.raises(BankUnavailableError) as caught:
            bank.table("t").update([3], {"x": [1.0]}, step=8)
    applied = bank.resume(caught.value)
    assert applied.num_created == 1
    assert [shard.stats().clocks for shard in shards] == [{"main": 8}] * 3
    assert shards[owner].kinds == ["update"]


def test_a_shard_that_was_away_is_resumed_and_no_other_applies_twice(
    shards: list[WatchedBank], tmp_path: Path
) -> None:
    """One shard applies its part, one applies it and is not heard, one is not there."""
    keys = np.arange(30)
    paths = [tmp_path / f"s{index}" for index in range(3)]
    with (
        BankServer(shards[0], f"unix:{paths[0]}"),
        BankServer(shards[1], f"unix:{paths[1]}"),
        CuttingProxy(tmp_path / "before", paths[1]) as proxy,
        connect(f"unix:{paths[0]},{proxy.address},unix:{paths[2]}", timeout_s=1.5) as bank,
    ):
        with BankServer(shards[2], f"unix:{paths[2]}"):
            bank.wait_ready()
            table = bank.table(SPEC)
        proxy.hold_answers()
        with pytest.raises(
            BankError, match=r"shards \[0\] applied their part, shards \[1, 2\] may"
        ) as caught:
            table.update(keys, {"x": keys})
        proxy.cut()
        with BankServer(shards[2], f"unix:{paths[2]}"):
            bank.wait_ready()
            applied = bank.resume(caught.value)
            rows = table.lookup(keys, metadata=["version"])
    assert (applied.num_created, applied.is_repeated) == (30, True)
    assert_array_equal(rows["x"], keys)
    assert_array_equal(rows.version["x"], np.ones(30))
