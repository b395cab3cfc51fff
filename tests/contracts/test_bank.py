"""What a bank is as a whole, asked of every kind."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax import errors
from carls_jax.bank.interface import Bank
from carls_jax.bank.rows import Rows
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.keys import shard_of

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


def test_the_keys_of_these_suites_lie_on_all_shards() -> None:
    assert set(shard_of(np.array(KEYS), 3).tolist()) == {0, 1, 2}


def test_tables_are_found_by_name(bank: Bank, specs: SimpleNamespace) -> None:
    bank.table(specs.nodes)
    bank.table(specs.words)

    assert bank.tables() == {"nodes": specs.nodes, "words": specs.words}
    assert bank.table("words").spec == specs.words
    with pytest.raises(errors.TableNotFoundError, match="this bank has nodes, words"):
        bank.table("edges")


def test_a_table_is_made_once(bank: Bank, nodes: Table, specs: SimpleNamespace) -> None:
    nodes.update([3], {"label": [3]})

    again = bank.table(specs.nodes)

    assert_array_equal(again.lookup([3])["label"], [3])


def test_a_spec_must_agree_with_the_table(bank: Bank, nodes: Table) -> None:
    other = TableSpec("nodes", fields={"embedding": Field((3,))})

    with pytest.raises(errors.SpecMismatchError, match=r"'embedding'.*shape.*given \[3\]"):
        bank.table(other)


def test_stats_count_rows_by_author(bank: Bank, nodes: Table, specs: SimpleNamespace) -> None:
    nodes.update(KEYS, {"label": KEYS}, source="maker/0")
    nodes.push([3, 1], {"embedding": np.ones((2, 2))})
    nodes.lookup(KEYS)

    stats = nodes.stats()

    assert stats.spec == specs.nodes
    assert stats.num_rows == 8
    assert stats.num_bytes > 0
    assert stats.rows_written == {"maker/0": 8, "me": 2}
    assert stats.counters["rows_looked_up"] == 8
    assert stats.counters["rows_updated"] == 8
    assert stats.counters["rows_pushed"] == 2
    assert stats.counters["rows_created"] == 8


def test_the_ledger_counts_payload_bytes(bank: Bank, nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS})
    nodes.lookup([3, 1], fields=("embedding",))

    moved = {(row["field"], row["direction"]): row["num_bytes"] for row in bank.ledger.rows()}
    assert moved == {("label", "update"): 64, ("embedding", "lookup"): 16}


def test_a_bank_is_ready_and_knows_itself(bank: Bank, kind: str) -> None:
    bank.wait_ready(10.0)

    identity = bank.identity
    assert re.fullmatch("[0-9a-f]{32}", identity.bank_id)
    assert identity.incarnation
    assert identity.num_shards == (3 if kind == "sharded" else 1)
    assert bank.identity == identity


def test_clients_of_one_bank_see_the_same_rows(
    connected: Callable[[], Bank], specs: SimpleNamespace
) -> None:
    first, second = connected(), connected()
    first.table(specs.nodes).update(KEYS, {"label": KEYS})

    assert_array_equal(second.table("nodes").lookup(KEYS)["label"], KEYS)
    assert first.identity == second.identity


def test_pushes_of_many_clients_all_count(
    connected: Callable[[], Bank], specs: SimpleNamespace
) -> None:
    num_clients, num_pushes = 4, 25
    clients = [connected() for _ in range(num_clients)]
    clients[0].table(specs.nodes)
    keys = np.arange(500)
    start = threading.Barrier(num_clients)

    def work(bank: Bank) -> list[Rows]:
        table = bank.table("nodes")
        start.wait(10)
        seen = []
        for _ in range(num_pushes):
            table.push(keys, {"embedding": np.ones((keys.size, 2))})
            seen.append(table.lookup(keys, fields=("embedding",), metadata=("version",)))
        return seen

    with ThreadPoolExecutor(num_clients) as pool:
        seen = [rows for done in pool.map(work, clients) for rows in done]

    final = clients[0].table("nodes").lookup(keys, metadata=("version",))
    total = num_clients * num_pushes
    assert_array_equal(final["embedding"], np.full((500, 2), 8.0 - 0.5 * total))
    assert_array_equal(final.version["embedding"], [total] * 500)
    # No row was ever seen half-written: its numbers fit its version.
    for rows in seen:
        expected = 8.0 - 0.5 * rows.version["embedding"]
        assert_array_equal(rows["embedding"], np.stack([expected, expected], axis=1))


CALLS: dict[str, Callable[[Table], object]] = {
    "lookup": lambda table: table.lookup([3]),
    "update": lambda table: table.update([3], {"label": [1]}),
    "delete": lambda table: table.delete([3]),
    "scan": lambda table: list(table.scan()),
    "stats": lambda table: table.stats(),
    "advance": lambda table: table.bank.advance(1),
    "snapshot": lambda table: table.bank.snapshot("s"),
    "snapshots": lambda table: table.bank.snapshots(),
    "restore": lambda table: table.bank.restore("s"),
    "wait_ready": lambda table: table.bank.wait_ready(1.0),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_bank_says_so(nodes: Table, call: str) -> None:
    nodes.bank.close()
    nodes.bank.close()

    with pytest.raises(errors.BankClosedError, match="connect again"):
        CALLS[call](nodes)
