"""Calls wait for a bank that is away, and changes are applied once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Bank
from carls_jax.errors import BankClosedError, BankUnavailableError, InvalidInputError
from carls_jax.training import WhenAway, outlast
from carls_jax.training.away.outlasting_bank import OutlastingBank

from .conftest import DEADLINE_S, SPEC, Server

Heard = Callable[[str], threading.Event]
KEYS = np.arange(40)
ONES = {"x": -np.ones((40, 2))}  # adds 1 to each row


@pytest.fixture
def waiting(bank: Bank) -> OutlastingBank:
    return outlast(bank, WhenAway("wait", wait_s=DEADLINE_S))


def test_a_lookup_and_a_push_wait_and_each_side_is_told_once(
    server: Server, waiting: OutlastingBank, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    table = waiting.table(SPEC)
    table.push(KEYS, ONES)
    server.stop()
    away = heard("the bank is away; waiting for it")
    with ThreadPoolExecutor(2) as threads:
        pushed = threads.submit(lambda: [table.push(KEYS, ONES) for _ in range(3)])
        looked_up = threads.submit(table.lookup, KEYS)
        assert away.wait(DEADLINE_S)
        server.start()
        assert not any(one.num_created for one in pushed.result(DEADLINE_S))
        assert looked_up.result(DEADLINE_S).found.all()
    assert_array_equal(table.lookup(KEYS)["x"], np.full((40, 2), 4.0))
    said = [one.message for one in caplog.records if one.name.endswith("away.absence")]
    assert [one.split(" is ")[1].split()[0].strip(";") for one in said] == ["away", "back"]
    assert waiting.totals()["times"] == 1
    line = waiting.take_line()
    assert line["away/times"] == 1
    assert line["away/seconds"] > 0
    assert waiting.take_line() == {"away/times": 0, "away/seconds": 0}


def test_a_change_of_several_shards_is_applied_once_on_each(
    servers: list[Server], sharded: Bank, heard: Heard
) -> None:
    waiting = outlast(sharded, WhenAway("wait", wait_s=DEADLINE_S))
    table = waiting.table(SPEC)
    table.push(KEYS, ONES)
    servers[1].stop()
    away = heard("the bank is away")
    with ThreadPoolExecutor(1) as threads:
        pushed = threads.submit(table.push, KEYS, ONES)
        assert away.wait(DEADLINE_S)
        servers[1].start()
        pushed.result(DEADLINE_S)
    assert_array_equal(table.lookup(KEYS)["x"], np.full((40, 2), 2.0))


def test_when_the_time_is_over_the_change_can_still_be_gone_on_with(
    server: Server, bank: Bank
) -> None:
    waiting = outlast(bank, WhenAway("wait", wait_s=0.1))
    table = waiting.table(SPEC)
    server.stop()
    with pytest.raises(
        BankUnavailableError, match=r"away for 0.1 s \(when_away.wait_s\)"
    ) as caught:
        table.push(KEYS, ONES)
    server.start()
    bank.wait_ready(DEADLINE_S)
    waiting.resume(caught.value)
    waiting.resume(caught.value)
    assert_array_equal(table.lookup(KEYS)["x"], np.ones((40, 2)))


def test_what_is_refused_is_not_tried_again(waiting: OutlastingBank) -> None:
    with pytest.raises(InvalidInputError):
        waiting.table(SPEC).update(KEYS, {"label": np.full(40, np.nan)})
    assert waiting.totals()["times"] == 0
    assert waiting.take_line() == {}


def test_closing_ends_the_wait_and_leaves_the_bank_open(
    held: ExitStack, server: Server, waiting: OutlastingBank, bank: Bank, heard: Heard
) -> None:
    table = waiting.table(SPEC)
    server.stop()
    away = heard("the bank is away")
    threads = held.enter_context(ThreadPoolExecutor(1))
    looked_up = threads.submit(table.lookup, KEYS)
    assert away.wait(DEADLINE_S)
    waiting.close()
    with pytest.raises(BankClosedError, match="the training loop has ended"):
        looked_up.result(DEADLINE_S)
    with pytest.raises(BankUnavailableError):
        table.lookup(KEYS)
    server.start()
    bank.wait_ready(DEADLINE_S)
    assert not bank.table("t").lookup(KEYS).found.any()


def test_snapshots_and_restores_wait(server: Server, waiting: OutlastingBank, heard: Heard) -> None:
    table = waiting.table(SPEC)
    table.push(KEYS, ONES)
    for act in (lambda: waiting.snapshot("s"), lambda: waiting.restore("s")):
        server.stop()
        away = heard("the bank is away")
        with ThreadPoolExecutor(1) as threads:
            acted = threads.submit(act)
            assert away.wait(DEADLINE_S)
            server.start()
            assert acted.result(DEADLINE_S).label == "s"
        table.push(KEYS, ONES)
    assert [one.label for one in waiting.snapshots()].count("s") == 1
    assert_array_equal(table.lookup(KEYS)["x"], np.full((40, 2), 2.0))


def test_the_log_is_quiet_while_the_bank_is_there(
    waiting: OutlastingBank, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "carls_jax.training"):
        waiting.table(SPEC).push(KEYS, ONES)
    assert caplog.records == []
