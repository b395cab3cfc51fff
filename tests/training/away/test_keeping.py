"""While a server is away its changes are kept; it gets each once, in order, when it is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Applied, Bank, BankServer, Change, LocalBank, TableSpec
from carls_jax.errors import (
    BankIdentityError,
    BankTimeoutError,
    BankUnavailableError,
    TableNotFoundError,
)
from carls_jax.training.away.keeping import KeepingBank

from .conftest import DEADLINE_S, SPEC, Server

Heard = Callable[[str], threading.Event]
KEYS = np.arange(40)
ONES = {"x": -np.ones((40, 2))}  # adds 1 to each row


@pytest.fixture
def keeping(held: ExitStack, bank: Bank) -> KeepingBank:
    keeping = KeepingBank(bank, who="the bank", max_kept_bytes=1 << 20)
    held.callback(keeping.close)
    keeping.table("t")
    return keeping


def back(keeping: KeepingBank, server: Server) -> None:
    """Starts the server and waits until it has got everything."""
    server.start()
    keeping.settle(np.inf, be_back=True)


def test_kept_changes_are_sent_once_each_and_in_order(
    server: Server, keeping: KeepingBank, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    table = keeping.table("t")
    table.push(KEYS, ONES)
    server.stop()
    for label in (1.0, 2.0, 3.0):
        assert table.update([5], {"label": [label]}, step=int(label)).sequence == 0
        assert table.push(KEYS, ONES).sequence == 0
    keeping.advance(9)
    assert keeping.is_away
    assert not keeping.is_settled
    assert keeping.num_kept == 7
    back(keeping, server)
    assert keeping.is_settled
    rows = server.held.table("t").lookup(KEYS, metadata=("step",))
    assert_array_equal(rows["x"], np.full((40, 2), 4.0))
    assert (rows["label"][5], rows.step["label"][5]) == (3.0, 3)
    assert server.held.stats().clocks["main"] == 9
    assert table.push(KEYS, ONES).sequence > 0
    totals = keeping.totals()
    assert (totals["times"], totals["changes_kept"], totals["changes_dropped"]) == (1, 7, 0)
    said = [one.message for one in caplog.records if one.name.endswith("away.absence")]
    assert [one.startswith("the bank is ") for one in said] == [True, True]


def test_while_it_is_away_other_calls_fail_at_once(server: Server, keeping: KeepingBank) -> None:
    table = keeping.table("t")
    server.stop()
    with pytest.raises(BankUnavailableError, match="no bank answers"):
        table.lookup(KEYS)
    for call in (
        lambda: table.lookup(KEYS),
        lambda: table.delete(KEYS),
        lambda: next(table.scan()),
        lambda: keeping.table(TableSpec("new", SPEC.fields)),
        keeping.stats,
        lambda: keeping.snapshot("s"),
        keeping.snapshots,
    ):
        with pytest.raises(BankUnavailableError, match=r"^the bank is away: no bank"):
            call()
    assert keeping.identity.bank_id == "b"
    assert not table.lookup([-1, -1]).found.any()
    keeping.settle(0.0, be_back=False)  # nothing waits
    with pytest.raises(BankUnavailableError, match="0 changes wait for it"):
        keeping.settle(0.0, be_back=True)
    table.push(KEYS, ONES)
    with pytest.raises(BankUnavailableError, match="1 changes wait for it"):
        keeping.settle(np.inf, be_back=False, wait=False)
    back(keeping, server)
    assert table.delete(KEYS) == 40


def test_a_change_whose_answer_was_lost_is_applied_once(
    held: ExitStack, server: Server, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = KeepingBank(bank, who="the bank", max_kept_bytes=1 << 20)
    held.callback(keeping.close)
    table = keeping.table("t")
    transport = bank._transport
    call = transport.call

    def lose(*arguments, **options):
        call(*arguments, **options)
        server.stop()
        raise BankTimeoutError("no answer")

    monkeypatch.setattr(transport, "call", lose)
    assert table.push(KEYS, ONES).sequence == 0
    monkeypatch.undo()
    assert keeping.is_away
    back(keeping, server)
    assert_array_equal(table.lookup(KEYS)["x"], np.ones((40, 2)))


def test_the_oldest_are_dropped_beyond_the_bytes_and_that_is_told(
    held: ExitStack, server: Server, bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = KeepingBank(bank, who="the bank", max_kept_bytes=5000)  # of three
    held.callback(keeping.close)
    table = keeping.table("t")
    server.stop()
    for label in range(10):
        table.update([label], {"label": [1.0]})
    assert keeping.totals()["changes_dropped"] == keeping.totals()["rows_dropped"] > 0
    back(keeping, server)
    found = table.lookup(range(10)).found
    dropped = int(keeping.totals()["changes_dropped"])
    assert_array_equal(found, np.arange(10) >= dropped)
    assert f"; {dropped} changes were dropped so far" in caplog.text


def test_what_the_server_refuses_later_is_raised_by_a_check(
    tmp_path: Path, server: Server, keeping: KeepingBank, caplog: pytest.LogCaptureFixture
) -> None:
    table = keeping.table("t")
    server.stop()
    table.push(KEYS, ONES)
    table.push(KEYS, ONES)
    with LocalBank(bank_id="b") as fresh, BankServer(fresh, server.address):  # has lost its table
        keeping.settle(np.inf, be_back=True)
        assert "the bank refuses a push of 40 rows: " in caplog.text
        with pytest.raises(TableNotFoundError):
            keeping.check()
        keeping.check()
    assert keeping.totals()["changes_refused"] == 2


def test_another_bank_at_the_address_gets_nothing(
    server: Server, keeping: KeepingBank, caplog: pytest.LogCaptureFixture
) -> None:
    table = keeping.table("t")
    server.stop()
    table.push(KEYS, ONES)
    refused = threading.Event()
    logger = logging.getLogger("carls_jax.training.away.keeping")
    note = lambda record: refused.set() or True  # noqa: E731
    logger.addFilter(note)
    with LocalBank(bank_id="another") as other, BankServer(other, server.address):
        assert refused.wait(DEADLINE_S)
    logger.removeFilter(note)
    assert "the bank does not let us in" in caplog.text
    with pytest.raises(BankIdentityError):
        keeping.check()
    assert keeping.is_away
    back(keeping, server)
    assert_array_equal(table.lookup(KEYS)["x"], np.ones((40, 2)))


class Slow(LocalBank):
    """Applies pushes only while it may."""

    may_push: threading.Event

    def apply(self, change: Change) -> Applied:
        if change.kind == "push":
            assert self.may_push.wait(DEADLINE_S)
        return super().apply(change)


def test_later_changes_wait_until_what_was_kept_is_sent(
    held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = held.enter_context(Slow())
    slow.may_push = threading.Event()
    keeping = KeepingBank(slow, who="the bank", max_kept_bytes=1 << 20)
    held.callback(keeping.close)
    table = keeping.table(SPEC)
    is_away = True
    apply = slow.apply

    def away_at_first(change: Change) -> Applied:
        if is_away:
            raise BankUnavailableError("away")
        return apply(change)

    def not_ready(timeout_s: float) -> None:
        if is_away:
            raise BankUnavailableError("away")

    monkeypatch.setattr(slow, "apply", away_at_first)
    monkeypatch.setattr(slow, "wait_ready", not_ready)
    table.push([1], {"x": [[-1.0, -1.0]]})
    assert keeping.is_away
    is_away = False
    with ThreadPoolExecutor(1) as threads:
        # The kept push is under way and this one, of a later time, must not overtake it.
        later = threads.submit(table.update, [1], {"x": [[9.0, 9.0]]})
        slow.may_push.set()
        later.result(DEADLINE_S)
    assert_array_equal(slow.table("t").lookup([1])["x"], [[9.0, 9.0]])


def test_a_server_that_goes_away_again_gets_the_rest_in_order(
    held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = held.enter_context(LocalBank())
    keeping = KeepingBank(local, who="the bank", max_kept_bytes=1 << 20)
    held.callback(keeping.close)
    table = keeping.table(SPEC)
    may_answer = threading.Event()
    fails = [True, False, True, False, False]  # the first call, and those that send
    applied: list[float] = []
    apply = local.apply

    def sometimes(change: Change) -> Applied:
        if fails.pop(0):
            raise BankUnavailableError("away")
        applied.append(float(change.values["label"][0]))
        return apply(change)

    def ready_when_it_may(timeout_s: float) -> None:
        if not may_answer.is_set():
            raise BankUnavailableError("away")

    monkeypatch.setattr(local, "apply", sometimes)
    monkeypatch.setattr(local, "wait_ready", ready_when_it_may)
    for label in (1.0, 2.0, 3.0):
        table.update([1], {"label": [label]})
    assert keeping.num_kept == 3
    may_answer.set()
    keeping.settle(np.inf, be_back=True)
    assert applied == [1.0, 2.0, 3.0]
    assert keeping.totals()["times"] == 1


def test_closing_says_what_is_lost_and_passes_calls_on(
    server: Server, keeping: KeepingBank, bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    table = keeping.table("t")
    server.stop()
    table.push(KEYS, ONES)
    keeping.close()
    assert "the bank is away at the end: 1 changes are lost" in caplog.text
    assert keeping.totals()["changes_dropped"] == 1
    with pytest.raises(BankUnavailableError):
        table.push(KEYS, ONES)
    server.start()
    bank.wait_ready(DEADLINE_S)
    table.push(KEYS, ONES)
    assert_array_equal(table.lookup(KEYS)["x"], np.ones((40, 2)))
