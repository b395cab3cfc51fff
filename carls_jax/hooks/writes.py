"""`hooks.update` and `hooks.push`: writes to a bank, inside jit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from carls_jax.bank.changes import DEFAULT_CLOCK
from carls_jax.bank.table import Table
from carls_jax.errors import InvalidInputError
from carls_jax.hooks import callbacks, device_words, failures
from carls_jax.hooks.bodies import WriteBody


class Receipt(NamedTuple):
    """Tells that a write is over; in a `jax.shard_map` of parts, each device's of its own part.

    Attributes:
      ok: bool scalar, it was done.
      step: int32 scalar, the step that was given (-1: none). It comes back from the host, so that a
        hook that is given this step runs after the write.
    """

    ok: jax.Array
    step: jax.Array


def update(
    table: Table,
    keys: jax.Array | np.ndarray,
    values: Mapping[str, ArrayLike],
    *,
    step: jax.Array | int | None = None,
    clock: str = DEFAULT_CLOCK,
) -> Receipt:
    """Overwrites fields, creating the rows that are not there; of a repeated key the last stays.

    It is done once each time, even if the receipt is not used. The bank numbers its changes, but
    writes of one function have no order among themselves, nor against lookups, unless one is given
    the `Receipt.step` of another. JAX's own ordered callbacks are not offered: they order by device
    only and cannot be `vmap`ped.

    * `vmap`: one change for all, or one for each different step.
    * `grad`: the values are constants to it.
    * `jax.checkpoint`: refused by JAX (NotImplementedError); write outside it.
    * `jax.shard_map`: as `hooks.lookup`: each device writes its own part, and what JAX knows to be
      equal on several devices is written once, by the first; all must come to it. With
      `check_vma=False` every device writes what it has, equal or not.

    Args:
      table: Where to write.
      keys: int32 `[*batch]`, or uint32 `[*batch, 2]` made by `split_keys`; -1 is ignored.
      values: By field, `[*batch, *shape]`; of an int64 field uint32 pairs `[*batch, *shape, 2]`.
      step: Model step that the values were made with, an integer scalar. None: no step.
      clock: Clock that `step` is on.

    Returns:
      A receipt. If the bank fails `ok` is False, and `hooks.check` raises the error.

    Raises:
      FieldNotFoundError, InvalidInputError: An argument cannot work, or JAX calls no host from
        here; as `hooks.lookup`.
      CarlsError: A hook of this bank failed before; as `hooks.check`.
    """
    return _write("update", table, keys, values, step=step, clock=clock)


def push(
    table: Table,
    keys: jax.Array | np.ndarray,
    gradients: Mapping[str, ArrayLike],
    *,
    step: jax.Array | int | None = None,
    clock: str = DEFAULT_CLOCK,
) -> Receipt:
    """Sends gradients, which the fields' optimizers apply to the rows; those of one key are added.

    Rows that are not there are created. Otherwise as `update`; `hooks.lookup` pushes by itself.

    Raises:
      FieldNotFoundError, InvalidInputError: An argument cannot work, or a field has no optimizer.
      CarlsError: A hook of this bank failed before; as `hooks.check`.
    """
    for name in gradients:
        if table.spec.field(name).optimizer is None:
            raise InvalidInputError(
                f"field {name!r} of table {table.name!r} has no optimizer, so it takes no "
                "gradients: declare it with Field(optimizer=...)"
            )
    return _write("push", table, keys, gradients, step=step, clock=clock)


def _write(
    kind: Literal["update", "push"],
    table: Table,
    keys: jax.Array | np.ndarray,
    values: Mapping[str, ArrayLike],
    *,
    step: jax.Array | int | None,
    clock: str,
) -> Receipt:
    failures.check(table.bank)
    if not values:
        raise InvalidInputError(f"values={{}}: name at least one of {list(table.spec.fields)}")
    words = device_words.keys_with_step(keys, step)
    batch = words.shape[:-1]
    columns = [words]
    for name, value in values.items():
        field = table.spec.field(name)
        array = device_words.checked_values(value, field, name=name, batch=batch)
        columns.append(device_words.to_words(array, field, batch=batch))
    packed = jnp.concatenate(columns, axis=-1)
    body = WriteBody(kind, table, tuple(values), clock)
    answer = callbacks.write(body, packed.reshape(-1, packed.shape[-1]), width=body.width)
    return Receipt(answer[0] != 0, lax.bitcast_convert_type(answer[1], jnp.int32))
