"""Lookups go on with the rows seen last of servers that are away, and fresh ones of the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Bank, Field, TableSpec
from carls_jax.errors import BankUnavailableError, NonFiniteError
from carls_jax.keys import shard_of
from carls_jax.training import WhenAway, outlast
from carls_jax.training.away.last_seen import ALL, RememberedRows
from carls_jax.training.away.remembering import RememberingBank
from carls_jax.training.fetching import Fetcher
from carls_jax.training.plan import Lookup

from .conftest import Server

KEYS = np.arange(40)
ONES = {"x": -np.ones((40, 2))}  # adds 1 to each row
NODES = TableSpec("nodes", {"next": Field((2,), dtype="int64"), "z": Field()})
OPINIONS = TableSpec("opinions", {"p": Field()}, per_source=True)


def remembering(held: ExitStack, bank: Bank, **bounds: int) -> RememberingBank:
    outlasting = outlast(bank, WhenAway("last_seen", **bounds))
    assert isinstance(outlasting, RememberingBank)
    held.callback(outlasting.close)
    return outlasting


@pytest.fixture
def seen(held: ExitStack, bank: Bank) -> RememberingBank:
    return remembering(held, bank)


@pytest.fixture
def seen_of_shards(held: ExitStack, sharded: Bank) -> RememberingBank:
    return remembering(held, sharded)


def test_rows_are_as_they_were_seen_last_and_say_how_old_they_are(
    server: Server, seen: RememberingBank
) -> None:
    seen.as_of = lambda: 4
    table = seen.table("t")
    table.update(KEYS[:20], {"label": KEYS[:20] + 1.0}, step=3)
    fresh = table.lookup(KEYS)
    server.held.table("t").update(KEYS, {"label": -np.ones(40)}, step=8)
    server.stop()
    rows = table.lookup([5, 30, -1, 5])
    assert isinstance(rows, RememberedRows)
    assert not isinstance(fresh, RememberedRows)
    assert_array_equal(rows["label"], [6, 0, 0, 6])
    assert_array_equal(rows.found, [True, False, False, True])
    assert_array_equal(rows.step["label"], [3, -1, -1, 3])
    assert_array_equal(rows.as_of, [4, -1, -1, 4])
    totals = seen.totals()
    assert (totals["rows_last_seen"], totals["rows_never_seen"]) == (2, 1)
    server.start()
    seen.settle(be_back=True)
    assert_array_equal(table.lookup([5, 30])["label"], [-1, -1])


def test_rows_that_are_too_old_for_the_reader_are_not_found(
    server: Server, seen: RememberingBank
) -> None:
    table = seen.table("t")
    for step in (1, 5):
        table.update([step], {"label": [1.0]}, step=step)
    asked = {"fields": ("label",), "max_age_steps": 4}
    assert table.lookup([1, 5, 9], now=5, metadata=(), **asked).found.tolist() == [
        True,
        True,
        False,
    ]
    server.stop()
    for now, found in ((5, [True, True]), (6, [False, True]), (10, [False, False])):
        rows = table.lookup([1, 5], now=now, metadata=(), **asked)
        assert rows.found.tolist() == found
        assert rows["label"].tolist() == [float(one) for one in found]
    table.update([3], {"label": [0.0]}, step=9)  # kept, but the reader now knows of step 9
    assert table.lookup([1, 5], metadata=(), **asked).found.tolist() == [False, True]


def test_a_row_that_was_deleted_is_not_remembered(server: Server, seen: RememberingBank) -> None:
    table = seen.table("t")
    table.update(KEYS, {"label": np.ones(40)})
    table.lookup(KEYS)
    table.delete([3])
    table.lookup([3])
    server.stop()
    assert table.lookup([3, 4]).found.tolist() == [False, True]


def test_of_a_shard_that_is_there_rows_are_fresh_and_written(
    servers: list[Server], seen_of_shards: RememberingBank
) -> None:
    table = seen_of_shards.table("t")
    is_away = shard_of(KEYS, 2) == 1
    table.update(KEYS, {"label": np.ones(40)})
    table.push(KEYS, ONES)
    table.lookup(KEYS)
    servers[1].stop()
    servers[0].held.table("t").update(KEYS[~is_away], {"label": 2 * np.ones((~is_away).sum())})
    for _ in range(2):  # when the absence is found out, and when it is known
        rows = table.lookup(KEYS)
        assert isinstance(rows, RememberedRows)
        assert rows.found.all()
        assert_array_equal(rows["label"], np.where(is_away, 1, 2))
        assert_array_equal(rows.as_of == ALL, ~is_away)
    for _ in range(3):
        table.push(KEYS, ONES)
    assert_array_equal(table.lookup(KEYS)["x"][:, 0], np.where(is_away, 1, 4))
    assert not seen_of_shards.is_settled
    servers[1].start()
    seen_of_shards.settle(be_back=True)
    assert_array_equal(table.lookup(KEYS)["x"][:, 0], np.full(40, 4))


def test_all_shards_may_be_away(servers: list[Server], seen_of_shards: RememberingBank) -> None:
    table = seen_of_shards.table("t")
    table.push(KEYS, ONES)
    table.lookup(KEYS)
    for server in servers:
        server.stop()
    assert_array_equal(table.lookup(KEYS)["x"][:, 0], np.ones(40))
    table.push(KEYS, ONES)
    for server in servers:
        server.start()
    seen_of_shards.settle(be_back=True)
    assert_array_equal(table.lookup(KEYS)["x"][:, 0], np.full(40, 2))


def test_a_chain_goes_on_from_rows_of_before(
    servers: list[Server], seen_of_shards: RememberingBank
) -> None:
    keys = np.arange(100, 140)
    nodes = seen_of_shards.table(NODES)
    nodes.update(keys, {"next": np.stack([keys - 100, keys - 99], 1), "z": np.zeros(40)}, step=1)
    nodes.update(range(41), {"z": np.arange(41.0)}, step=2)
    fetch = Fetcher({"next": Lookup(NODES, "next", keys="id").then("z")}, {}, seen_of_shards)
    batch = {"id": keys}
    before = fetch(batch, 3)

    def moved() -> int:
        lookups = [one for one in seen_of_shards.ledger.rows() if one["direction"] == "lookup"]
        return sum(one["num_rows"] for one in lookups)

    # Only what the bank tells is moved.
    is_away = shard_of(keys, 2) == 1
    ends_away = shard_of(np.arange(41), 2) == 1
    assert moved() == 40 + 41
    servers[1].stop()
    fetch(batch, 4)
    assert moved() == 40 + 41 + (~is_away).sum() + (~ends_away).sum()
    servers[0].stop()
    after = fetch(batch, 5)
    assert_array_equal(after.known["next"]["z"], np.stack([keys - 100, keys - 99], 1))
    assert_array_equal(after.known["next"]["z"], before.known["next"]["z"])
    assert_array_equal(after.known["next"].mask, before.known["next"].mask)
    assert_array_equal(after.known["next"].age["z"], np.full((40, 2), 3))
    assert (before.num_moved, after.num_moved) == (41, 0)
    assert moved() == 40 + 41 + (~is_away).sum() + (~ends_away).sum()


def test_opinions_of_authors_are_remembered(
    servers: list[Server], seen_of_shards: RememberingBank
) -> None:
    table = seen_of_shards.table(OPINIONS)
    table.update(KEYS, {"p": np.ones(40)}, source="a")
    table.update(KEYS, {"p": 2 * np.ones(40)}, source="b")
    fresh = table.lookup(KEYS)
    is_away = shard_of(KEYS, 2) == 1
    servers[1].stop()
    servers[0].held.table("opinions").update(
        KEYS[~is_away], {"p": 3 * np.ones((~is_away).sum())}, source="c"
    )
    rows = table.lookup(KEYS)
    assert fresh.sources == ("a", "b")
    assert rows.sources == ("a", "b", "c")
    assert_array_equal(rows["p"][is_away], [[1, 2, 0]] * is_away.sum())
    assert_array_equal(rows["p"][~is_away], [[1, 2, 3]] * (~is_away).sum())
    assert_array_equal(rows.found[:, 2], ~is_away)


def test_what_needs_the_bank_itself_fails(server: Server, seen: RememberingBank) -> None:
    table = seen.table("t")
    server.stop()
    assert not table.lookup(KEYS).found.any()
    for call in (lambda: next(table.scan()), seen.stats, lambda: seen.snapshot("s")):
        with pytest.raises(BankUnavailableError, match="the bank is away"):
            call()


def test_what_the_server_would_refuse_is_refused_at_once(
    server: Server, seen: RememberingBank
) -> None:
    table = seen.table("t")
    server.stop()
    table.push(KEYS, ONES)
    for write in (
        lambda: table.push([1], {"x": [[np.nan, 0.0]]}),
        lambda: table.update([1], {"label": [np.inf]}),
    ):
        with pytest.raises(NonFiniteError):
            write()
    assert seen.totals()["changes_kept"] == 1


def test_metrics_tell_what_an_absence_costs(server: Server, seen: RememberingBank) -> None:
    table = seen.table("t")
    table.push(KEYS, ONES)
    table.lookup(KEYS)
    assert seen.take_line() == {}
    server.stop()
    table.push(KEYS, ONES)
    table.lookup(np.arange(50))
    line = seen.take_line()
    assert line.pop("away/seconds") > 0
    assert line == {
        "away/times": 1,
        "away/changes_kept": 1,
        "away/changes_waiting": 1,
        "away/changes_dropped": 0,
        "away/rows_dropped": 0,
        "away/changes_refused": 0,
        "away/rows_last_seen": 40,
        "away/rows_never_seen": 10,
    }
    server.start()
    seen.settle(be_back=True)
    line = seen.take_line()
    assert (line["away/times"], line["away/changes_kept"], line["away/changes_waiting"]) == (
        0,
        0,
        0,
    )


def test_lookups_of_several_threads_never_get_the_wrong_rows(
    servers: list[Server], seen_of_shards: RememberingBank
) -> None:
    table = seen_of_shards.table("t")
    keys = np.arange(500)
    table.update(keys, {"label": keys.astype(float)})
    table.lookup(keys)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            some = rng.choice(keys, 64)
            rows = table.lookup(some)
            assert rows.found.all()
            assert_array_equal(rows["label"], some)

    with ThreadPoolExecutor(3) as threads:
        reads = [threads.submit(read, seed) for seed in range(3)]
        for server in (*servers, *servers):
            server.stop()
            server.start()
        for one in reads:
            one.result()


def test_closing_passes_calls_on(
    servers: list[Server], seen_of_shards: RememberingBank, sharded: Bank
) -> None:
    table = seen_of_shards.table("t")
    table.push(KEYS, ONES)
    servers[1].stop()
    table.push(KEYS, ONES)
    seen_of_shards.close()
    with pytest.raises(BankUnavailableError):
        table.lookup(KEYS)
    servers[1].start()
    sharded.wait_ready()
    is_away = shard_of(KEYS, 2) == 1
    assert_array_equal(table.lookup(KEYS)["x"][:, 0], np.where(is_away, 1, 2))
