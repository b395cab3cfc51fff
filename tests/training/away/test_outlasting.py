from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Bank, LocalBank
from carls_jax.errors import BankUnavailableError
from carls_jax.keys import shard_of
from carls_jax.training import WhenAway, outlast
from carls_jax.training.away.outlasting_bank import OutlastingBank
from carls_jax.training.away.remembering import RememberingBank
from carls_jax.training.away.waiting import WaitingBank

from .conftest import SPEC, Server

KEYS = np.arange(40)


@pytest.mark.parametrize(
    ("policy", "kind"),
    [("wait", WaitingBank), ("last_seen", RememberingBank), ("fail", OutlastingBank)],
)
def test_each_policy_has_a_bank_that_counts_where_the_other_counts(
    bank: Bank, policy: str, kind: type
) -> None:
    outlasting = outlast(bank, WhenAway(policy))
    assert type(outlasting) is kind
    assert outlasting.source == "trainer"
    assert outlasting.ledger is bank.ledger
    assert outlast(outlasting, WhenAway("fail")) is outlasting
    outlasting.close()
    assert bank.table("t").lookup(KEYS).keys.size == 40


@pytest.mark.parametrize("namespace", [None, "mine"])
def test_a_bank_in_this_process_is_never_away(namespace: str | None) -> None:
    with LocalBank() as local:
        bank = local.namespace(namespace) if namespace else local
        assert type(outlast(bank, WhenAway("last_seen"))) is OutlastingBank


def test_with_the_policy_fail_the_error_passes(server: Server, bank: Bank) -> None:
    outlasting = outlast(bank, WhenAway("fail"))
    table = outlasting.table("t")
    server.stop()
    for call in (lambda: table.lookup(KEYS), lambda: table.push([1], {"x": [[1.0, 0.0]]})):
        with pytest.raises(BankUnavailableError, match="no bank answers"):
            call()
    assert not outlasting.is_away
    assert outlasting.is_settled


def test_all_calls_reach_the_bank(bank: Bank, tmp_path: Path) -> None:
    outlasting = outlast(bank, WhenAway("fail"))
    table = outlasting.table("t")
    table.update(KEYS, {"label": np.ones(40)}, step=2)
    taken = outlasting.snapshot("s")
    table.delete(KEYS[:10])
    assert len(table) == 30
    assert table.to_numpy()["keys"].size == 30
    outlasting.pin("me", [taken])
    assert outlasting.verify(taken) == taken
    assert outlasting.restore(taken) == taken
    outlasting.advance(7)
    assert outlasting.stats().clocks == {"main": 7}
    assert outlasting.identity == bank.identity
    assert len(table) == 40
    assert taken in outlasting.snapshots()


def test_a_namespace_outlasts_one_of_its_shards(
    held: ExitStack, servers: list[Server], sharded: Bank
) -> None:
    outlasting = outlast(sharded.namespace("mine"), WhenAway("last_seen"))
    held.callback(outlasting.close)
    table = outlasting.table(SPEC)
    table.update(KEYS, {"label": np.ones(40)}, step=1)
    table.lookup(KEYS)
    servers[1].stop()
    table.update(KEYS, {"label": 2 * np.ones(40)}, step=2)
    is_away = shard_of(KEYS, 2) == 1
    rows = table.lookup(KEYS, metadata=("step", "clock"))
    assert_array_equal(rows["label"], np.where(is_away, 0, 2))  # another kind of lookup
    assert_array_equal(table.lookup(KEYS)["label"], np.where(is_away, 1, 2))
    servers[1].start()
    outlasting.settle(be_back=True)
    assert_array_equal(table.lookup(KEYS)["label"], np.full(40, 2))
    assert set(outlasting.tables()) == {"t"}
