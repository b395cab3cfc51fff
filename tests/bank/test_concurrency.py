"""What threads that read and write one bank see of one another.

Rows are wide, so that copying one takes long enough to be caught in the middle.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import author, create_rows, create_table, delete, push, update
from carls_jax.bank.index import EMPTY, MASK, SEQUENCE, index_of
from carls_jax.bank.initializers import constant
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.row_reader import RowReader
from carls_jax.bank.row_writer import RowWriter
from carls_jax.bank.rows import Rows
from carls_jax.bank.server import BankServer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_memory import attach
from carls_jax.bank.table_shard import TableShard
from carls_jax.keys import PADDING

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


def read(shard: Shard, keys: np.ndarray = KEYS, table: str = "wide") -> Rows:
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


def create_constants(shard: Shard) -> Callable[[], object]:
    """Deletes rows, and makes them anew by writing both fields."""
    work = update_constants(shard)

    def both() -> None:
        shard.apply(delete("wide", KEYS[::2], by=ME))
        work()

    return both


def is_torn(rows: Rows) -> bool:
    both = np.concatenate([rows["x"], rows["y"]], axis=1)
    return bool((both != both[:, :1]).any())


class SharedReader:
    """Reads a shard's table as another process does: in a mapping that it cannot write."""

    def __init__(self, shard: Shard) -> None:
        memory = shard.table("wide").memory
        arrays = attach(memory.descriptor, memory.parts)
        self._reader, self._index = RowReader(arrays), index_of(arrays)

    def read(self, keys: np.ndarray = KEYS) -> Rows:
        columns = "value/x", "value/y"
        read = self._reader.read(keys, columns, self._index, longest_s=DEADLINE_S)
        assert read is not None
        (x, y), found = read
        return Rows(keys, {"x": x, "y": y}, found, {"x": found, "y": found})


