"""What a maker keeps lasts over restarts and goes back with the run."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from carls_jax.errors import InvalidInputError
from carls_jax.makers.state import StateStore


@pytest.fixture(params=["on disk", "in memory"])
def store(request, tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "state" if request.param == "on disk" else None)


def test_a_new_maker_has_no_state(store: StateStore) -> None:
    assert store.before(100) == {}


def test_the_state_is_that_of_the_newest_step_before(store: StateStore) -> None:
    for step in (0, 10, 20):
        store.save(step, {"last": step})
    assert [store.before(step).get("last") for step in (0, 1, 10, 11, 20, 99)] == [
        *(None, 0, 0, 10, 10, 20)
    ]


def test_a_run_that_was_put_back_drops_what_came_later(store: StateStore) -> None:
    for step in (0, 10, 20, 30):
        store.save(step, {"last": step})
    store.save(10, {"last": -10})
    assert store.before(99)["last"] == -10


def test_what_is_changed_afterwards_is_not_kept(store: StateStore) -> None:
    mean = np.zeros(2)
    store.save(0, {"mean": mean})
    mean += 1
    store.before(1)["mean"] += 1
    np.testing.assert_array_equal(store.before(1)["mean"], [0, 0])


def test_arrays_and_numbers_keep_their_types_and_any_name(store: StateStore) -> None:
    state = {
        "file": 3,  # np.savez has arguments of these two names
        "allow_pickle": 2.5,
        "a/b c": np.arange(6, dtype=np.int16).reshape(2, 3),
        "done": True,
        "from_jax": jax.numpy.ones(2),
    }
    store.save(0, state)
    found = store.before(1)
    assert {name: value.dtype.name for name, value in found.items()} == {
        "file": "int64",
        "allow_pickle": "float64",
        "a/b c": "int16",
        "done": "bool",
        "from_jax": "float32",
    }
    np.testing.assert_array_equal(found["a/b c"], [[0, 1, 2], [3, 4, 5]])
    assert found["file"] + 1 == 4


@pytest.mark.parametrize("value", ["text", None, [[1], [2, 3]], jax.random.key(0), {"a": 1}])
def test_anything_else_is_refused_and_the_old_state_stays(store: StateStore, value) -> None:
    store.save(0, {"rounds": 1})
    with pytest.raises(InvalidInputError, match=r"ctx.state\['bad'\] is a .*arrays and numbers"):
        store.save(10, {"bad": value})
    assert store.before(99)["rounds"] == 1


def test_old_states_are_dropped(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for step in range(20):
        store.save(step, {"last": step})
    assert len(list(tmp_path.iterdir())) == 16
    assert store.before(99)["last"] == 19
    assert store.before(5)["last"] == 4


def test_a_maker_without_state_leaves_no_files(tmp_path: Path) -> None:
    StateStore(tmp_path / "state").save(0, {})
    assert not (tmp_path / "state").exists()


def test_a_state_that_was_emptied_stays_empty(store: StateStore) -> None:
    store.save(0, {"rounds": 1})
    store.save(10, {})
    assert store.before(11) == {}


def test_another_process_finds_the_state(tmp_path: Path) -> None:
    StateStore(tmp_path).save(10, {"mean": np.ones(2)})
    (tmp_path / "state-20.tmp").write_bytes(b"half")  # what a killed maker leaves
    np.testing.assert_array_equal(StateStore(tmp_path).before(30)["mean"], [1, 1])
