"""How far makers are is told through the bank, and forgotten with what it lost."""

from __future__ import annotations

import threading

import pytest

from carls_jax.bank import BankServer, LocalBank, connect
from carls_jax.errors import BankError, BankTimeoutError
from carls_jax.makers import PROGRESS, progress, wait_until_done


def tell(bank, source: str, done_step: int) -> None:
    incarnation = progress.incarnation_of(bank)
    progress.tell(bank, source, done_step=done_step, incarnation=incarnation)


def test_nobody_is_done_at_first(bank: LocalBank) -> None:
    assert progress.done_step(bank, "smooth/0") == -1
    assert not progress.has_ever_told(bank, "smooth/0")
    assert len(bank.table(PROGRESS)) == 0  # asking leaves nothing


def test_what_one_worker_tells_is_known_of_it_alone(bank: LocalBank) -> None:
    tell(bank, "smooth/0", 40)
    assert progress.done_step(bank, "smooth/0") == 40
    assert progress.done_step(bank, "smooth/1") == -1


def test_the_numbers_of_the_refresh_can_be_read(bank: LocalBank) -> None:
    numbers = {"rows_written": 7, "lag_steps": 3, "seconds": 0.5}
    progress.tell(bank, "smooth/0", done_step=40, incarnation=1, numbers=numbers)
    rows = bank.table(PROGRESS).lookup(["smooth/0"], metadata=("step", "source"))
    assert {name: rows[name][0] for name in numbers} == numbers
    assert (rows.step["seconds"][0], rows.source["seconds"][0]) == (40, "smooth/0")


def test_what_was_told_before_the_bank_was_put_back_does_not_count(bank: LocalBank) -> None:
    tell(bank, "smooth/0", 40)
    bank.snapshot("after")
    bank.restore("after")
    assert progress.done_step(bank, "smooth/0") == -1
    assert progress.has_ever_told(bank, "smooth/0")


def test_a_remote_client_notices_that_the_bank_was_put_back(bank: LocalBank, tmp_path) -> None:
    with (
        BankServer(bank, f"unix:{tmp_path}/bank.sock") as server,
        connect(server.address) as remote,
    ):
        tell(remote, "smooth/0", 40)
        bank.snapshot("after")
        bank.restore("after")
        assert progress.done_step(remote, "smooth/0") == -1


def test_waiting_ends_when_the_last_worker_is_done(bank: LocalBank) -> None:
    makers = {"smooth": 2, "label": 1}
    tell(bank, "smooth/0", 40)
    tell(bank, "smooth/1", 50)
    assert progress.wait(bank, makers, step=40, timeout_s=0) == ["label/0"]
    last = threading.Thread(target=tell, args=(bank, "label/0", 40))
    last.start()
    wait_until_done(bank, makers, step=40, timeout_s=30)
    last.join()
    assert progress.wait(bank, makers, step=50, timeout_s=0) == ["smooth/0", "label/0"]


def test_nobody_is_waited_for_where_there_are_no_makers(bank: LocalBank) -> None:
    wait_until_done(bank, {}, step=40, timeout_s=0)


def test_a_wait_that_is_too_long_names_who_is_late(bank: LocalBank) -> None:
    tell(bank, "smooth/0", 40)
    with pytest.raises(
        BankTimeoutError, match=r"0\.1 s .*checkpoint 50: smooth/0, label/0; are th"
    ):
        wait_until_done(bank, {"smooth": 1, "label": 1}, step=50, timeout_s=0.1)


def test_a_wait_ends_when_the_bank_is_put_back(bank: LocalBank) -> None:
    tell(bank, "smooth/0", 30)
    bank.snapshot("before")
    put_back = threading.Timer(0.1, bank.restore, ("before",))
    put_back.start()
    with pytest.raises(BankError, match="dealt with checkpoint 40 the bank was put back"):
        wait_until_done(bank, {"smooth": 1}, step=40, timeout_s=30)
    put_back.join()


def test_a_wait_can_be_ended(bank: LocalBank) -> None:
    stop = threading.Event()
    stop.set()
    assert progress.wait(bank, {"a": 1}, step=0, timeout_s=60, stop=stop) == ["a/0"]
