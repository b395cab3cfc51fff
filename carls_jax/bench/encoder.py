"""The training step of `pipeline` and `neighbors`: an encoder pulled towards neighbours' rows."""

from __future__ import annotations

import math
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 64
EMBEDDING_WIDTH = 64

_NUM_FEATURES = 256
_HIDDEN_WIDTH = 1024
_LEARNING_RATE = 1e-3
# The first of them compiles; others do not disturb all of them.
_NUM_TIMED = 10

Params = list[jax.Array]


def make_params(num_hidden: int) -> Params:
    """Makes the weights of an encoder with so many hidden layers."""
    widths = [_NUM_FEATURES, *[_HIDDEN_WIDTH] * num_hidden, EMBEDDING_WIDTH]
    keys = jax.random.split(jax.random.key(0), len(widths) - 1)
    return [
        jax.random.normal(key, (width, following)) * math.sqrt(2 / width)
        for key, width, following in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def features(rng: np.random.Generator, *axes: int) -> NDArray[np.float32]:
    """Draws inputs `[*axes, F]`."""
    return rng.standard_normal((*axes, _NUM_FEATURES), np.float32)


def encode(params: Params, inputs: jax.Array) -> jax.Array:
    """Returns the embeddings `[..., EMBEDDING_WIDTH]` of inputs `[..., F]`."""
    for weights in params[:-1]:
        inputs = jax.nn.relu(inputs @ weights)
    return inputs @ params[-1]


def _loss(params: Params, inputs: jax.Array, neighbors: jax.Array) -> jax.Array:
    distances = encode(params, inputs)[:, None, :] - neighbors
    return jnp.mean(distances**2)


@partial(jax.jit, donate_argnums=0)
def step(params: Params, inputs: jax.Array, neighbors: jax.Array) -> Params:
    """Moves the encoder towards the rows `[B, n, EMBEDDING_WIDTH]` of its inputs' neighbours."""
    gradients = jax.grad(_loss)(params, inputs, neighbors)
    return [one - _LEARNING_RATE * by for one, by in zip(params, gradients, strict=True)]


@partial(jax.jit, donate_argnums=0)
def encoding_step(params: Params, inputs: jax.Array, neighbor_inputs: jax.Array) -> Params:
    """Does the same with neighbours that it encodes itself, of inputs `[B, n, F]`.

    As none goes through rows, no gradient goes through them: the knowledge is the same, but fresh.
    """
    return step(params, inputs, encode(params, neighbor_inputs))


def params_for(min_step_ms: float, *, num_neighbors: int) -> Params:
    """Makes an encoder so deep that `step` takes at least so long when nothing disturbs it."""
    inputs = features(np.random.default_rng(0), BATCH_SIZE)
    rows = np.zeros((BATCH_SIZE, num_neighbors, EMBEDDING_WIDTH), np.float32)
    num_hidden = 1
    while True:
        params = make_params(num_hidden)
        fastest_ms = math.inf
        for _ in range(_NUM_TIMED):
            begun = time.perf_counter()
            params = jax.block_until_ready(step(params, inputs, rows))
            fastest_ms = min(fastest_ms, 1e3 * (time.perf_counter() - begun))
        if fastest_ms >= min_step_ms:
            return params
        num_hidden += max(1, num_hidden // 2)
