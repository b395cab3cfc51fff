"""A snapshot that is taken while everything changes holds the changes up to its number, no others.

All changes are kept with their numbers. Those up to a snapshot's number, applied to another shard,
must give what the snapshot restores, bit for bit.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.initializers import uniform
from carls_jax.bank.interface import SnapshotIdentity
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import BankError

FIELDS = {
    "w": Field((8,), init=uniform(-1.0, 1.0), optimizer=optimizer("adagrad", learning_rate=0.1)),
    "n": Field(dtype="int64", history=3),
    "a": Field((2,), dtype="float64", group="g"),
    "b": Field(group="g"),
}
NUM_KEYS = 2000
TABLES = [TableSpec("plain", FIELDS), TableSpec("said", FIELDS, per_source=True)]
GROUP_BYTES = 64 << 10  # a dozen blocks a table
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    """Lets threads interrupt one another as in a server, so that much changes in the middle."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


# A change with its number.
Numbered = tuple[int, Change]


def a_shard(**options: Any) -> Shard:
    shard = Shard(**options)
    for spec in TABLES:
        shard.apply(changes.create_table(spec))
        rows = changes.create_rows(spec.name, np.arange(NUM_KEYS // 2), by=at_work("me"))
        shard.apply(rows)
    return shard


def at_work(source: str, step: int = 0) -> pb.Author:
    return author(source=source, step=step, clock=source, updated_at=1.0 + step)


def some_change(
    table: str, source: str, number: int, random: np.random.Generator, *, deletes: bool
) -> Change:
    """Draws a change, most of whose rows are there already."""
    by = at_work(source, number)
    keys = random.integers(NUM_KEYS, size=random.integers(1, 200))
    numbers = np.full(keys.size, number)
    match random.integers(0 if deletes else 1, 8):
        case 0:
            return changes.delete(table, keys[:100], by=by)
        case 1:
            return changes.create_rows(table, keys[:30], by=by)
        case 2 | 3 | 4:
            gradients = {"w": random.standard_normal((keys.size, 8), np.float32)}
            return changes.push(table, keys, gradients, by=by, create=bool(number % 2))
        case 5:
            return changes.update(table, keys, {"n": numbers}, by=by)
        case _:
            values = {
                "a": np.stack([numbers, numbers], 1) * 1.0,
                "b": numbers.astype(np.float32),
            }
            return changes.update(table, keys, values, by=by, if_newer=bool(number % 2))


@contextmanager
def hammered(shard: Shard, *, deletes: bool = True) -> Iterator[list[Numbered]]:
    """Changes two tables, each by two threads, until the block ends; gives what was done so far."""
    done: list[Numbered] = []
    stop = threading.Event()

    def work(table: str, source: str, seed: int) -> None:
        random, number = np.random.default_rng(seed), 0
        while not stop.is_set():
            number += 1
            change = some_change(table, source, number, random, deletes=deletes)
            done.append((shard.apply(change).sequence, change))

    with ThreadPoolExecutor(4) as pool:
        working = [
            pool.submit(work, spec.name, source, seed)
            for seed, (spec, source) in enumerate((s, n) for s in TABLES for n in ("me", "you"))
        ]
        try:
            yield done
        finally:
            stop.set()
        for one in working:
            one.result(DEADLINE_S)


def take(shard: Shard, root: Path) -> SnapshotContent:
    store = SnapshotStore(root, bank_id="b", group_bytes=GROUP_BYTES)
    identity = SnapshotIdentity("b", "s", uuid4().hex)
    with shard.frozen() as (images, clocks, sequence, _):
        store.write(identity, images, clocks=clocks, sequence=sequence)
    return store.read(identity)


class Replay:
    """Applies changes to a shard of its own, in the order of their numbers."""

    def __init__(self, done: list[Numbered]) -> None:
        self._done = iter(sorted(done, key=lambda one: one[0]))
        self._shard = a_shard()

    def up_to(self, sequence: int) -> Shard:
        while self._shard.stats().sequence < sequence:
            number, change = next(self._done)
            assert self._shard.apply(change).sequence == number
        return self._shard


def differing(
    done: list[Numbered], taken: list[SnapshotContent], state_of: Callable[[Shard], Any]
) -> list[int]:
    """Returns the numbers of those snapshots that are not what the changes up to them give."""
    replay, restored, found = Replay(done), Shard(), []
    for content in sorted(taken, key=lambda one: one.sequence):
        restored.replaced_by(content)
        if state_of(restored) != state_of(replay.up_to(content.sequence)):
            found.append(content.sequence)
    return found


def test_a_snapshot_holds_the_changes_up_to_its_number_and_no_others(
    tmp_path: Path, state_of: Callable[[Shard], Any]
) -> None:
    shard, taken, num_meanwhile = a_shard(), [], 0
    with hammered(shard) as done:
        while len(taken) < 3 or num_meanwhile < 300:
            taken.append(take(shard, tmp_path))
            num_meanwhile += shard.stats().sequence - taken[-1].sequence
    assert differing(done, taken, state_of) == []
    shard.replaced_by(taken[-1])
    restored, replayed = state_of(shard), state_of(Replay(done).up_to(taken[-1].sequence))
    assert restored.pop("sequence") > replayed.pop("sequence")
    assert restored == replayed


def test_without_before_images_it_does_not(
    tmp_path: Path, state_of: Callable[[Shard], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    monkeypatch.setattr(TableShard, "keep_before", lambda table, slots: None)
    shard = a_shard()
    with hammered(shard, deletes=False) as done:
        taken = [take(shard, tmp_path) for _ in range(2)]
    assert differing(done, taken, state_of)


def test_a_snapshot_that_fails_midway_leaves_nothing_behind(
    tmp_path: Path, state_of: Callable[[Shard], Any]
) -> None:
    shard = a_shard()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with hammered(shard) as done:
        resource.setrlimit(resource.RLIMIT_FSIZE, (GROUP_BYTES // 4, limits[1]))
        try:
            with pytest.raises(BankError, match="cannot be written"):
                take(shard, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [shard.table(spec.name)._image for spec in TABLES] == [None, None]
        taken = take(shard, tmp_path)
    assert SnapshotStore(tmp_path, bank_id="b").list() == [taken.identity]
    assert differing(done, [taken], state_of) == []


def test_beyond_the_bound_changes_wait_and_lookups_do_not() -> None:
    shard = a_shard(max_before_bytes=1)
    keys, ones = np.arange(10), np.ones(10, np.int64)

    def write() -> int:
        return shard.apply(changes.update("plain", keys, {"n": ones}, by=at_work("me"))).sequence

    said = changes.delete("said", keys, by=at_work("me"))
    with ThreadPoolExecutor(2) as pool:
        with shard.frozen() as (_, _, sequence, _):
            assert write() == sequence + 1  # nothing was kept before
            waiting = [pool.submit(write), pool.submit(shard.apply, said)]
            request = pb.Lookup(table="plain", fields=["n"])
            for _ in range(50):
                assert (shard.lookup(request, keys)["n"] == 1).all()
            assert not any(one.done() for one in waiting)
        for one in waiting:
            one.result(DEADLINE_S)
    assert shard.stats().sequence == sequence + 3


def test_with_little_room_a_snapshot_is_right_and_changes_go_on(
    tmp_path: Path, state_of: Callable[[Shard], Any]
) -> None:
    shard = a_shard(max_before_bytes=20_000)
    with hammered(shard) as done:
        taken = [take(shard, tmp_path) for _ in range(2)]
    assert differing(done, taken, state_of) == []
