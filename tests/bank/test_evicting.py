"""Which rows go, asked of a shard: its limits, its policies and its clocks."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import changes, evicting, limiter
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.interface import Applied
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.limits import Limit
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankFullError, InvalidInputError, NonFiniteError

SGD = optimizer("sgd", learning_rate=1.0)
FIELDS = {"x": Field(optimizer=SGD), "y": Field(dtype="int64")}


class Clock:
    """Is both clocks of the bank: one that may jump, and one that never does."""

    def __init__(self) -> None:
        self.wall_s, self.ran_s = 1e9, 50.0

    def time(self) -> float:
        return self.wall_s

    def monotonic_ns(self) -> int:
        return int(self.ran_s * 1e9)

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.ran_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    told = SimpleNamespace(time=clock.time, monotonic_ns=clock.monotonic_ns)
    for module in (evicting, limiter):
        monkeypatch.setattr(module, "time", told)
    return clock


def shard_of(limit: Limit, *, fields: dict[str, Field] = FIELDS, **options: Any) -> Shard:
    shard = Shard()
    shard.apply(changes.create_table(TableSpec("t", fields, limit=limit, **options)))
    return shard


def write(shard: Shard, *numbers: int, **by: Any) -> Applied:
    return shard.apply(update(*numbers, **by))


def update(*numbers: int, **by: Any) -> Change:
    keys = np.array(numbers, np.int64)
    return changes.update("t", keys, {"y": keys * 10}, by=author(**by))


def lookup(shard: Shard, *numbers: int, create: bool = False, **told: Any) -> list[bool]:
    request = pb.Lookup(table="t", fields=["y"], create=create, **told)
    return [bool(one) for one in shard.lookup(request, np.array(numbers, np.int64)).found]


def present(shard: Shard) -> list[int]:
    table = shard.table("t")
    return sorted(table.columns["key"][table.live_slots()].tolist())


def count(shard: Shard, name: str) -> int:
    return shard.table("t").counts.read().get(name, 0)


# How many


def test_rows_go_by_a_change_of_their_own_before_the_one_that_needs_the_room() -> None:
    shard = shard_of(Limit(max_rows=4))
    first = write(shard, 1, 2, 3, 4)
    second = write(shard, 5, 6)
    assert (first.num_evicted, second.num_evicted) == (0, 2)
    assert second.sequence == first.sequence + 2
    assert set(present(shard)) > {5, 6}
    assert len(present(shard)) == 4
    assert (count(shard, "rows_evicted"), count(shard, "rows_deleted")) == (2, 0)


def test_about_a_hundredth_goes_at_once() -> None:
    shard = shard_of(Limit(max_rows=500))
    write(shard, *range(500))
    assert write(shard, 500).num_evicted == 5
    assert [write(shard, 501 + k).num_evicted for k in range(5)] == [0, 0, 0, 0, 5]


@pytest.mark.parametrize("kind", ["update", "push", "create"])
def test_a_change_evicts_no_row_that_it_writes(kind: str) -> None:
    shard = shard_of(Limit(max_rows=4))
    write(shard, 1)
    write(shard, 2, 3, 4)
    keys = np.array([1, 9, 1, -1, 8], np.int64)
    made = {
        "update": changes.update("t", keys, {"y": keys}, by=author()),
        "push": changes.push("t", keys, {"x": np.ones(5, np.float32)}, by=author()),
        "create": changes.create_rows("t", keys, by=author()),
    }
    applied = shard.apply(made[kind])
    assert (applied.num_created, applied.num_evicted) == (2, 2)
    assert set(present(shard)) > {1, 8, 9}


def test_a_lookup_evicts_none_of_its_rows_to_create_others() -> None:
    shard = shard_of(Limit(max_rows=4, evict="lowest_count"))
    shard.apply(changes.create_rows("t", np.array([1]), by=author()))
    write(shard, 2, 3, 4)
    assert lookup(shard, 1, 8, 9, create=True) == [True] * 3
    assert len(present(shard)) == 4


def test_a_change_of_more_rows_than_the_limit_is_refused_and_evicts_none(unchanged: Any) -> None:
    shard = shard_of(Limit(max_rows=4))
    write(shard, 1, 2, 3, 4)
    with unchanged(shard):
        with pytest.raises(BankFullError, match=r"limited to 4 rows in a shard; a change of 5"):
            write(shard, 11, 12, 13, 14, 15)
        with pytest.raises(BankFullError, match=r"5 rows, 2 of them new"):
            write(shard, 1, 2, 3, 14, 15)
        with pytest.raises(BankFullError):
            lookup(shard, 1, 2, 3, 4, 5, create=True)
    assert write(shard, 11, 12, 13, 14).num_evicted == 4


def test_a_change_that_is_refused_evicts_none(unchanged: Any) -> None:
    shard = shard_of(Limit(max_rows=2))
    write(shard, 1, 2)
    values = {"x": np.array([1.0, np.inf], np.float32)}
    with unchanged(shard), pytest.raises(NonFiniteError):
        shard.apply(changes.push("t", np.array([3, 4]), values, by=author()))


def test_bytes_are_those_of_all_columns() -> None:
    # x: 4 and no state; y: 8; 23 of metadata for each; 8 of the key.
    shard = shard_of(Limit(max_bytes=5 * 66 + 65))
    write(shard, 1, 2, 3, 4, 5)
    assert write(shard, 6).num_evicted == 1
    with pytest.raises(InvalidInputError, match="max_bytes=65; a row takes 66 bytes"):
        shard_of(Limit(max_bytes=65))


def test_a_change_without_new_rows_evicts_none() -> None:
    shard = shard_of(Limit(max_rows=3))
    write(shard, 1, 2, 3)
    shard.table("t").limit_to(Limit(max_rows=2))
    assert write(shard, 1, 2, 3).num_evicted == 0
    pushed = changes.push(
        "t", np.array([8, 9]), {"x": np.ones(2, np.float32)}, by=author(), create=False
    )
    assert shard.apply(pushed).num_evicted == 0
    assert write(shard, 3, 4).num_evicted == 2
    assert present(shard) == [3, 4]


def test_memory_stays_while_ten_times_the_rows_come() -> None:
    shard = shard_of(Limit(max_rows=2000))
    table = shard.table("t")
    sizes = []
    for start in range(0, 20_000, 250):
        write(shard, *range(start, start + 250))
        sizes.append(table.num_bytes)
        assert table.num_rows <= 2000
        assert table.used_slots <= 2000
    # The index, at most: cells that were left make it grow once more.
    assert max(sizes[8:]) <= sizes[8] + 2000 * 16
    assert max(sizes[40:]) == sizes[40]
    assert sorted(table.find(np.arange(19_000, 20_000)).tolist())[0] >= 0


# Which


def test_least_recent_counts_lookups_and_writes(clock: Clock) -> None:
    shard = shard_of(Limit(max_rows=4))
    for key in (1, 2, 3, 4):
        write(shard, key)
        clock.advance(1)
    lookup(shard, 1, -1, 77)
    clock.advance(1)
    shard.apply(changes.push("t", np.array([2]), {"x": np.ones(1, np.float32)}, by=author()))
    clock.advance(1)
    shard.scan(pb.Scan(table="t", fields=["y"], num_rows=10))
    write(shard, 5)
    assert present(shard) == [1, 2, 4, 5]
    clock.advance(1)
    write(shard, 6)
    write(shard, 7)
    assert present(shard) == [2, 5, 6, 7]


def test_lowest_count_is_of_updates_and_pushes(clock: Clock) -> None:
    shard = shard_of(Limit(max_rows=3, evict="lowest_count"))
    write(shard, 1, updated_at=5.0)
    write(shard, 2, updated_at=4.0)
    write(shard, 3, updated_at=3.0)
    write(shard, 3, updated_at=6.0)
    shard.apply(changes.push("t", np.array([1]), {"x": np.ones(1, np.float32)}, by=author()))
    write(shard, 4, updated_at=9.0)
    assert present(shard) == [1, 3, 4]
    write(shard, 5, updated_at=8.0)
    assert present(shard) == [1, 3, 5]
    write(shard, 6, 7, updated_at=7.0)
    assert len(present(shard)) == 3


def test_among_equal_counts_the_row_written_longest_ago_goes() -> None:
    shard = shard_of(Limit(max_rows=3, evict="lowest_count"))
    for key, at in ((1, 7.0), (2, 5.0), (3, 6.0)):
        write(shard, key, updated_at=at)
    write(shard, 4, updated_at=9.0)
    assert present(shard) == [1, 3, 4]


def test_oldest_step_is_how_far_a_row_is_behind_its_own_clock() -> None:
    shard = shard_of(Limit(max_rows=4, evict="oldest_step"))
    write(shard, 1, step=90)
    write(shard, 2, step=3, clock="slow")
    write(shard, 3, step=100)
    write(shard, 4, step=5, clock="slow")
    write(shard, 5, step=100)
    assert present(shard) == [2, 3, 4, 5]
    shard.apply(changes.push("t", np.array([2]), {"x": np.ones(1, np.float32)}, by=author()))
    write(shard, 6, step=100)  # the push told no step
    assert present(shard) == [3, 4, 5, 6]
    shard.apply(changes.delete("t", np.array([6]), by=author()))
    write(shard, 7)  # never written with a step
    write(shard, 8, step=100)
    assert present(shard) == [3, 4, 5, 8]


def test_rows_without_a_step_go_first_whatever_their_clock_says() -> None:
    shard = shard_of(Limit(max_rows=2, evict="oldest_step"))
    write(shard, 1, step=3, clock="slow")
    write(shard, 2)
    write(shard, 3, step=9, clock="slow")
    assert present(shard) == [1, 3]


def test_the_newest_field_of_a_row_says_its_step() -> None:
    shard = shard_of(Limit(max_rows=2, evict="oldest_step"))
    write(shard, 1, step=10)
    write(shard, 2, step=20)
    by = author(step=30)
    shard.apply(changes.push("t", np.array([1]), {"x": np.ones(1, np.float32)}, by=by))
    write(shard, 3, step=30)
    assert present(shard) == [1, 3]


def test_of_many_rows_a_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(evicting, "_SAMPLED_ROWS", 64)
    shard = shard_of(Limit(max_rows=6400))
    for start in range(0, 6400, 100):
        write(shard, *range(start, start + 100))
        clock.advance(1)
    for start in range(6400, 12_800, 64):
        assert write(shard, *range(start, start + 64)).num_evicted == 64
        clock.advance(1)
        # Of sixteen for each that goes the oldest: what was written last stays for long.
        assert set(present(shard)) >= set(range(start - 3200, start + 64))


def test_in_a_per_source_table_rows_of_each_author_go_by_a_change_of_theirs(clock: Clock) -> None:
    shard = shard_of(Limit(max_rows=3), per_source=True)
    write(shard, 1, source="ann")
    clock.advance(1)
    write(shard, 1, source="bob")
    clock.advance(1)
    write(shard, 2, source="bob")
    clock.advance(1)
    lookup(shard, 1, sources=["ann"])
    sequence = shard.stats().sequence
    assert write(shard, 7, 8, source="eve").num_evicted == 2
    assert shard.stats().sequence == sequence + 2
    assert lookup(shard, 1, sources=["ann"]) == [True]
    assert lookup(shard, 1, sources=["bob"]) == [False]
    assert write(shard, 3, 4, source="bob").num_evicted == 2
    assert shard.stats().sequence >= sequence + 4


def test_gathered_gradients_go_with_their_row() -> None:
    fields = {"x": Field(optimizer=SGD, lazy=Lazy(max_wait_s=1e6)), "y": Field(dtype="int64")}
    shard = shard_of(Limit(max_rows=1), fields=fields)
    shard.apply(changes.push("t", np.array([1]), {"x": np.ones(1, np.float32)}, by=author()))
    write(shard, 2)
    request = pb.Lookup(table="t", fields=["x"])
    assert shard.lookup(request, np.array([2]))["x"].tolist() == [0]
    assert count(shard, "rows_flushed") == 0


# How long


def test_rows_go_when_they_were_not_written_for_long(clock: Clock) -> None:
    shard = shard_of(Limit(ttl_s=10.0))
    write(shard, 1, 2)
    shard.apply(changes.create_rows("t", np.array([3]), by=author()))
    clock.advance(6)
    lookup(shard, 1, 3, 4, create=True)
    shard.apply(changes.push("t", np.array([2]), {"x": np.ones(1, np.float32)}, by=author()))
    clock.advance(3.9)
    shard.evict_expired(clock.time())
    assert present(shard) == [1, 2, 3, 4]
    clock.advance(0.2)
    shard.evict_expired(clock.time())
    assert present(shard) == [2, 4]
    assert count(shard, "rows_expired") == 2
    clock.advance(10)
    shard.evict_expired(clock.time())
    assert present(shard) == []
    write(shard, 1)
    shard.evict_expired(clock.time())
    assert present(shard) == [1]


@pytest.mark.parametrize("jump_s", [-1e8, 1e8, 3600.0])
def test_a_jump_of_the_computers_clock_makes_no_row_older(clock: Clock, jump_s: float) -> None:
    shard = shard_of(Limit(ttl_s=10.0))
    write(shard, 1, updated_at=clock.wall_s)
    clock.advance(9)
    clock.wall_s += jump_s
    write(shard, 2, updated_at=clock.wall_s)
    shard.evict_expired(clock.time())
    assert present(shard) == [1, 2]
    clock.advance(2)
    shard.evict_expired(clock.time())
    assert present(shard) == [2]


def forget(shard: Shard) -> None:
    """Leaves what another process would know that has loaded these rows."""
    table = shard.table("t")
    table.limiter = None
    table.limit_to(table.spec.limit)


@pytest.mark.parametrize(("away_s", "stays"), [(0.0, False), (1e8, False), (-1e8, True)])
def test_after_a_restart_rows_go_on_with_the_age_that_they_had(
    clock: Clock, away_s: float, stays: bool
) -> None:
    """At least: where the clock is behind, the bank cannot tell, and they begin anew."""
    shard = shard_of(Limit(ttl_s=10.0))
    write(shard, 1, updated_at=clock.wall_s)
    clock.advance(4)
    write(shard, 2, updated_at=clock.wall_s)
    shard.apply(changes.create_rows("t", np.array([3]), by=author()))
    forget(shard)
    clock.wall_s += away_s
    write(shard, 4, updated_at=clock.wall_s)
    shard.evict_expired(clock.time())
    assert present(shard) == [1, 2, 3, 4]
    clock.advance(7)
    shard.evict_expired(clock.time())
    assert present(shard) == [1, 2, 3, 4][not stays :]
    clock.advance(4)
    shard.evict_expired(clock.time())
    assert present(shard) == []


def test_a_time_ahead_of_the_clock_makes_no_loaded_row_older(clock: Clock) -> None:
    shard = shard_of(Limit(ttl_s=10.0))
    write(shard, 1, updated_at=clock.wall_s)
    write(shard, 2, updated_at=clock.wall_s + 1e7)
    forget(shard)
    shard.evict_expired(clock.time())
    assert present(shard) == [1, 2]


def test_after_a_restart_the_least_recently_written_go_first(clock: Clock) -> None:
    shard = shard_of(Limit(max_rows=3))
    for key, at in ((1, 7.0), (2, 5.0), (3, 6.0)):
        write(shard, key, updated_at=at)
    forget(shard)
    write(shard, 4)
    assert present(shard) == [1, 3, 4]


def test_the_shortest_wait_is_that_of_a_row_too() -> None:
    assert shard_of(Limit(max_rows=3)).shortest_wait_s is None
    shard = shard_of(Limit(ttl_s=7.0))
    assert shard.shortest_wait_s == 7
    lazy = {"x": Field(optimizer=SGD, lazy=Lazy(max_wait_s=3.0))}
    shard.apply(changes.create_table(TableSpec("u", lazy)))
    assert shard.shortest_wait_s == 3


def test_many_expired_rows_go_in_several_changes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evicting, "SCANNED_ROWS", 64)
    monkeypatch.setattr(evicting, "BLOCK_ROWS", 20)
    shard = shard_of(Limit(ttl_s=10.0))
    write(shard, *range(100))
    clock.advance(11)
    sequence = shard.stats().sequence
    shard.evict_expired(clock.time())
    assert present(shard) == []
    assert shard.stats().sequence == sequence + 4 + 2


# Told


def test_keys_are_logged_if_asked(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="carls_jax.bank"):
        quiet = shard_of(Limit(max_rows=2))
        for key in range(4):
            write(quiet, key)
        assert caplog.messages == []
        loud = shard_of(Limit(max_rows=2, ttl_s=10.0, log=True), per_source=True)
        for key in range(3):
            write(loud, key, source="ann")
            clock.advance(1)
        clock.advance(10)
        loud.evict_expired(clock.time())
    assert caplog.messages == [
        "table t evicts 1 rows (limit) of ann: [0]",
        "table t evicts 2 rows (expired) of ann: [2, 1]",
    ]


def test_an_eviction_leaves_out_keys_without_a_row_and_says_why() -> None:
    shard = shard_of(Limit(ttl_s=5.0))
    write(shard, 1, 2)
    keys = np.array([2, 9, -1, 2])
    applied = shard.apply(changes.evict("t", keys, reason="limit", by=author()))
    assert (applied.num_evicted, applied.num_deleted) == (1, 0)
    wrong: Any = "bored"
    with pytest.raises(InvalidInputError, match="reason='bored': allowed are limit, expired"):
        shard.apply(changes.evict("t", keys, reason=wrong, by=author()))
