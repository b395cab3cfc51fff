"""The calls from a jitted function to the host: the only ones in this package.

Each takes one packed array and returns one, since a TPU opens a channel for every operand and every
result; only among several CPU devices an array goes in parts. `body` is the NumPy function that
runs on the host. It must be hashable and equal to itself by value, so that the same call is not
traced again; it calls no JAX, which may deadlock on the CPU (jax #24255), and never raises, since
an exception would arrive as a JaxRuntimeError without a type.

A body gets whatever part of an array lies on the device that calls it. Under `jax.jit` that is the
whole array, on device 0; inside `jax.shard_map` see `devices`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from carls_jax.hooks import devices

Body = Callable[[Any], np.ndarray]

# JAX copies an operand above 100 kB in a thread of a pool. With as many CPU devices as cores all
# threads may be busy with devices that wait for that very copy, for ever (measured); smaller ones
# are copied at once.
_PART_WORDS = 24_000

_LOOKUP = "carls_jax.hooks.lookup"

save_lookups = jax.checkpoint_policies.save_only_these_names(_LOOKUP)
"""Policy for `jax.checkpoint`: keeps looked-up rows, and recomputes the rest.

Without it the backward pass looks the rows up a second time, when they may have changed; and the
first lookup, on which nothing but the loss depends, may come after the push (measured, in a scan).
"""


def read(body: Body, operand: jax.Array, *, width: int) -> jax.Array:
    """Calls a body that only reads: uint32 `[..., w]` to uint32 `[..., width]`.

    It may run more than once, or not at all where its result is not used. Calls with equal operands
    may be joined, and those in a loop made once before it. `vmap` makes one call with all rows.

    Raises:
      InvalidInputError: JAX cannot call the host from here.
    """
    devices.check_host_in_reach(operand)

    @custom_vmap
    def call(rows: jax.Array) -> jax.Array:
        shape = (len(rows), width)
        ask = partial(_call_host, jax.pure_callback, body, shape)
        return devices.call_once(ask, rows, shape=shape)

    @call.def_vmap
    def call_once(axis_size: int, in_batched: Any, rows: jax.Array) -> tuple[jax.Array, bool]:
        del in_batched
        answer = call(rows.reshape(-1, rows.shape[-1]))
        return answer.reshape(axis_size, -1, width), True

    answer = call(operand.reshape(-1, operand.shape[-1]))
    return checkpoint_name(answer.reshape(*operand.shape[:-1], width), _LOOKUP)


def write(body: Body, operand: jax.Array, *, width: int) -> jax.Array:
    """Calls a body that writes, once each time: uint32 `[n, w]` to uint32 `[width]`.

    It runs even where its result is not used. Calls that do not depend on one another have no
    order. `vmap` makes one call with the rows of all.

    Raises:
      InvalidInputError: JAX cannot call the host from here.
    """
    devices.check_host_in_reach(operand)

    @custom_vmap
    def call(rows: jax.Array) -> jax.Array:
        tell = partial(_call_host, io_callback, body, (width,))
        return devices.call_once(tell, rows, shape=(width,))

    @call.def_vmap
    def call_once(axis_size: int, in_batched: Any, rows: jax.Array) -> tuple[jax.Array, bool]:
        del axis_size, in_batched
        return call(rows.reshape(-1, rows.shape[-1])), False

    return call(operand)


def _call_host(
    callback: Callable[..., jax.Array], body: Body, shape: tuple[int, ...], rows: jax.Array
) -> jax.Array:
    words = rows.reshape(-1)
    parts = [words]
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        starts = range(0, max(words.size, 1), _PART_WORDS)
        parts = [words[start : start + _PART_WORDS] for start in starts]
    answer = jax.ShapeDtypeStruct(shape, jnp.uint32)
    return callback(_Whole(body, rows.shape), answer, *parts)


@dataclass(frozen=True)
class _Whole:
    """Calls a body with the array of `shape` whose words arrive in parts."""

    body: Body
    shape: tuple[int, ...]

    def __call__(self, *parts: Any) -> np.ndarray:
        arrays = [np.asarray(part) for part in parts]
        words = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return self.body(words.reshape(self.shape))
