"""The calls from a jitted function to the host: the only ones in this package.

Each takes one packed array and returns one, since a TPU opens a channel for every operand and every
result. `body` is the NumPy function that runs on the host. It must be hashable and equal to itself
by value, so that the same call is not traced again; it calls no JAX, which may deadlock on the CPU
(jax #24255), and never raises, since an exception would arrive as a JaxRuntimeError without a type.

A body gets whatever part of an array lies on the device that calls it. Under `jax.jit` that is the
whole array, on device 0; inside `jax.shard_map`, with all axes manual, one body runs per device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

Body = Callable[[Any], np.ndarray]

_LOOKUP = "carls_jax.hooks.lookup"

save_lookups = jax.checkpoint_policies.save_only_these_names(_LOOKUP)
"""Policy for `jax.checkpoint`: keeps looked-up rows, and recomputes the rest.

Without it the backward pass looks the rows up a second time, when they may have changed.
"""


def read(body: Body, operand: jax.Array, *, width: int) -> jax.Array:
    """Calls a body that only reads: uint32 `[..., w]` to uint32 `[..., width]`.

    It may run more than once, or not at all where its result is not used. Calls with equal operands
    may be joined, and those in a loop made once before it. `vmap` makes one call with all rows.
    """
    shape = jax.ShapeDtypeStruct((*operand.shape[:-1], width), jnp.uint32)
    answer: jax.Array = jax.pure_callback(body, shape, operand, vmap_method="broadcast_all")
    # JAX takes the answer for equal on all devices of a shard_map, and would add their gradients.
    axes = tuple(jax.typeof(operand).mat.varying)
    answer = jax.lax.pcast(answer, axes, to="varying") if axes else answer
    return checkpoint_name(answer, _LOOKUP)


def write(body: Body, operand: jax.Array, *, width: int) -> jax.Array:
    """Calls a body that writes, once each time: uint32 `[n, w]` to uint32 `[width]`.

    It runs even where its result is not used. Calls that do not depend on one another have no
    order. `vmap` makes one call with the rows of all.
    """

    @custom_vmap
    def call(rows: jax.Array) -> jax.Array:
        return io_callback(body, jax.ShapeDtypeStruct((width,), jnp.uint32), rows)

    @call.def_vmap
    def call_once(axis_size: int, in_batched: Any, rows: jax.Array) -> tuple[jax.Array, bool]:
        del axis_size, in_batched
        return call(rows.reshape(-1, rows.shape[-1])), False

    return call(operand)
