"""When batches are drawn and fetched, how errors come out, and how it goes on where it was."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from carls_jax.data.batches import Batches
from carls_jax.errors import InvalidInputError
from carls_jax.training.knowledge import Fetched
from carls_jax.training.look_ahead import Drawn, Fetch, InlineExecutor, LookAhead, ResumableBatches

DEADLINE_S = 10.0
LIST = [{"x": number} for number in range(6)]


class Fetcher:
    """Fetches the present value of `world`; remembers for which batches and steps."""

    def __init__(self) -> None:
        self.world = 0
        self.calls: list[tuple[int, int]] = []
        self.forgotten_at: list[int] = []
        self.fails_at = -1
        self.called = threading.Semaphore(0)

    def __call__(self, batch: Any, step: int) -> Fetched:
        self.calls.append((batch["x"], step))
        self.called.release()
        if step == self.fails_at:
            raise RuntimeError(f"no knowledge for step {step}")
        return Fetched(
            known={"world": self.world},  # type: ignore[dict-item]
            found={},
            targets={},
            ages=np.empty(0, np.int64),
            num_found=0,
            num_asked=0,
            num_moved=0,
            as_of=0,
            took_s=0.0,
        )

    def forget(self) -> None:
        self.forgotten_at.append(len(self.calls))


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher()


@pytest.fixture(params=["inline", "background"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with InlineExecutor() if request.param == "inline" else ThreadPoolExecutor(1) as one:
        yield one


def ahead(
    batches: Iterable[Any],
    fetch: Fetch,
    executor: Executor,
    *,
    depth: int = 2,
    steps: Iterable[int] | None = None,
    position: Any = None,
) -> LookAhead:
    return LookAhead(
        ResumableBatches(batches, position),
        fetch,
        executor=executor,
        depth=depth,
        steps=itertools.count(1) if steps is None else steps,
    )


def seen(drawn: Iterable[Drawn]) -> list[tuple[int, int]]:
    return [(one.step, one.batch["x"]) for one in drawn]


@pytest.mark.parametrize("depth", [1, 2, 9])
@pytest.mark.parametrize("make", [lambda: LIST, lambda: iter(LIST), lambda: (x for x in LIST)])
def test_all_batches_come_in_order_until_they_end(
    make: Callable[[], Any], depth: int, executor: Executor, fetcher: Fetcher
) -> None:
    assert seen(ahead(make(), fetcher, executor, depth=depth)) == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
        (5, 4),
        (6, 5),
    ]
    assert fetcher.calls == [(number, number + 1) for number in range(6)]


def test_nothing_is_fetched_beyond_the_last_step(executor: Executor, fetcher: Fetcher) -> None:
    endless = ({"x": number} for number in itertools.count())
    assert seen(ahead(endless, fetcher, executor, depth=3, steps=range(5, 8))) == [
        (5, 0),
        (6, 1),
        (7, 2),
    ]
    assert fetcher.calls == [(0, 5), (1, 6), (2, 7)]
    assert next(endless) == {"x": 3}


@pytest.mark.parametrize("depth", [1, 3])
def test_nothing_is_drawn_or_fetched_beyond_the_depth(
    depth: int, executor: Executor, fetcher: Fetcher
) -> None:
    drawn: list[int] = []

    def batches() -> Iterator[dict[str, int]]:
        for number in itertools.count():
            drawn.append(number)
            yield {"x": number}

    steps = iter(ahead(batches(), fetcher, executor, depth=depth))
    for step in range(1, 4):
        next(steps)
        for _ in range(depth if step == 1 else 1):
            assert fetcher.called.acquire(timeout=DEADLINE_S)
        assert drawn == list(range(step + depth - 1))
        assert len(fetcher.calls) == len(drawn)


@pytest.mark.parametrize(("depth", "worlds"), [(1, [0, 1, 2, 3, 4, 5]), (3, [0, 0, 0, 1, 2, 3])])
def test_inline_a_step_sees_what_was_there_depth_steps_before(
    depth: int, worlds: list[int], fetcher: Fetcher
) -> None:
    found = []
    for drawn in ahead(LIST, fetcher, InlineExecutor(), depth=depth):
        found.append(drawn.fetched.known["world"])
        fetcher.world = drawn.step  # what the step changes
    assert found == worlds


def test_refetching_gives_the_waiting_steps_what_is_there_now(
    executor: Executor, fetcher: Fetcher
) -> None:
    look_ahead = ahead(LIST, fetcher, executor, depth=3)
    steps = iter(look_ahead)
    next(steps)
    fetcher.world = 7
    look_ahead.refetch()
    second, third = next(steps), next(steps)

    assert seen([second, third]) == [(2, 1), (3, 2)]
    assert second.fetched.known == third.fetched.known == {"world": 7}
    assert second.position == 2
    assert [step for _, step in fetcher.calls].count(2) == 2
    assert fetcher.forgotten_at == [3]  # after the three steps, before any of them is fetched again
    assert seen(steps) == [(4, 3), (5, 4), (6, 5)]


def test_refetching_at_the_end_of_the_batches_changes_nothing(
    executor: Executor, fetcher: Fetcher
) -> None:
    look_ahead = ahead(LIST[:2], fetcher, executor, depth=4)
    steps = iter(look_ahead)
    next(steps)
    look_ahead.refetch()
    assert seen(steps) == [(2, 1)]


def test_an_error_of_the_loader_is_raised_at_its_step(executor: Executor, fetcher: Fetcher) -> None:
    def batches() -> Iterator[dict[str, int]]:
        yield {"x": 0}
        yield {"x": 1}
        raise OSError("disk")

    look_ahead = ahead(batches(), fetcher, executor, depth=3)
    steps = iter(look_ahead)
    assert next(steps).step == 1
    look_ahead.refetch()
    assert next(steps).step == 2
    with pytest.raises(OSError, match="disk"):
        next(steps)


def test_an_error_of_a_fetch_is_raised_at_its_step(executor: Executor, fetcher: Fetcher) -> None:
    fetcher.fails_at = 2
    steps = iter(ahead(LIST, fetcher, executor, depth=3))
    assert next(steps).step == 1
    with pytest.raises(RuntimeError, match="no knowledge for step 2"):
        next(steps)


def test_a_depth_below_one_is_refused(fetcher: Fetcher) -> None:
    with pytest.raises(InvalidInputError, match="depth=0: allowed is 1 and more"):
        ahead(LIST, fetcher, InlineExecutor(), depth=0)


# Going on where it was


class Grainlike:
    """Iterates like those iterators of grain whose state is bytes."""

    def __init__(self) -> None:
        self._next = 0

    def __iter__(self) -> Grainlike:
        return self

    def __next__(self) -> dict[str, int]:
        self._next += 1
        return {"x": self._next - 1}

    def get_state(self) -> bytes:
        return bytes([self._next, 255])

    def set_state(self, state: bytes) -> None:
        self._next = state[0]


def batches_of_columns() -> Batches:
    return Batches({"x": np.arange(10)}, batch_size=3, seed=5)


@pytest.mark.parametrize("make", [lambda: LIST, lambda: (x for x in LIST), Grainlike])
@pytest.mark.parametrize("num_used", [1, 3, 5])
def test_batches_go_on_after_the_last_one_used(
    make: Callable[[], Any], num_used: int, fetcher: Fetcher
) -> None:
    steps = iter(ahead(make(), fetcher, InlineExecutor(), depth=3))
    used = [next(steps) for _ in range(num_used)]
    resumed = iter(ahead(make(), fetcher, InlineExecutor(), position=used[-1].position))

    assert next(resumed).batch == {"x": num_used}


def test_shuffled_batches_go_on_in_their_order(fetcher: Fetcher) -> None:
    expected = [batch["x"].tolist() for batch in itertools.islice(batches_of_columns(), 12)]
    steps = iter(ahead(batches_of_columns(), fetcher, InlineExecutor(), depth=4))
    used = [next(steps) for _ in range(5)]
    resumed = ahead(batches_of_columns(), fetcher, InlineExecutor(), position=used[-1].position)

    assert [one.batch["x"].tolist() for one in used] == expected[:5]
    following = [one.batch["x"].tolist() for one in itertools.islice(resumed, 7)]
    assert following == expected[5:]


def test_positions_are_json() -> None:
    for batches in (LIST, Grainlike(), batches_of_columns()):
        iterator = ResumableBatches(batches)
        next(iterator)
        assert json.loads(json.dumps(iterator.position)) == iterator.position


def test_batches_that_end_before_the_position_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"they end after 6, but .* had used 7"):
        ResumableBatches(LIST, 7)
    assert list(ResumableBatches(LIST, 6)) == []
