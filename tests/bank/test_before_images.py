"""Rows are kept once, come back as they were, and their places are used again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.before_images import BeforeImages, Room

ROW_BYTES = 8 + 3 * 4
NUM_SLOTS = 100


def slots_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.intp)


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    values = np.arange(3 * NUM_SLOTS, dtype=np.float32).reshape(NUM_SLOTS, 3)
    return {"key": np.arange(NUM_SLOTS), "value/x": values}


def put_back(before: BeforeImages, *slots: int) -> list[int]:
    rows = {"key": np.full(len(slots), -7), "value/x": np.full((len(slots), 3), -7, np.float32)}
    before.put_back(slots_of(*slots), rows)
    expected = np.where(rows["key"] < 0, -7, 3 * rows["key"] + 1)
    assert_array_equal(rows["value/x"][:, 1], expected)
    return rows["key"].tolist()


def test_what_was_kept_first_comes_back(columns: dict[str, np.ndarray]) -> None:
    before = BeforeImages(columns, Room())
    before.keep(slots_of(5, 3))
    for column in columns.values():
        column[:50] = 0
    before.keep(slots_of(3, 60, 5))
    assert put_back(before, 3, 4, 5, 60, 61) == [3, -7, 5, 60, -7]


def test_a_place_is_used_again_once_its_slot_is_forgotten(columns: dict[str, np.ndarray]) -> None:
    room = Room()
    before = BeforeImages(columns, room)
    before.keep(slots_of(1, 2, 3))
    before.forget(0, 3)
    assert room.num_bytes == ROW_BYTES
    before.keep(slots_of(50, 51, 52))
    assert put_back(before, 3, 50, 51, 52) == [3, 50, 51, 52]
    assert before._num_places == 4
    before.clear()
    before.clear()
    assert room.num_bytes == 0


def waits(room: Room, num_bytes: int, until: Callable[[], None]) -> None:
    """Asserts that a wait for room ends by what `until` does, and not before."""
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        room.wait_for(num_bytes)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert begun.wait(30)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        until()
        waiting.result(30)


def test_beyond_the_bound_one_waits_until_there_is_room() -> None:
    room = Room(100)
    room.take(60)
    room.wait_for(40)
    waits(room, 41, until=lambda: room.take(-1))


def test_what_is_larger_than_the_bound_goes_alone() -> None:
    room = Room(100)
    room.wait_for(1000)
    room.take(1)
    waits(room, 1000, until=lambda: room.take(-1))
