from __future__ import annotations

import json
import math

import optax
import pytest

from carls_jax.bank.schedules import SCHEDULES, Schedule, schedule
from carls_jax.errors import ConfigError

CASES = [
    ("constant", {"value": 0.3}, optax.constant_schedule),
    ("linear", {"init_value": 0.1, "end_value": 0.5, "transition_steps": 7}, optax.linear_schedule),
    (
        "linear",
        {"init_value": 1.0, "end_value": 0.0, "transition_steps": 8, "transition_begin": 3},
        optax.linear_schedule,
    ),
    (
        "polynomial",
        {"init_value": 1.0, "end_value": 0.1, "power": 2.5, "transition_steps": 9},
        optax.polynomial_schedule,
    ),
    (
        "exponential_decay",
        {"init_value": 0.5, "transition_steps": 4, "decay_rate": 0.7, "transition_begin": 2},
        optax.exponential_decay,
    ),
    (
        "exponential_decay",
        {
            "init_value": 0.5,
            "transition_steps": 4,
            "decay_rate": 0.5,
            "staircase": True,
            "end_value": 0.1,
        },
        optax.exponential_decay,
    ),
    (
        "cosine_decay",
        {"init_value": 0.5, "decay_steps": 10, "alpha": 0.1, "exponent": 1.5},
        optax.cosine_decay_schedule,
    ),
    (
        "warmup_cosine_decay",
        {
            "init_value": 0.1,
            "peak_value": 1.0,
            "warmup_steps": 4,
            "decay_steps": 15,
            "end_value": 0.05,
            "exponent": 2.0,
        },
        optax.warmup_cosine_decay_schedule,
    ),
    (
        "warmup_cosine_decay",
        {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": 5},
        optax.warmup_cosine_decay_schedule,
    ),
    (
        "piecewise_constant",
        {"init_value": 1.0, "boundaries_and_scales": {12: 0.5, 3: 0.1}},
        optax.piecewise_constant_schedule,
    ),
]


@pytest.mark.parametrize(("name", "arguments", "reference"), CASES)
def test_agrees_with_optax_at_every_step(name, arguments, reference):
    mine, optaxs = schedule(name, **arguments), reference(**arguments)
    for step in range(20):
        assert mine.at(step) == pytest.approx(float(optaxs(step)), rel=2e-6, abs=2e-7), step


def test_every_schedule_has_a_reference():
    assert {name for name, _, _ in CASES} == set(SCHEDULES)


@pytest.mark.parametrize(("name", "arguments", "reference"), CASES)
def test_survives_json_and_is_equal_and_hashable(name, arguments, reference):
    mine = schedule(name, **arguments)
    again = Schedule.from_dict(json.loads(json.dumps(mine.to_dict())))
    assert again == mine
    assert hash(again) == hash(mine)


@pytest.mark.parametrize(("name", "arguments", "reference"), CASES)
def test_a_step_below_zero_counts_as_zero_and_far_steps_are_finite(name, arguments, reference):
    mine = schedule(name, **arguments)
    assert mine.at(-1) == mine.at(0)
    assert math.isfinite(mine.at(2**62))


def test_values_worked_out_by_hand():
    linear = schedule("linear", init_value=1.0, end_value=0.0, transition_steps=4)
    assert [linear.at(step) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    halving = schedule("piecewise_constant", init_value=8.0, boundaries_and_scales=[[2, 0.5]])
    assert [halving.at(step) for step in range(4)] == [8.0, 8.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linaer", {}, r"schedule\('linaer'\) is unknown; did you mean 'linear'\? Allowed are"),
        ("sgdr", {}, r"Allowed are constant, linear, .*piecewise_constant"),
        ("constant", {}, r"schedule\('constant'\) needs value; it takes value"),
        (
            "constant",
            {"value": -1.0},
            r"value=-1.0; allowed is a finite float32 number in \[0, inf",
        ),
        ("constant", {"valu": 1.0}, r"takes no 'valu'; did you mean 'value'\?"),
        (
            "linear",
            {"init_value": 1.0, "end_value": 0.0, "transition_steps": 0.5},
            r"transition_steps=0.5; allowed is a whole number of at least 1",
        ),
        (
            "exponential_decay",
            {"init_value": 1.0, "transition_steps": 5, "decay_rate": 2.0},
            r"decay_rate=2.0; allowed is a finite float32 number in \(0, 1\]",
        ),
        (
            "warmup_cosine_decay",
            {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 10, "decay_steps": 10},
            r"decay_steps=10\): it counts the warm-up too, so allowed is more than warmup_steps=10",
        ),
        (
            "piecewise_constant",
            {"init_value": 1.0, "boundaries_and_scales": [[3, 0.5], [3, 0.1]]},
            r"each step once and none negative",
        ),
        (
            "piecewise_constant",
            {"init_value": 1.0, "boundaries_and_scales": 7},
            r"boundaries_and_scales=7; allowed is \{step: scale, ...\}",
        ),
    ],
)
def test_refuses_what_cannot_work(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        schedule(name, **arguments)