WRITERS = {"update": update_constants, "push": push_constants, "create": create_constants}
READERS = {
    "here": lambda shard: lambda: read(shard),
    "in shared memory": lambda shard: SharedReader(shard).read,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_no_row_is_seen_half_written(shard: Shard, kind: str, reader: str) -> None:
    """Nor fields of one row that were not written together, though each has its own metadata."""
    shard.apply(create_rows("wide", KEYS, by=ME))
    read_all = READERS[reader](shard)
    with meanwhile(WRITERS[kind](shard)):
        while shard.stats().sequence < 200:
            assert not is_torn(read_all())


def write_without_guards(
    patch: pytest.MonkeyPatch, shard: Shard
) -> tuple[Callable[[], object], Callable[[], Rows]]:
    """Guards that are another memory say nothing of the rows."""
    table = shard.table("wide")
    apart = np.zeros_like(table.guards[:64])
    patch.setattr(table, "_writer", RowWriter(table.columns, apart))
    return update_constants(shard), lambda: read(shard)


def read_without_guards(
    patch: pytest.MonkeyPatch, shard: Shard
) -> tuple[Callable[[], object], Callable[[], Rows]]:
    table = shard.table("wide")
    apart = {**table.memory.arrays, "guards": np.zeros_like(table.guards[:64])}
    patch.setattr(table, "_reader", RowReader(apart))
    return update_constants(shard), lambda: read(shard)


@pytest.mark.parametrize("unguarded", [write_without_guards, read_without_guards])
def test_without_guards_torn_rows_are_seen(
    shard: Shard, unguarded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    shard.apply(create_rows("wide", KEYS, by=ME))
    work, read_all = unguarded(monkeypatch, shard)
    deadline = time.monotonic() + DEADLINE_S
    with meanwhile(work):
        while not is_torn(read_all()):
            assert time.monotonic() < deadline, "the test does not see torn rows"


# A process that reads while this one writes. It says whether it ever saw a torn or a missing row.
READER = """
import sys
import numpy as np
from carls_jax.bank.connect import connect

with connect(sys.argv[1]) as client:
    table, keys = client.table("wide"), np.arange(64)
    table.lookup(keys)
    assert client._shared._tables, "the memory is not shared"
    print("ready", flush=True)
    num_read = num_torn = num_missing = 0
    distinct = set()
    while num_read < 200 or len(distinct) < 20:
        rows = table.lookup(keys)
        both = np.concatenate([rows["x"], rows["y"]], axis=1)
        num_torn += int((both != both[:, :1]).any())
        num_missing += int(not rows.found.all())
        distinct.add(float(both[0, 0]))
        num_read += 1
    print(num_torn, num_missing, flush=True)
"""


def test_another_process_sees_whole_rows_and_misses_none(tmp_path: Path) -> None:
    """While rows are written, and others come and go so that the index is remade."""
    with LocalBank() as bank, BankServer(bank, f"unix:{tmp_path}/s") as server:
        table = bank.table(WIDE)
        table.update(KEYS, {name: np.zeros((KEYS.size, WIDTH)) for name in ("x", "y")})
        with subprocess.Popen(
            [sys.executable, "-c", READER, server.address], stdout=subprocess.PIPE, text=True
        ) as reading:
            assert reading.stdout is not None
            assert reading.stdout.readline() == "ready\n"
            shard = bank._open()
            with meanwhile(update_constants(shard), come_and_go(shard, "wide")):
                assert reading.stdout.readline() == "0 0\n"
            assert reading.wait(20) == 0


# Missing rows


def come_and_go(shard: Shard, table: str = "other") -> Callable[[], object]:
    """Adds and removes rows beside those of `KEYS`."""
    starts = iter(range(1000, 1 << 40, 512))

    def work() -> None:
        keys = np.arange(512) + next(starts)
        shard.apply(create_rows(table, keys, by=ME))
        shard.apply(delete(table, keys, by=ME))

    return work


def grow(shard: Shard) -> Callable[[], object]:
    """Adds many rows, so that partitions of the index are split."""
    starts = iter(range(1000, 1 << 40, 20_000))

    def work() -> None:
        keys = np.arange(20_000) + next(starts)
        shard.apply(create_rows("other", keys, by=ME))

    return work


def num_remade(shard: Shard) -> int:
    return int(shard.table("other").memory.arrays["index/state"][SEQUENCE]) // 2


def finds_all(shard: Shard) -> bool:
    rows = read(shard, KEYS, "other")
    return bool(rows.found.all() and (rows["z"] == KEYS).all())


@pytest.mark.parametrize("beside", [come_and_go, grow])
def test_a_row_is_not_missed_while_others_come_and_go(
    shard: Shard, beside: Callable[[Shard], Callable[[], object]]
) -> None:
    _other_table(shard)
    shard.apply(update("other", KEYS, {"z": KEYS.astype(np.float32)}, by=ME))
    with meanwhile(beside(shard)):
        while num_remade(shard) < 40:
            assert finds_all(shard)


def test_if_the_index_did_not_say_that_it_is_remade_rows_would_be_missed(shard: Shard) -> None:
    table = _other_table(shard)
    shard.apply(update("other", KEYS, {"z": KEYS.astype(np.float32)}, by=ME))
    memory = table._indexes[""].memory
    # As in the middle of being remade: emptied, and not filled yet.
    memory.state[SEQUENCE] += 1
    memory.cells[: memory.state[MASK] + 1] = EMPTY
    assert table._reader.read(KEYS, ("value/z",), memory, longest_s=0.01) is None
    memory.state[SEQUENCE] = 0
    missed = table._reader.read(KEYS, ("value/z",), memory, longest_s=0.01)
    assert missed is not None
    assert not missed[1].any()


def test_padding_is_never_found(shard: Shard) -> None:
    """Though slots without a row have it as their key."""
    _other_table(shard)
    keys = np.where(np.arange(512) % 2, PADDING, np.arange(512) % 64)
    shard.apply(update("other", KEYS, {"z": KEYS.astype(np.float32)}, by=ME))
    with meanwhile(come_and_go(shard)):
        while num_remade(shard) < 40:
            assert (read(shard, keys, "other").found == (keys != PADDING)).all()


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
