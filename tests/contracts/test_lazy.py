"""What lazy fields promise, asked of every kind of bank: readers find all that was pushed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import requests
from carls_jax.bank.interface import Bank
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table

KEYS = np.array([3, 1, 4, 0, 5, 9, 2, 6])  # on all shards
SGD = optimizer("sgd", learning_rate=1.0)


def spec_of(lazy: Lazy, name: str = "lazy") -> TableSpec:
    fields = {
        "w": Field((2,), optimizer=SGD, history=2, lazy=lazy),
        "near": Field((), dtype="int64"),
    }
    return TableSpec(name, fields)


@pytest.fixture
def mean(bank: Bank) -> Table:
    return bank.table(spec_of(Lazy(max_wait_s=1e6)))


def ones(keys: np.ndarray, size: float = 1.0) -> dict[str, np.ndarray]:
    return {"w": np.full((len(keys), 2), size, np.float32)}


def test_a_lookup_finds_the_mean_of_what_was_pushed_since_the_last_one(mean: Table) -> None:
    for size in (1.0, 2.0, 6.0):
        assert mean.push(KEYS, ones(KEYS, size), step=int(size)).num_created in (0, 8)
    for _ in range(2):
        rows = mean.lookup(KEYS, fields=("w",), metadata=METADATA)
        assert (rows["w"] == -3).all()
        assert rows.version["w"].tolist() == [1] * 8
        assert rows.step["w"].tolist() == [6] * 8
    mean.push(KEYS[:2], ones(KEYS[:2]), step=7)
    rows = mean.lookup(KEYS, fields=("w",), metadata=("version",))
    assert_array_equal(rows["w"][:, 0], [-4, -4, *[-3] * 6])
    assert rows.version["w"].tolist() == [2, 2, *[1] * 6]


def test_every_push_is_found_by_the_next_lookup_of_any_client(
    connected: Callable[[], Bank],
) -> None:
    """Also where the reader has the rows in its own memory."""
    writer = connected().table(spec_of(Lazy(combine="sum")))
    reader = connected().table(spec_of(Lazy(combine="sum")))
    writer.update(KEYS, {"w": np.zeros((8, 2)), "near": KEYS})
    expected = np.zeros(8)
    for number in range(20):
        place = number % 8
        writer.push(KEYS[[place]], ones(KEYS[[place]]))
        expected[place] -= 1
        assert_array_equal(reader.lookup(KEYS)["w"], np.stack([expected, expected], axis=1))


def test_a_push_counts_once_for_each_key_and_comes_back_from_a_scan_and_a_history(
    mean: Table,
) -> None:
    mean.push([3, 3, 1], ones(np.zeros(3)), step=1)
    mean.push([3], ones(np.zeros(1), 4.0), step=2)
    table = mean.to_numpy(fields=("w",))
    assert table["keys"].tolist() == [1, 3]
    assert_array_equal(table["w"], [[-1, -1], [-3, -3]])
    mean.push([3], ones(np.zeros(1), 1.0), step=3)
    (writes,) = mean.history([3], "w")
    assert [(one.version, one.step, one.value.tolist()) for one in writes] == [
        (2, 3, [-4.0, -4.0]),
        (1, 2, [-3.0, -3.0]),
    ]


def test_a_chain_of_lookups_ends_in_what_was_pushed(bank: Bank, mean: Table) -> None:
    mean.update(KEYS, {"near": (KEYS + 1) % 10})
    mean.push(KEYS, ones(KEYS))
    links = [
        requests.lookup(mean.spec, me="me", fields=("near",)),
        requests.lookup(mean.spec, me="me", fields=("w",)),
    ]
    followed = bank.follow(pb.Follow(links=links), np.array([3, 0, 3]))
    assert followed.rows.keys.tolist() == [1, 4]
    assert_array_equal(followed.rows["w"], [[-1, -1], [-1, -1]])


def test_outliers_are_left_out_and_counted(bank: Bank) -> None:
    table = bank.table(spec_of(Lazy(reject_above=3.0, clip_row_norm=1.0), "strict"))
    for size in (0.5, 0.5, 100.0):
        table.push(KEYS, ones(KEYS, size))
    assert table.stats().counters["gradients_rejected"] == 8
    assert_array_equal(table.lookup(KEYS)["w"], ones(KEYS, -0.5)["w"])
    assert table.stats().counters["rows_flushed"] == 8


def test_a_snapshot_keeps_what_is_gathered(rooted_bank: Bank) -> None:
    table = rooted_bank.table(spec_of(Lazy(max_wait_s=1e6)))
    table.push(KEYS, ones(KEYS, 1.0))
    rooted_bank.snapshot("gathered")
    table.push(KEYS, ones(KEYS, 9.0))
    assert (table.lookup(KEYS)["w"] == -5).all()
    rooted_bank.restore("gathered")
    table.push(KEYS, ones(KEYS, 3.0))
    rows = table.lookup(KEYS, metadata=("version",))
    assert (rows["w"] == -2).all()
    assert (rows.version["w"] == 1).all()


def test_rows_that_nobody_reads_are_flushed_in_time(bank: Bank) -> None:
    """No lookup, only counts."""
    table = bank.table(spec_of(Lazy(max_wait_s=0.02), "soon"))
    table.push(KEYS, ones(KEYS))
    counters = table.stats().counters
    for _ in range(100_000):
        counters = table.stats().counters
        if counters.get("rows_flushed") == 8:
            break
    assert counters["rows_flushed"] == 8
    assert counters.get("lookup_calls", 0) == 0
