from __future__ import annotations

import threading

import pytest

from carls_jax.bank.names import Counts, Names
from carls_jax.errors import BankOverloadedError


def test_names_are_numbered_in_order_of_first_use() -> None:
    names = Names("", limit=8)
    assert [names.add(name) for name in ("b", "a", "b", "")] == [1, 2, 1, 0]
    assert list(names) == ["", "b", "a"]
    assert len(names) == 3
    assert names.find("a") == 2
    assert names.find("c") is None


def test_a_new_name_needs_room_and_a_known_one_does_not() -> None:
    names = Names("main", limit=2)
    names.check_room("a", kind="clock")
    names.add("a")
    names.check_room("main", kind="clock")
    with pytest.raises(BankOverloadedError, match=r"clock='b' is one clock too many.*knows 2.*'a'"):
        names.check_room("b", kind="clock")


def test_names_of_a_snapshot_keep_their_numbers() -> None:
    names = Names("", limit=8)
    names.add("x")
    names.replace(["", "b", "a"])
    assert [names.find(name) for name in ("", "b", "a", "x")] == [0, 1, 2, None]
    assert names.add("x") == 3


def test_names_may_be_read_while_one_is_added() -> None:
    names = Names("", limit=8)
    reading = iter(names)
    names.add("a")
    assert list(reading) == [""]


def test_counts_add_up_from_many_threads() -> None:
    counts = Counts()
    start = threading.Barrier(4)

    def count() -> None:
        start.wait(10)
        for _ in range(2000):
            counts.add({"rows": 3, "self": 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.read() == {"rows": 24_000, "self": 8_000}


def test_what_is_counted_elsewhere_is_told_and_then_kept() -> None:
    counts, elsewhere = Counts(), {"rows": 5}
    counts.add({"rows": 1, "none": 0})
    with counts.including(lambda: elsewhere), counts.including(lambda: {"rows": 10, "calls": 1}):
        assert counts.read() == {"rows": 16, "none": 0, "calls": 1}
        elsewhere["rows"] = 7
        counts.add({"rows": 100})
        assert counts.read() == {"rows": 118, "none": 0, "calls": 1}
        elsewhere["rows"] = 8
    elsewhere["rows"] = 1000
    assert counts.read() == {"rows": 119, "none": 0, "calls": 1}


def test_two_that_count_alike_are_two() -> None:
    counts, read = Counts(), {"rows": 1}.copy
    with counts.including(read):
        with counts.including(read):
            assert counts.read() == {"rows": 2}
        assert counts.read() == {"rows": 2}
