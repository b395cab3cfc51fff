"""The rules against optax, on dense parameters of which every row is touched at every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.optimizers import OptimizerSpec, optimizer
from carls_jax.bank.schedules import schedule
from tests.bank.pushed_rows import PushedRows

NUM_STEPS = 40
SHAPE = (50, 16)
RATE = 0.1


def row_norm_clip(max_norm):
    def update(updates, state, params=None):
        clip = optax.clip_by_global_norm(max_norm)
        return jax.vmap(lambda row: clip.update(row, clip.init(row))[0])(updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# Each of ours with the same from optax.
PAIRS = {
    "sgd": (optimizer("sgd", learning_rate=RATE), optax.sgd(RATE)),
    "momentum": (
        optimizer("momentum", learning_rate=RATE, momentum=0.8),
        optax.sgd(RATE, momentum=0.8),
    ),
    "nesterov": (
        optimizer("momentum", learning_rate=RATE, momentum=0.9, nesterov=True),
        optax.sgd(RATE, momentum=0.9, nesterov=True),
    ),
    "adagrad": (optimizer("adagrad", learning_rate=RATE), optax.adagrad(RATE)),
    "adagrad from 0": (
        optimizer("adagrad", learning_rate=RATE, initial_accumulator_value=0.0, eps=1e-5),
        optax.adagrad(RATE, initial_accumulator_value=0.0, eps=1e-5),
    ),
    "rmsprop": (optimizer("rmsprop", learning_rate=RATE), optax.rmsprop(RATE)),
    "rmsprop like torch": (
        optimizer("rmsprop", learning_rate=RATE, decay=0.99, initial_scale=1.0, eps_in_sqrt=False),
        optax.rmsprop(RATE, decay=0.99, initial_scale=1.0, eps_in_sqrt=False),
    ),
    "adam": (optimizer("adam", learning_rate=RATE), optax.adam(RATE)),
    "adam with eps_root": (
        optimizer("adam", learning_rate=RATE, b1=0.8, b2=0.99, eps=1e-6, eps_root=1e-4),
        optax.adam(RATE, b1=0.8, b2=0.99, eps=1e-6, eps_root=1e-4),
    ),
    "adamw": (
        optimizer("adamw", learning_rate=RATE, weight_decay=0.01),
        optax.adamw(RATE, weight_decay=0.01),
    ),
    "lion": (optimizer("lion", learning_rate=RATE), optax.lion(RATE)),
    "clip": (
        optimizer("adam", learning_rate=RATE, clip=0.5),
        optax.chain(optax.clip(0.5), optax.adam(RATE)),
    ),
    "clip_row_norm": (
        optimizer("adagrad", learning_rate=RATE, clip_row_norm=3.5),
        optax.chain(row_norm_clip(3.5), optax.adagrad(RATE)),
    ),
    "clip, then clip_row_norm": (
        optimizer("sgd", learning_rate=RATE, clip=1.0, clip_row_norm=2.5),
        optax.chain(optax.clip(1.0), row_norm_clip(2.5), optax.sgd(RATE)),
    ),
    "schedule": (
        optimizer(
            "adagrad",
            learning_rate=schedule(
                "warmup_cosine_decay",
                init_value=0.0,
                peak_value=0.5,
                warmup_steps=5,
                decay_steps=30,
            ),
        ),
        optax.adagrad(optax.warmup_cosine_decay_schedule(0.0, 0.5, 5, 30)),
    ),
}
BIT_EQUAL = ("sgd", "momentum", "nesterov", "lion")


def draw(dtype):
    generator = np.random.default_rng(0)
    values = generator.normal(size=SHAPE).astype(dtype)
    gradients = generator.normal(size=(NUM_STEPS, *SHAPE)).astype(dtype)
    gradients[:, :, 3] = 0.0  # a feature that never occurs
    return values, gradients


def run_bank(spec: OptimizerSpec, dtype):
    values, all_gradients = draw(dtype)
    rows = PushedRows(spec, values)
    for step, gradients in enumerate(all_gradients):
        rows.push(gradients, step=step)
    return rows.values


def run_optax(transformation, dtype, *, jit=True):
    values, all_gradients = draw(dtype)

    def update(values, state, gradients):
        updates, state = transformation.update(gradients, state, values)
        return optax.apply_updates(values, updates), state

    update = jax.jit(update) if jit else update
    # Optax's counts are integers beside floats.
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
        values = jnp.array(values)
        state = transformation.init(values)
        for gradients in all_gradients:
            values, state = update(values, state, jnp.array(gradients))
        return np.asarray(values)


def test_every_optimizer_has_a_reference():
    assert {spec.name for spec, _ in PAIRS.values()} == set(KERNELS)


@pytest.mark.parametrize("pair", PAIRS)
def test_agrees_with_optax_in_float64(pair):
    spec, reference = PAIRS[pair]
    # optax computes schedules and row norms in float32 where its scalars are weakly typed.
    atol = 1e-7 if pair == "schedule" else 1e-13
    np.testing.assert_allclose(
        run_bank(spec, "float64"), run_optax(reference, "float64"), rtol=0, atol=atol
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_agrees_with_optax_in_float32(pair):
    spec, reference = PAIRS[pair]
    # After 40 steps of about 0.1; Adam's is optax's own float32 bias correction, see below.
    atol = 4e-5 if spec.kernel.has_count else 6e-6
    np.testing.assert_allclose(
        run_bank(spec, "float32"), run_optax(reference, "float32"), rtol=0, atol=atol
    )


@pytest.mark.parametrize("pair", BIT_EQUAL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_bit_equal_to_optax_run_operation_by_operation(pair, dtype):
    spec, reference = PAIRS[pair]
    np.testing.assert_array_equal(
        run_bank(spec, dtype), run_optax(reference, dtype, jit=False), strict=True
    )


def test_float32_adam_is_nearer_to_float64_than_optax_is():
    spec, reference = PAIRS["adam"]
    values, gradients = draw("float32")
    exact = run_float64_adam(values, gradients)
    ours = np.abs(run_bank(spec, "float32") - exact).max()
    theirs = np.abs(run_optax(reference, "float32") - exact).max()
    assert ours < 3e-6 < 1e-5 < theirs


def run_float64_adam(values, all_gradients):
    values = values.astype(np.float64)
    mu, nu = np.zeros_like(values), np.zeros_like(values)
    for count, gradients in enumerate(all_gradients.astype(np.float64), start=1):
        mu = 0.9 * mu + 0.1 * gradients
        nu = 0.999 * nu + 0.001 * gradients**2
        root = np.sqrt(nu / (1 - 0.999**count)) + 1e-8
        values -= RATE * mu / (1 - 0.9**count) / root
    return values
