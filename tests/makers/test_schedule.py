"""Which checkpoint's rows a step sees."""

from __future__ import annotations

import pytest

from carls_jax.errors import ConfigError
from carls_jax.makers import Schedule, asynchronous, lockstep

STEPS = (0, 10, 20, 30, 40, 45)  # a run of 45 steps with a checkpoint every 10, and its last one

USED = {
    0: (0, 10, 20, 30, 40, 45),
    1: (None, 0, 10, 20, 30, None),
    3: (None, None, None, 0, 10, None),
    "once": (0, None, None, None, None, None),
    "never": (None, None, None, None, None, None),
}


@pytest.mark.parametrize(("delay", "used"), USED.items())
def test_the_checkpoint_that_is_used_at_each_step(delay, used) -> None:
    schedule = lockstep(10, delay=delay)
    assert schedule.is_lockstep
    assert tuple(schedule.used_checkpoint(step) for step in STEPS) == used


def test_asynchronous_makers_use_each_checkpoint_that_they_find() -> None:
    assert not asynchronous().is_lockstep
    assert [asynchronous().used_checkpoint(step) for step in (0, 7, 50)] == [0, 7, 50]
    assert asynchronous(delay="never").used_checkpoint(7) is None


@pytest.mark.parametrize("every_steps", [0, -1, 2.0, True])
def test_a_period_is_an_integer_from_1(every_steps) -> None:
    with pytest.raises(
        ConfigError, match=f"every_steps={every_steps}: allowed are integers from 1"
    ):
        lockstep(every_steps)


@pytest.mark.parametrize("delay", [-1, 1.5, True, "twice"])
def test_a_delay_is_a_count_or_once_or_never(delay) -> None:
    with pytest.raises(ConfigError, match=r"delay=.*: allowed are integers from 0, 'once' and"):
        lockstep(10, delay=delay)


def test_only_lockstep_has_a_fixed_delay() -> None:
    with pytest.raises(ConfigError, match=r"delay=2: only makers in lockstep.*lockstep\("):
        Schedule(delay=2)
