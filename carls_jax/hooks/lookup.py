"""`hooks.lookup`: rows of a bank, inside jit, with a gradient that goes back to the bank."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from carls_jax.bank.changes import DEFAULT_CLOCK
from carls_jax.bank.table import Table
from carls_jax.errors import InvalidInputError
from carls_jax.hooks import device_words, failures, gradient
from carls_jax.hooks.bodies import LookupBody
from carls_jax.hooks.host_words import num_words
from carls_jax.hooks.rows import Rows


def lookup(
    table: Table,
    keys: jax.Array | np.ndarray,
    *,
    handle: jax.Array | None,
    fields: Sequence[str] | None = None,
    step: jax.Array | int | None = None,
    create: bool = False,
    max_age_steps: int | None = None,
    clock: str = DEFAULT_CLOCK,
) -> Rows:
    """Looks up rows; the backward pass pushes their gradients to the bank.

    Once for each lookup, and for each field that has an optimizer, the backward pass pushes the
    gradient of what is differentiated: of a mean loss, that of the mean. Where a row was not found
    nothing is pushed. Pushing happens only if `handle` is among what is differentiated, so keep it
    with the trainable parameters.

    The bank may be read at any time before the rows are used, and equal lookups of one step may be
    joined; in a loop pass its `step`, or all turns may see the rows of the first. To read what a
    write of the same function wrote, pass that write's `Receipt.step`.

    * `vmap`: one call of the bank for all.
    * `grad`: once; a derivative of a derivative, and forward mode, raise.
    * `jax.checkpoint`: looks up again in the backward pass, and pushes once. JAX may then make the
      first lookup after the push, and give the loss of rows that have moved; with
      `policy=hooks.save_lookups` there is one lookup, before the push.
    * `jax.shard_map`: each device asks and pushes for its own keys, at its own time, so that it may
      see what another has pushed. Where JAX knows that keys are equal on several devices, the first
      asks and pushes for all; all must come to it, so no branch that one takes alone. (A device
      alone asks with `jax.lax.pcast(keys, axes, to="varying")`.) With `check_vma=False` JAX does
      not know: each device asks, and pushes its part of the gradient.

    Args:
      table: A table of one author for each key.
      keys: int32 `[*batch]`, or uint32 `[*batch, 2]` made by `split_keys`; -1 is padding, and not
        found. Any batch shape, `()` too.
      handle: Trainable float32 scalar, made by `new_handle`. None: the rows are constants, and no
        gradient goes to the bank.
      fields: What to read. None: all fields.
      step: The reader's step, an integer scalar: the gradients are pushed with it, and ages counted
        from it. None: no step, and the newest step the bank has seen.
      create: Creates the rows that are not there, with their initial values.
      max_age_steps: Fields written longer ago than this are not found, as are those never written.
      clock: Clock that `step` is on.

    Returns:
      The rows. If the bank fails none is found, and `hooks.check` raises the error.

    Raises:
      InvalidInputError: An argument cannot work, no field has an optimizer for the handle, or JAX
        calls no host from here: outside jit with arrays on several devices, or in a `shard_map`
        over some of its mesh's axes.
      FieldNotFoundError: A field does not exist.
      CarlsError: A hook of this bank failed before; as `hooks.check`.
    """
    failures.check(table.bank)
    _check_one_author(table)
    names = _names(table, fields)
    body = LookupBody(table, names, create, _checked_age(max_age_steps), clock)
    words = device_words.keys_with_step(keys, step)
    if handle is None:
        return gradient.read(body, words)
    if not gradient.trained_fields(body):
        raise InvalidInputError(
            f"handle is given, but no gradient can reach table {table.name!r}: none of the fields "
            f"{', '.join(names)} has an optimizer. Declare one with Field(optimizer=...), or read "
            "constants with handle=None"
        )
    return gradient.read_and_push(body, words, _checked_handle(handle))


def new_handle() -> jax.Array:
    """Returns a handle for `lookup`, a float32 zero; keep it with the trainable parameters.

    It stands for the rows among what is differentiated. Its gradient is zero, so no optimizer moves
    it.
    """
    return jnp.zeros((), jnp.float32)


def _names(table: Table, fields: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(fields, str) or (fields is not None and not fields):
        raise InvalidInputError(
            f"fields={fields!r}: give a tuple of names of {', '.join(table.spec.fields)}"
        )
    names = tuple(table.spec.fields if fields is None else fields)
    for name in names:
        num_words(table.spec.field(name))
    return names


def _check_one_author(table: Table) -> None:
    if table.spec.per_source:
        raise InvalidInputError(
            f"table {table.name!r} is per_source: a key has any number of rows, so the answer has "
            "no fixed shape. Look it up outside jit, with Table.lookup(sources=...)"
        )


def _checked_age(max_age_steps: int | None) -> int | None:
    if max_age_steps is not None and (
        isinstance(max_age_steps, bool) or not isinstance(max_age_steps, int) or max_age_steps < 0
    ):
        raise InvalidInputError(f"max_age_steps={max_age_steps!r}: allowed are integers from 0")
    return max_age_steps


def _checked_handle(handle: jax.Array) -> jax.Array:
    array = jnp.asarray(handle)
    if array.shape or array.dtype != jnp.float32:
        raise InvalidInputError(
            f"handle has dtype {array.dtype} and shape {list(array.shape)}, expected a float32 "
            "scalar: make it with hooks.new_handle() and keep it with the trainable parameters"
        )
    return array
