"""The numbered changes of a limited bank give the same bank: what goes is in them, and no clock.

The bank that applies them again sees no lookup and no time, and decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank import changes, evicting, limiter
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.initializers import uniform
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.limits import Limit
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankFullError
from tests.properties.test_histories import kept, read_back, state_of

NUM_KEYS = 24
MAX_ROWS = 8
ADAM = optimizer("adam", learning_rate=0.1)
FIELDS = {
    "w": Field((3,), init=uniform(-1.0, 1.0), optimizer=ADAM, history=2),
    "l": Field((2,), optimizer=ADAM, lazy=Lazy(max_wait_s=3.0)),
    "n": Field(dtype="int32"),
}
POLICIES: list[Any] = ["least_recent", "lowest_count", "oldest_step"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def time(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)


class Journal:
    """Keeps changes as bytes."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def append(self, record: Change, sequence: int) -> None:
        assert sequence == len(self.kept) + 1
        self.kept.append(kept(record))

    def wait(self, sequence: int) -> None: ...

    def replayed(self) -> Shard:
        shard = Shard()
        for sequence, one in enumerate(self.kept, 1):
            shard.replay(read_back(one), sequence)
        return shard

    def reasons(self) -> set[str]:
        made = [read_back(one) for one in self.kept]
        return {one.header.evict.reason for one in made if one.kind == "evict"}


def limited(limits: dict[str, Limit], journal: Journal) -> Shard:
    shard = Shard()
    shard.keep_in(journal)
    for name, limit in limits.items():
        spec = TableSpec(name, FIELDS, per_source=name == "said", limit=limit)
        shard.apply(changes.create_table(spec))
    return shard


class Act:
    """Is one call to a shard, or time that passes."""

    def __init__(self, kind: str, table: str, keys: list[int], seed: int) -> None:
        self.kind, self.table, self.seed = kind, table, seed
        self.keys = np.array(keys, np.int64)

    def __repr__(self) -> str:
        return f"{self.kind}({self.table}, {self.keys.tolist()}, {self.seed})"

    def on(self, shard: Shard, clock: Clock) -> None:
        rng = np.random.default_rng(self.seed)
        n, name = self.keys.size, ["w", "l", "n"][self.seed % 3]
        values = rng.standard_normal((n, *FIELDS[name].shape)).astype(FIELDS[name].dtype)
        by = author(step=int(rng.integers(9)), source=["ann", "bob"][self.seed % 2])
        gradients = {name: values} if name != "n" else {"w": np.ones((n, 3), np.float32)}
        create = bool(rng.integers(2))
        lookup = pb.Lookup(
            table=self.table, fields=["w", "l"], create=create, reader=by, sources=["*"]
        )
        calls: dict[str, Callable[[], Any]] = {
            "push": lambda: shard.apply(
                changes.push(self.table, self.keys, gradients, by=by, create=create)
            ),
            "update": lambda: shard.apply(
                changes.update(self.table, self.keys, {name: values}, by=by)
            ),
            "delete": lambda: shard.apply(changes.delete(self.table, self.keys, by=by)),
            "lookup": lambda: shard.lookup(lookup, self.keys),
            "time": lambda: self._pass(shard, clock),
        }
        try:
            calls[self.kind]()
        except BankFullError:
            assert self.keys.size > 1

    def _pass(self, shard: Shard, clock: Clock) -> None:
        clock.now_s += self.seed % 5
        shard.flush_overdue(clock.time())
        shard.evict_expired(clock.time())


acts = st.builds(
    Act,
    st.sampled_from(["push"] * 3 + ["update"] * 3 + ["lookup"] * 3 + ["delete", "time"]),
    st.sampled_from(["plain", "said"]),
    st.lists(st.integers(-1, NUM_KEYS - 1), min_size=1, max_size=6),
    st.integers(0, 1 << 20),
)
limits = st.builds(
    Limit,
    max_rows=st.integers(4, MAX_ROWS),
    evict=st.sampled_from(POLICIES),
    ttl_s=st.sampled_from([None, 5.0]),
    admit_after=st.sampled_from([1, 1, 2]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(acts, min_size=1, max_size=40), limits, limits)
def test_the_numbered_changes_give_the_same_bank(run: list[Act], one: Limit, other: Limit) -> None:
    clock, journal = Clock(), Journal()
    with pytest.MonkeyPatch.context() as patch:
        for module in (evicting, limiter):
            patch.setattr(module, "time", clock)
        shard = limited({"plain": one, "said": other}, journal)
        for act in run:
            act.on(shard, clock)
            for name, limit in (("plain", one), ("said", other)):
                assert shard.table(name).num_rows <= (limit.max_rows or 0)
    replayed = journal.replayed()
    assert state_of(replayed) == state_of(shard)
    # Both go on alike: a snapshot of one is a snapshot of the other.
    assert replayed.stats().clocks == shard.stats().clocks


def test_a_run_of_readers_writers_and_time_is_told_by_its_changes() -> None:
    journal, clock = Journal(), Clock()
    kinds = {
        "plain": Limit(max_rows=MAX_ROWS, ttl_s=0.002),
        "said": Limit(max_rows=MAX_ROWS, evict="lowest_count", admit_after=2),
    }
    shard = limited(kinds, journal)
    failures: list[BaseException] = []

    def work(number: int, kinds: list[str]) -> None:
        rng = np.random.default_rng(number)
        try:
            for _ in range(150):
                Act(
                    str(rng.choice(kinds)),
                    str(rng.choice(["plain", "said"])),
                    rng.integers(-1, NUM_KEYS, size=4).tolist(),
                    int(rng.integers(1 << 20)),
                ).on(shard, clock)
                assert shard.table("plain").num_rows <= MAX_ROWS
                assert shard.table("said").num_rows <= MAX_ROWS
        except BaseException as error:
            failures.append(error)

    all_kinds = [["push"], ["push", "update", "delete"], ["lookup"], ["lookup", "time"]]
    threads = [
        threading.Thread(target=work, args=(number, mine)) for number, mine in enumerate(all_kinds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert journal.reasons() == {"limit", "expired"}
    assert state_of(journal.replayed()) == state_of(shard)
