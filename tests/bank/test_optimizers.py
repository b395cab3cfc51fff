from __future__ import annotations

import json

import numpy as np
import pytest

from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.optimizers import OptimizerSpec, optimizer, row_optimizer
from carls_jax.bank.schedules import schedule
from carls_jax.errors import ConfigError, DtypeError, OptimizerNotAllowedError
from tests.bank.pushed_rows import PushedRows


def update_once(spec, values, gradients, *, step=0):
    rows = PushedRows(spec, np.array(values, np.float32))
    rows.push(gradients, step=step)
    return rows.values, rows.state


def test_sgd_worked_out_by_hand():
    values, state = update_once(
        optimizer("sgd", learning_rate=0.5), [[1.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [-1.0, 4.0]]
    )
    np.testing.assert_array_equal(values, [[0.0, 2.0], [3.5, 2.0]])
    assert state == {}


def test_adagrad_worked_out_by_hand():
    # sum = 7 + 3**2 = 16, step = 2 * 3 / sqrt(16) = 1.5; eps vanishes beside 16 in float32
    spec = optimizer("adagrad", learning_rate=2.0, initial_accumulator_value=7.0)
    values, state = update_once(spec, [[1.0]], [[3.0]])
    np.testing.assert_array_equal(values, [[-0.5]])
    np.testing.assert_array_equal(state["sum_of_squares"], [[16.0]])


def test_clips_elements_first_and_norms_after():
    # Row 0 has norm sqrt(5) and stays. Row 1 becomes [-4, 3], of norm 5, and then [-2, 1.5].
    spec = optimizer("sgd", learning_rate=1.0, clip=4.0, clip_row_norm=2.5)
    values, _ = update_once(spec, [[0.0, 0.0], [0.0, 0.0]], [[1.0, -2.0], [-9.0, 3.0]])
    np.testing.assert_array_equal(values, [[-1.0, 2.0], [2.0, -1.5]])


def test_a_schedule_is_read_at_the_step_of_the_push():
    rate = schedule("linear", init_value=1.0, end_value=0.0, transition_steps=4)
    spec = optimizer("sgd", learning_rate=rate)
    for step, expected in [(0, -1.0), (1, -0.75), (4, 0.0), (9, 0.0), (-1, -1.0)]:
        values, _ = update_once(spec, [0.0], [1.0], step=step)
        assert values.tolist() == [expected]


def test_state_columns_follow_from_the_kernel_the_shape_and_the_dtype():
    columns = {
        name: {
            column: (one.shape, one.dtype.name, one.fill)
            for column, one in row_optimizer(
                optimizer(name, learning_rate=0.1), (2, 3), "float64"
            ).state_fields.items()
        }
        for name in KERNELS
    }
    moments = {"mu": ((2, 3), "float64", 0.0), "nu": ((2, 3), "float64", 0.0)}
    assert columns == {
        "sgd": {},
        "momentum": {"trace": ((2, 3), "float64", 0.0)},
        "adagrad": {"sum_of_squares": ((2, 3), "float64", 0.1)},
        "rmsprop": {"nu": ((2, 3), "float64", 0.0)},
        "adam": moments | {"count": ((), "int32", 0)},
        "adamw": moments | {"count": ((), "int32", 0)},
        "lion": {"mu": ((2, 3), "float64", 0.0)},
    }


SPECS = [
    optimizer("sgd", learning_rate=0.1),
    optimizer("momentum", learning_rate=0, nesterov=True, clip=2),
    optimizer(
        "adamw",
        learning_rate=schedule(
            "piecewise_constant", init_value=0.1, boundaries_and_scales={100: 0.5}
        ),
        weight_decay=0.0,
        clip_row_norm=1.0,
    ),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_survives_json_and_is_equal_and_hashable(spec):
    again = OptimizerSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert len({*SPECS, again}) == len(SPECS)


def test_a_spec_holds_its_defaults_so_that_equal_meaning_is_equal_value():
    assert optimizer("adam", learning_rate=1, b1=np.float64(0.9)) == optimizer(
        "adam", learning_rate=1.0
    )
    assert optimizer("adagrad", learning_rate=0.1).to_dict() == {
        "name": "adagrad",
        "initial_accumulator_value": 0.1,
        "eps": 1e-7,
        "learning_rate": 0.1,
        "clip": None,
        "clip_row_norm": None,
    }


@pytest.mark.parametrize(
    "name", ["lamb", "lars", "adafactor", "noisy_sgd", "sm3", "clip_by_global_norm", "muon"]
)
def test_refuses_what_mixes_rows_and_says_so(name):
    with pytest.raises(OptimizerNotAllowedError, match=rf"'{name}' mixes rows \(it.*\), so a row"):
        optimizer(name, learning_rate=0.1)


def test_refuses_a_global_clip_beside_an_allowed_optimizer():
    message = r"'clip_by_global_norm' mixes rows .* clip_row_norm"
    with pytest.raises(OptimizerNotAllowedError, match=message):
        optimizer("sgd", learning_rate=0.1, clip_by_global_norm=1.0)


def test_names_the_nearest_optimizer_and_all_of_them():
    message = r"optimizer\('adagard'\) is unknown; did you mean 'adagrad'\? Allowed are sgd, .*lion"
    with pytest.raises(OptimizerNotAllowedError, match=message):
        optimizer("adagard", learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("adam", {"beta1": 0.9}, r"takes no 'beta1'; did you mean 'b1'\? Allowed are b1, b2"),
        ("sgd", {"momentum": 0.9}, r"optimizer\('sgd'\) takes no 'momentum'; Allowed are learning"),
        ("sgd", {"clip_norm": 1.0}, r"did you mean 'clip_row_norm'\?"),
        ("rmsprop", {"centered": True}, r"takes no 'centered'"),
        ("adam", {"b1": 1.0}, r"b1=1.0; allowed is a finite float32 number in \[0, 1\)"),
        ("adam", {"b1": True}, r"b1=True; allowed is"),
        ("adam", {"b2": 1 - 1e-12}, r"b2=0.99.*in \[0, 1\)"),
        ("adam", {"eps": 1e-60}, r"eps=1e-60; allowed is a finite float32 number in \(0, inf\)"),
        ("adagrad", {"eps": None}, r"eps=None; allowed is"),
        ("momentum", {"nesterov": 1}, r"nesterov=1; allowed is True or False"),
        ("lion", {"weight_decay": float("nan")}, r"weight_decay=nan; allowed is"),
        ("sgd", {"clip": 0.0}, r"optimizer\('sgd'\): clip=0.0; allowed is .* \(0, inf\)"),
        ("sgd", {"clip_row_norm": 1e39}, r"clip_row_norm=1e\+39; allowed is a finite float32"),
        ("sgd", {"learning_rate": -0.1}, r"learning_rate=-0.1; allowed is .* \[0, inf\)"),
        ("sgd", {"learning_rate": 10**400}, r"allowed is"),
        ("sgd", {"learning_rate": None}, r"learning_rate=None; allowed is"),
        ("sgd", {"learning_rate": "0.1"}, r"learning_rate='0.1'; allowed is"),
    ],
)
def test_refuses_hyperparameters_that_are_unknown_or_cannot_work(name, hyperparameters, message):
    with pytest.raises(ConfigError, match=message):
        optimizer(name, **{"learning_rate": 0.1} | hyperparameters)


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_refuses_rows_that_are_not_float32_or_float64(dtype):
    with pytest.raises(DtypeError, match=f"of dtype {dtype}: allowed are float32 and float64"):
        row_optimizer(optimizer("sgd", learning_rate=0.1), (2,), dtype)


def test_an_optimizer_that_is_a_function_and_no_name_is_refused():
    with pytest.raises(OptimizerNotAllowedError, match="give a name, one of adagrad, adam"):
        optimizer(len, learning_rate=0.1)
