"""`DynamicEmbedding`: an embedding layer whose rows are in a bank."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from carls_jax import hooks
from carls_jax.bank.table import Table
from carls_jax.errors import InvalidInputError


class DynamicEmbedding(nnx.Module):
    """Looks up embeddings in a bank and, when the model is differentiated, pushes their gradients.

    The vocabulary is open: a key that was never seen gets its initial row. The bank's optimizer for
    the field moves the rows, so the model's optimizer must not: the only parameter here is a zero
    that stays zero, and leaving it out of what is differentiated freezes the rows. What `vmap`,
    `jax.checkpoint` (`nnx.remat`) and `shard_map` do is told at `hooks.lookup`.

    Attributes:
      handle: float32 scalar, the handle of `hooks.lookup`.

    Args:
      table: Table that holds the embeddings.
      field: Name of a field with an optimizer.
      combiner: How to make one embedding of a bag of keys, the last axis of `keys`: "sum" or "mean"
        of those found. None: one embedding for each key.
      create: Whether a lookup creates the rows that are not there. Otherwise they are zeros and
        take no gradients.

    Raises:
      FieldNotFoundError: The table has no such field.
      InvalidInputError: The field has no optimizer, or `combiner` is unknown.

    Source: CARLS (arXiv:2105.12849), dynamic_embedding_ops.py, dynamic_embedding_lookup.
    """

    def __init__(
        self,
        table: Table,
        field: str = "embedding",
        *,
        combiner: Literal["sum", "mean"] | None = None,
        create: bool = True,
    ) -> None:
        if table.spec.field(field).optimizer is None:
            raise InvalidInputError(
                f"field {field!r} of table {table.name!r} has no optimizer, so it would not be "
                "trained: declare it with Field(optimizer=...), or read it with "
                "hooks.lookup(handle=None)"
            )
        if combiner not in (None, "sum", "mean"):
            raise InvalidInputError(f"combiner={combiner!r}: allowed are None, 'sum' and 'mean'")
        self.table = table
        self.field = field
        self.combiner = combiner
        self.create = create
        self.handle = nnx.Param(hooks.new_handle())

    def __call__(
        self, keys: jax.Array | np.ndarray, *, step: jax.Array | int | None = None
    ) -> jax.Array:
        """Returns the embeddings of keys.

        Args:
          keys: int32 `[*batch]`, or uint32 `[*batch, 2]` made by `hooks.split_keys`; -1 is padding.
            With a combiner the last axis of `*batch` is the bag.
          step: Model step, an integer scalar: gradients are pushed with it. Needed in a loop, as in
            `hooks.lookup`.

        Returns:
          float32 `[*batch, *shape]`, with a combiner without the bag's axis. Padding gives zeros,
          as does a bag of nothing else.
        """
        rows = hooks.lookup(
            self.table,
            keys,
            handle=self.handle[...],
            fields=(self.field,),
            step=step,
            create=self.create,
        )
        if self.combiner is None:
            return rows[self.field]
        return self._combined(rows)

    def _combined(self, rows: hooks.Rows) -> jax.Array:
        bag = rows.found.ndim - 1
        if bag < 0:
            raise InvalidInputError("keys is one key; with a combiner its last axis is the bag")
        total = rows[self.field].sum(axis=bag)
        if self.combiner == "sum":
            return total
        count = jnp.maximum(rows.found.sum(axis=bag), 1).astype(total.dtype)
        return total / jnp.expand_dims(count, range(bag, total.ndim))
