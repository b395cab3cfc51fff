"""Rows as a jitted function reads them, and their gradient: a push to the bank."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from carls_jax.errors import InvalidInputError
from carls_jax.hooks import callbacks, device_words
from carls_jax.hooks.bodies import LookupBody, WriteBody
from carls_jax.hooks.host_words import num_words
from carls_jax.hooks.rows import Rows


def read(body: LookupBody, words: jax.Array) -> Rows:
    """Reads the rows of keys with their step, words `[*batch, 3]`."""
    answer = callbacks.read(body, words, width=body.width)
    values, present, step = {}, {}, {}
    start = 0
    for name in body.fields:
        field = body.table.spec.field(name)
        stop = start + num_words(field)
        values[name] = device_words.from_words(answer[..., start:stop], field)
        present[name] = answer[..., stop] != 0
        step[name] = lax.bitcast_convert_type(answer[..., stop + 1], jnp.int32)
        start = stop + 2
    return Rows(values, present, step)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def read_and_push(body: LookupBody, words: jax.Array, handle: jax.Array) -> Rows:
    """As `read`; the backward pass pushes the gradients of the fields that have an optimizer.

    JAX leaves a backward pass out that leads to nothing that is differentiated: hence the handle.
    """
    del handle
    return read(body, words)


def _forward(body: LookupBody, words: Any, handle: Any) -> tuple[Rows, Any]:
    rows = read(body, words.value)
    return rows, (words.value, rows.present, handle.value)


def _backward(
    body: LookupBody,
    kept: tuple[jax.Array, dict[str, jax.Array], jax.Array],
    cotangents: Rows,
) -> tuple[None, jax.Array]:
    words, present, handle = kept
    for name in trained_fields(body):
        cotangent = cotangents.values[name]
        if not isinstance(cotangent, SymbolicZero):
            _push(body, name, device_words.keep_keys(words, present[name]), _once(cotangent))
    return None, jnp.zeros_like(handle)


read_and_push.defvjp(_forward, _backward, symbolic_zeros=True)


def _push(body: LookupBody, name: str, words: jax.Array, gradients: jax.Array) -> None:
    field = body.table.spec.field(name)
    columns = device_words.to_words(gradients, field, batch=words.shape[:-1])
    packed = jnp.concatenate([words, columns], axis=-1)
    push = WriteBody("push", body.table, (name,), body.clock)
    callbacks.write(push, packed.reshape(-1, packed.shape[-1]), width=push.width)


@jax.custom_jvp
def _once(cotangent: jax.Array) -> jax.Array:
    """Returns the cotangent, and refuses to be differentiated: each order would push again."""
    return cotangent


@_once.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise InvalidInputError(
        "hooks.lookup was differentiated twice, and would push twice. Look the rows up with "
        "handle=None, differentiate by them, and hooks.push the gradient of your choice"
    )


def trained_fields(body: LookupBody) -> list[str]:
    """Returns the fields that take gradients: those with an optimizer."""
    return [name for name in body.fields if body.table.spec.field(name).optimizer is not None]
