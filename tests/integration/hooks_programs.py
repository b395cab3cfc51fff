"""A loss by rows of a bank, the same loss by rows in memory, and JAX's transformations of both.

A program is what its words say, the outermost first: "grad scan vmap" is the gradient of a scan of
a vmap of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from carls_jax import hooks
from carls_jax.bank import Field, LocalBank, Table, TableSpec
from carls_jax.bank.optimizers import optimizer

Loss = Callable[[jax.Array, jax.Array], Any]
Transform = Callable[[Loss], Loss]


def spec(name: str) -> TableSpec:
    """Returns a table of rows that a gradient g moves by -g / 2, and of scores."""
    moved = Field((64,), optimizer=optimizer("sgd", learning_rate=0.5))
    return TableSpec(name, {"embedding": moved, "score": Field()})


def first_rows(keys: np.ndarray) -> np.ndarray:
    """Returns float32 `[n, 64]`, other rows for other keys."""
    return np.cos(keys.reshape(-1, 1) + np.arange(64)).astype(np.float32)


def bank_loss(table: Table) -> Loss:
    """Returns a loss by a handle and keys `[...]`."""

    def loss(handle: jax.Array, keys: jax.Array) -> jax.Array:
        rows = hooks.lookup(table, keys, handle=handle, fields=("embedding",))
        return jnp.sum(jnp.sin(rows["embedding"]) * rows["embedding"])

    return loss


def dense_loss(rows: jax.Array, keys: jax.Array) -> jax.Array:
    """Is the same loss by rows `[n, 64]` and keys that are their places."""
    return jnp.sum(jnp.sin(rows[keys]) * rows[keys])


def _scan(function: Loss) -> Loss:
    def scanned(parameter: jax.Array, keys: jax.Array) -> Any:
        return _total(lax.scan(lambda _, some: (None, function(parameter, some)), None, keys)[1])

    return scanned


def _vmap(function: Loss) -> Loss:
    return lambda parameter, keys: _total(jax.vmap(function, (None, 0))(parameter, keys))


def _cond(function: Loss) -> Loss:
    def chosen(parameter: jax.Array, keys: jax.Array) -> Any:
        def nothing(parameter: jax.Array, keys: jax.Array) -> Any:
            shapes = jax.eval_shape(function, parameter, keys)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        return lax.cond(keys.max() >= 0, function, nothing, parameter, keys)

    return chosen


def _total(parts: Any) -> Any:
    return jax.tree.map(lambda part: part.sum(0), parts)


TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    "cond": _cond,
    "grad": jax.value_and_grad,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "saved": lambda function: jax.checkpoint(function, policy=hooks.save_lookups),
    "scan": _scan,
    "vmap": _vmap,
}


def program(words: str, loss: Loss, **more: Transform) -> Loss:
    """Returns a function of a parameter and keys `[..., n]` to a total loss and its gradient."""
    transforms = {**TRANSFORMS, **more}
    for word in reversed(words.split()):
        loss = transforms[word](loss)
    return loss


@cache
def expected(num_keys: int) -> tuple[float, np.ndarray]:
    """Returns the loss of keys 0, 1, ... and the rows that one push of its gradient leaves."""
    keys = np.arange(num_keys)
    rows = first_rows(keys)
    value, gradient = jax.value_and_grad(dense_loss)(jnp.asarray(rows), jnp.asarray(keys))
    with LocalBank() as bank:
        table = bank.table(spec("expected"))
        table.update(keys, {"embedding": rows})
        table.push(keys, {"embedding": np.asarray(gradient)})
        return float(value), table.lookup(keys)["embedding"]
