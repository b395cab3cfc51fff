"""What threads that read and write one bank see of one another.

Rows are wide, so that copying one takes long enough to be caught in the middle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import author, create_rows, create_table, delete, push, update
from carls_jax.bank.initializers import constant
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_shard import TableShard

WIDTH = 4096
SGD = optimizer("sgd", learning_rate=1.0)
WIDE = TableSpec("wide", {name: Field((WIDTH,), optimizer=SGD) for name in ("x", "y")})
KEYS = np.arange(64)
ME = author(source="me")
DEADLINE_S = 60.0


@pytest.fixture
def shard() -> Shard:
    shard = Shard()
    shard.apply(create_table(WIDE))
    return shard


@contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[threading.Event]:
    """Runs works again and again, each in a thread, until the block ends; their errors are ours."""
    stop = threading.Event()

    def repeat(work: Callable[[], object]) -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(len(works)) as pool:
        repeating = [pool.submit(repeat, work) for work in works]
        try:
            yield stop
        finally:
            stop.set()
        for one in repeating:
            one.result(DEADLINE_S)


def read(shard: Shard, keys: np.ndarray = KEYS, table: str = "wide") -> pb.Lookup:
    fields = list(shard.table(table).spec.fields)
    return shard.lookup(pb.Lookup(table=table, fields=fields), keys)


# Torn rows


def update_constants(shard: Shard) -> Callable[[], object]:
    """Writes rows whose numbers, in both fields, are all the same."""
    numbers = iter(range(1 << 24))

    def work() -> None:
        rows = np.full((KEYS.size, WIDTH), next(numbers), np.float32)
        shard.apply(update("wide", KEYS, {"x": rows, "y": rows}, by=ME))

    return work


def push_constants(shard: Shard) -> Callable[[], object]:
    """Moves both fields of all rows by the same."""
    ones = np.ones((KEYS.size, WIDTH), np.float32)
    return lambda: shard.apply(push("wide", KEYS, {"x": ones, "y": ones}, by=ME))


def has_torn_row(shard: Shard) -> bool:
    rows = read(shard)
    both = np.concatenate([rows["x"], rows["y"]], axis=1)
    return bool((both != both[:, :1]).any())


WRITERS = {"update": update_constants, "push": push_constants}


@pytest.mark.parametrize("kind", WRITERS)
def test_no_row_is_seen_half_written(shard: Shard, kind: str) -> None:
    shard.apply(create_rows("wide", KEYS, by=ME))
    with meanwhile(WRITERS[kind](shard)):
        while shard.stats().sequence < 300:
            assert not has_torn_row(shard)


@pytest.mark.parametrize("kind", WRITERS)
def test_without_the_lock_torn_rows_are_seen(shard: Shard, kind: str) -> None:
    """The test above can fail."""
    shard.apply(create_rows("wide", KEYS, by=ME))
    shard.table("wide").lock = nullcontext()  # type: ignore[assignment]
    deadline = time.monotonic() + DEADLINE_S
    with meanwhile(WRITERS[kind](shard)):
        while not has_torn_row(shard):
            assert time.monotonic() < deadline, "the test does not see torn rows"


# Who waits for whom


def _other_table(shard: Shard) -> TableShard:
    shard.apply(create_table(TableSpec("other", {"z": Field()})))
    return shard.table("other")


def test_tables_do_not_wait_for_one_another(shard: Shard) -> None:
    other = _other_table(shard)
    rows = np.ones((KEYS.size, WIDTH), np.float32)
    with other.writer, other.lock, ThreadPoolExecutor(1) as pool:
        pool.submit(shard.apply, update("wide", KEYS, {"x": rows}, by=ME)).result(DEADLINE_S)
        assert pool.submit(read, shard).result(DEADLINE_S).found.all()


def test_a_reader_does_not_wait_for_a_change(shard: Shard) -> None:
    table = _other_table(shard)
    with ThreadPoolExecutor(2) as pool:
        with table.writer:
            waiting = pool.submit(shard.apply, create_rows("other", KEYS, by=ME))
            found = pool.submit(read, shard, KEYS, "other").result(DEADLINE_S).found
            assert not found.any()
            assert not waiting.done()
        assert waiting.result(DEADLINE_S).num_created == KEYS.size


def test_a_reader_gets_in_between_the_slices_of_a_change(shard: Shard) -> None:
    """While a change of many slices is applied a lookup is answered, with a part of it done."""
    table = _other_table(shard)
    keys = np.arange(100_000)
    first_slice, answered = threading.Event(), threading.Event()
    slices = table.slices

    def watched(num_rows: int) -> Iterator[slice]:
        for part in slices(num_rows):
            yield part
            if num_rows == keys.size and not first_slice.is_set():
                first_slice.set()
                assert answered.wait(DEADLINE_S)

    table.slices = watched  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(shard.apply, create_rows("other", keys, by=ME))
        assert first_slice.wait(DEADLINE_S)
        found = read(shard, keys[:: len(keys) - 1], "other").found
        answered.set()
        assert found.tolist() == [True, False]
        assert applying.result(DEADLINE_S).num_created == keys.size


# Creating and deleting


def test_threads_that_look_up_the_same_missing_keys_create_each_once(shard: Shard) -> None:
    spec = TableSpec("filled", {"z": Field((4,), init=constant(3.0))})
    shard.apply(create_table(spec))
    num_threads, num_rounds = 4, 30
    start = threading.Barrier(num_threads)

    def create(seed: int) -> int:
        created = 0
        for turn in range(num_rounds):
            keys = np.random.default_rng(seed).permutation(100) + 100 * turn
            start.wait(DEADLINE_S)
            request = pb.Lookup(table="filled", fields=["z"], create=True, reader=ME)
            rows = shard.lookup(request, keys)
            assert rows.found.all()
            assert (rows["z"] == 3.0).all()
            created += rows.num_created
        return created

    with ThreadPoolExecutor(num_threads) as pool:
        assert sum(pool.map(create, range(num_threads))) == 100 * num_rounds
    stats = shard.stats().tables["filled"]
    assert stats.num_rows == stats.counters["rows_created"] == 100 * num_rounds
    assert stats.counters["lookup_calls"] == num_threads * num_rounds
    assert stats.counters["rows_looked_up"] == num_threads * num_rounds * 100


def write_and_delete(shard: Shard, seed: int) -> Callable[[], object]:
    """Deletes some rows and writes others, each with its own key as values."""
    generator = np.random.default_rng(seed)

    def work() -> None:
        leaving, coming = generator.choice(200, (2, 40), replace=False)
        shard.apply(delete("kept", leaving, by=ME))
        values = np.repeat(coming[:, None], 256, axis=1).astype(np.float32)
        shard.apply(update("kept", coming, {"z": values}, by=ME))

    return work


def test_a_slot_that_is_used_again_never_shows_another_keys_values(shard: Shard) -> None:
    spec = TableSpec("kept", {"z": Field((256,), init=constant(-1.0))}, max_rows=200)
    shard.apply(create_table(spec))
    table = shard.table("kept")
    keys = np.arange(200)
    scan = pb.Scan(table="kept", fields=["z"], num_rows=1000)
    with meanwhile(*(write_and_delete(shard, seed) for seed in range(2))):
        while table.counts.read().get("rows_deleted", 0) < 5000:
            rows = read(shard, keys, "kept")
            assert (rows["z"] == np.where(rows.found, keys, 0)[:, None]).all()
            scanned, _ = shard.scan(scan)
            assert (scanned["z"] == scanned.keys[:, None]).all()
            assert np.unique(scanned.keys).size == scanned.keys.size
    assert table.used_slots <= 200
    assert table.num_rows == table.live_slots().size == int(read(shard, keys, "kept").found.sum())


def test_counts_are_told_while_authors_and_tables_come(shard: Shard) -> None:
    shard.apply(create_table(TableSpec("said", {"z": Field()}, per_source=True)))
    numbers = iter(range(1 << 20))

    def write() -> None:
        source = f"job/{next(numbers) % 100}"
        change = update(
            "said", KEYS, {"z": np.ones(KEYS.size, np.float32)}, by=author(source=source)
        )
        shard.apply(change)

    def make() -> None:
        shard.apply(create_table(TableSpec(f"t{next(numbers) % 20}", {"z": Field()})))

    request = pb.Lookup(table="said", fields=["z"], sources=["*"], metadata=["source"])
    with meanwhile(write, make):
        for _ in range(50):
            assert shard.stats().tables["said"].num_bytes >= 0
            rows = shard.lookup(request, KEYS[:4])
            assert rows.sources == tuple(sorted(rows.sources))
            for number, source in enumerate(rows.sources):
                assert set(rows.source["z"][:, number]) <= {"", source}
    final = shard.stats().tables["said"]
    assert sum(final.rows_written.values()) == final.counters["rows_updated"]
