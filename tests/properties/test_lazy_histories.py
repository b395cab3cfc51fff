"""When gathered gradients are applied is part of the changes, whoever reads and whatever the time.

A run is recorded as the numbered changes, and these make the same bank again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.schedules import schedule
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.upkeep import Upkeep
from tests.properties.test_histories import Kept, kept, read_back, state_of

RATE = schedule("cosine_decay", init_value=0.3, decay_steps=9)
ADAM = optimizer("adam", learning_rate=RATE)
NUM_KEYS = 12


def fields(max_wait_s: float) -> dict[str, Field]:
    careful = Lazy(max_wait_s=max_wait_s, clip_row_norm=2.0, reject_above=1.5)
    return {
        "w": Field((3,), optimizer=ADAM, history=2, lazy=careful),
        "s": Field(
            optimizer=optimizer("adagrad", learning_rate=0.1),
            dtype="float64",
            lazy=Lazy(max_wait_s=2 * max_wait_s, combine="sum"),
        ),
        "e": Field(optimizer=ADAM),
    }


def specs(max_wait_s: float) -> list[TableSpec]:
    return [
        TableSpec("plain", fields(max_wait_s), max_rows=64),
        TableSpec("said", fields(max_wait_s), per_source=True, max_rows=64),
    ]


class Recording(Shard):
    """Keeps what it gives a number, as a journal would."""

    def __init__(self, max_wait_s: float) -> None:
        super().__init__()
        self.journal: dict[int, Kept] = {}
        for spec in specs(max_wait_s):
            self.apply(changes.create_table(spec))

    def _accept(self, change: Change) -> int:
        sequence = super()._accept(change)
        self.journal[sequence] = kept(change)
        return sequence

    def kinds(self) -> list[str]:
        return [read_back(one).kind for _, one in sorted(self.journal.items())]

    def replayed(self) -> Shard:
        shard = Shard()
        for sequence, one in sorted(self.journal.items()):
            assert shard.apply(read_back(one)).sequence == sequence
        return shard


class Act:
    """Is one call to a shard."""

    def __init__(self, kind: str, table: str, keys: list[int], seed: int, step: int) -> None:
        self.kind, self.table, self.seed, self.step = kind, table, seed, step
        self.keys = np.array(keys, np.int64)

    def __repr__(self) -> str:
        return f"{self.kind}({self.table}, {self.keys.tolist()}, {self.seed}, {self.step})"

    def on(self, shard: Shard) -> None:
        rng = np.random.default_rng(self.seed)
        n = self.keys.size
        values = {
            "w": (rng.standard_normal((n, 3)) * 3.0 ** rng.integers(-1, 3)).astype(np.float32),
            "s": rng.standard_normal(n),
            "e": rng.standard_normal(n).astype(np.float32),
        }
        names = [name for name in values if rng.integers(2)] or ["w"]
        chosen = {name: values[name] for name in names}
        by = author(
            step=self.step, source=["ann", "bob"][self.seed % 2], updated_at=10.0 + self.step
        )
        lookup = pb.Lookup(
            table=self.table, fields=names, create=bool(self.seed % 2), reader=by, sources=["*"]
        )
        calls: dict[str, Callable[[], Any]] = {
            "push": lambda: shard.apply(changes.push(self.table, self.keys, chosen, by=by)),
            "update": lambda: shard.apply(
                changes.update(self.table, self.keys, chosen, by=by, if_newer=bool(self.seed % 3))
            ),
            "delete": lambda: shard.apply(changes.delete(self.table, self.keys, by=by)),
            "lookup": lambda: shard.lookup(lookup, self.keys),
            "scan": lambda: shard.scan(pb.Scan(table=self.table, fields=names, num_rows=NUM_KEYS)),
            "history": lambda: shard.history(
                pb.History(table=self.table, field="w", source="ann"), self.keys
            ),
            "time": lambda: shard.flush_overdue(10.0 + self.step),
        }
        calls[self.kind]()


acts = st.builds(
    Act,
    st.sampled_from(["push"] * 4 + ["update", "delete", "lookup", "scan", "history", "time"]),
    st.sampled_from(["plain", "said"]),
    st.lists(st.integers(-1, NUM_KEYS - 1), min_size=1, max_size=6),
    st.integers(0, 1 << 20),
    st.integers(0, 9),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(acts, min_size=1, max_size=25))
def test_the_numbered_changes_give_the_same_bank_without_its_readers(run: list[Act]) -> None:
    shard = Recording(2.0)
    for act in run:
        act.on(shard)
    assert state_of(shard.replayed()) == state_of(shard)


@settings(max_examples=60, deadline=None)
@given(st.lists(acts, min_size=1, max_size=15), st.integers(0, 1 << 10))
def test_how_many_rows_are_flushed_at_once_makes_no_difference(run: list[Act], seed: int) -> None:
    together, apart = Recording(1e9), Recording(1e9)
    for act in run:
        act.on(together)
        act.on(apart)
    order = np.random.default_rng(seed).permutation(NUM_KEYS)
    request = pb.Lookup(table="plain", fields=["w", "s"])
    rows = together.lookup(request, order)
    for place, key in enumerate(order):
        alone = apart.lookup(request, np.array([key]))
        for name in ("w", "s"):
            assert_array_equal(alone[name][0], rows[name][place])


def test_a_run_with_readers_writers_and_a_timer_is_told_by_its_changes() -> None:
    """Threads push, update, look up and scan while a timer flushes."""
    shard = Recording(0.001)
    timer = Upkeep(shard)
    timer.wake()
    failures: list[BaseException] = []

    def work(number: int, kinds: list[str]) -> None:
        rng = np.random.default_rng(number)
        try:
            for step in range(150):
                Act(
                    str(rng.choice(kinds)),
                    str(rng.choice(["plain", "said"])),
                    rng.integers(-1, NUM_KEYS, size=6).tolist(),
                    int(rng.integers(1 << 20)),
                    step,
                ).on(shard)
        except BaseException as error:
            failures.append(error)

    kinds = [["push"], ["push", "push", "update", "delete"], ["lookup", "scan"], ["lookup"]]
    threads = [
        threading.Thread(target=work, args=(number, mine)) for number, mine in enumerate(kinds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timer.stop()
    assert not failures
    assert {"push", "update", "flush"} <= set(shard.kinds())
    assert state_of(shard.replayed()) == state_of(shard)
