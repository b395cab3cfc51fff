from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from carls_jax.bank import change_numbers
from carls_jax.bank.change_numbers import ChangeNumbers


def test_each_change_has_the_next_number_whoever_makes_it() -> None:
    numbers = ChangeNumbers()

    def take(_: int) -> int:
        with numbers.next() as number:
            return number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(100))) == list(range(1, 101))
    assert numbers.client != ChangeNumbers().client


def test_a_change_under_way_holds_up_those_too_far_ahead_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(change_numbers, "MAX_NUMBERS", 3)
    numbers, end, began = ChangeNumbers(), threading.Event(), threading.Event()

    def first() -> None:
        with numbers.next():
            began.set()
            assert end.wait(10)

    def take() -> int:
        with numbers.next() as number:
            return number

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(first)
        assert began.wait(10)
        assert [take(), take()] == [2, 3]
        fourth = pool.submit(take)
        with pytest.raises(TimeoutError):
            fourth.result(0.1)
        end.set()
        slow.result(10)
        assert fourth.result(10) == 4


def test_a_change_that_failed_holds_up_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_numbers, "MAX_NUMBERS", 1)
    numbers = ChangeNumbers()
    with pytest.raises(ValueError, match="so"), numbers.next():
        raise ValueError("so")
    with numbers.next() as number:
        assert number == 2
