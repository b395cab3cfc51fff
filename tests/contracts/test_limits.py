"""What a table's limit promises, asked of every kind of bank. Each shard keeps to it by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from carls_jax.bank.interface import Bank
from carls_jax.bank.limits import Limit
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.errors import BankFullError, ConfigError
from carls_jax.keys import shard_of

from .conftest import NUM_SHARDS

FIELDS = {"x": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0)), "n": Field((), "int64")}


@pytest.fixture
def num_shards(kind: str) -> int:
    return NUM_SHARDS if kind == "sharded" else 1


def limited(bank: Bank, limit: Limit, name: str = "limited") -> Table:
    return bank.table(TableSpec(name, FIELDS, limit=limit))


def write(table: Table, keys: np.ndarray) -> int:
    values = np.repeat(keys[:, None], 2, axis=1).astype(np.float32)
    return table.update(keys, {"x": values, "n": keys}).num_evicted


@pytest.mark.parametrize("policy", ["least_recent", "lowest_count", "oldest_step"])
def test_a_stream_of_keys_never_fills_a_table(bank: Bank, num_shards: int, policy: str) -> None:
    table = limited(bank, Limit(max_rows=100, evict=policy))  # type: ignore[arg-type]
    num_evicted = 0
    for start in range(0, 1000 * num_shards, 50):
        num_evicted += write(table, np.arange(start, start + 50))
        assert len(table) <= 100 * num_shards
    counters = table.stats().counters
    assert counters["rows_evicted"] == num_evicted == 1000 * num_shards - len(table)
    assert table.stats().spec.limit == Limit(max_rows=100, evict=policy)  # type: ignore[arg-type]
    held = table.to_numpy()
    assert (held["x"] == held["keys"][:, None]).all()
    assert table.lookup(held["keys"]).found.all()


def test_rows_that_are_looked_up_stay(connected: Callable[[], Bank], num_shards: int) -> None:
    """By whatever way: such a table is not read where the bank would not notice."""
    writer, reader = (limited(connected(), Limit(max_rows=50)) for _ in range(2))
    wanted = np.arange(10)
    write(writer, wanted)
    for start in range(100, 100 + 500 * num_shards, 10):
        assert reader.lookup(wanted, fields=("n",)).found.all()
        write(writer, np.arange(start, start + 10))
    assert writer.stats().counters["rows_evicted"] > 100
    assert not reader.lookup(np.arange(100, 110)).found.any()


def test_a_change_of_more_rows_than_the_limit_is_refused(bank: Bank, num_shards: int) -> None:
    table = limited(bank, Limit(max_rows=5))
    keys = np.flatnonzero(shard_of(np.arange(100), num_shards) == 0)
    write(table, keys[:5])
    with pytest.raises(BankFullError, match="limited to 5 rows in a shard"):
        write(table, keys[5:11])
    assert table.lookup(keys[:5]).found.all()
    with pytest.raises(BankFullError):
        table.lookup(keys[5:11], create=True)


def test_a_limit_of_less_than_a_row_is_refused(bank: Bank) -> None:
    with pytest.raises(ConfigError, match="max_bytes=10; a row takes"):
        limited(bank, Limit(max_bytes=10))
    assert "limited" not in bank.tables()


def test_keys_are_let_in_when_they_were_seen_often_enough(bank: Bank) -> None:
    table = limited(bank, Limit(admit_after=2))
    keys = np.array([3, 1, 4, 0, 5, 9, 2, 6])  # on all shards
    applied = table.push(keys, {"x": np.ones((8, 2), np.float32)})
    assert (applied.num_created, applied.num_not_admitted) == (0, 8)
    rows = table.lookup([*keys, 77], create=True)
    assert rows.found.tolist() == [True] * 8 + [False]
    assert (rows["x"] == 0).all()
    assert table.push([77], {"x": [[1.0, 2.0]]}).num_created == 1
    assert table.stats().counters["rows_not_admitted"] == 9


def test_rows_that_nobody_writes_go(bank: Bank) -> None:
    table = limited(bank, Limit(ttl_s=0.02))
    kept = limited(bank, Limit(ttl_s=1e6), "kept")
    for one in (table, kept):
        write(one, np.arange(20))
    deadline = threading.Event()
    for _ in range(3000):
        if not len(table):
            break
        deadline.wait(0.01)
    assert not table.lookup(np.arange(20)).found.any()
    assert table.stats().counters["rows_expired"] == 20
    assert kept.lookup(np.arange(20)).found.all()


def test_a_limit_outlives_a_snapshot(rooted_bank: Bank, num_shards: int) -> None:
    table = limited(rooted_bank, Limit(max_rows=20))
    for start in range(0, 200 * num_shards, 20):
        write(table, np.arange(start, start + 20))
    rooted_bank.snapshot("full")
    held = table.to_numpy()["keys"]
    write(table, np.arange(10_000, 10_000 + 20))
    rooted_bank.restore("full")
    assert sorted(table.to_numpy()["keys"]) == sorted(held)
    for start in range(20_000, 20_000 + 200 * num_shards, 20):
        write(table, np.arange(start, start + 20))
        assert len(table) <= 20 * num_shards
