from __future__ import annotations

import pytest

from carls_jax.bench.harness import NUM_WARMUPS, in_turns, lasting, milliseconds, until


@pytest.fixture
def called() -> list[tuple[str, int]]:
    return []


def test_every_work_is_done_once_a_round(called):
    works = {name: lambda number, name=name: called.append((name, number)) for name in "ab"}
    took = in_turns(works, budget_s=0.0, min_rounds=2)
    first = NUM_WARMUPS
    assert set(called[2 * first :]) == {(name, first + turn) for name in "ab" for turn in (0, 1)}
    assert {name: one.shape for name, one in took.items()} == {"a": (2,), "b": (2,)}


def test_the_works_take_turns_in_beginning_a_round(called):
    works = {name: lambda number, name=name: called.append((name, number)) for name in "ab"}
    in_turns(works, budget_s=0.0, min_rounds=20)
    assert {name for name, _ in called[2 * NUM_WARMUPS :: 2]} == {"a", "b"}


def test_rounds_end_at_the_most_though_the_budget_is_not_spent(called):
    works = {"a": lambda number: called.append(("a", number))}
    took = in_turns(works, budget_s=60.0, max_rounds=7)
    assert took["a"].size == 7
    assert [number for _, number in called] == list(range(NUM_WARMUPS + 7))


def test_a_work_goes_on_until_something_is_over(called):
    answers = iter([False, False, True])
    took = until(lambda: next(answers), lambda number: called.append(("a", number)))
    assert took.size == 3
    assert [number for _, number in called] == [0, 1, 2]


def test_a_work_is_done_at_least_once():
    assert until(lambda: True, lambda number: None).size == 1


def test_no_time_at_all_is_over_at_once_and_a_minute_is_not():
    assert not lasting(60.0)()
    over = lasting(0.0)
    until(over, lambda number: None)
    assert over()


def test_times_are_in_milliseconds():
    ten_ms = 0.010
    assert milliseconds(lambda number: until(lasting(ten_ms), lambda number: None)) >= 10.0
