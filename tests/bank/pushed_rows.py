"""Rows of one field that tests push to, in a bank like any."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank import changes
from carls_jax.bank.changes import author
from carls_jax.bank.optimizers import OptimizerSpec
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec


class PushedRows:
    """Holds a table of one field, "z", with an optimizer.

    Args:
      spec: The optimizer.
      values: `[n, *shape]`, float32 or float64, the rows of keys 0, 1, …
    """

    def __init__(self, spec: OptimizerSpec, values: NDArray) -> None:
        self.keys = np.arange(len(values))
        self._shard = Shard()
        field = Field(values.shape[1:], dtype=values.dtype.name, optimizer=spec)
        self._shard.apply(changes.create_table(TableSpec("t", {"z": field}, max_rows=1 << 12)))
        self._shard.apply(changes.update("t", self.keys, {"z": values}, by=author()))
        self.table = self._shard.table("t")

    def push(self, gradients: ArrayLike, *, keys: ArrayLike | None = None, step: int = 0) -> None:
        """Pushes to rows: to all of them, or to those of `keys`."""
        keys = self.keys if keys is None else np.asarray(keys, np.int64)
        sent = {"z": np.asarray(gradients, self.values.dtype)}
        self._shard.apply(changes.push("t", keys, sent, by=author(step=step)))

    @property
    def values(self) -> NDArray:
        """The rows as they are now."""
        return self._column("value/z")

    @property
    def state(self) -> dict[str, NDArray]:
        """Their optimizer's state, by name."""
        return {name: self._column(f"state/z/{name}") for name in self.state_fields}

    @property
    def state_fields(self) -> list[str]:
        """Names of the state."""
        return list(self.table.optimizers["z"].state_fields)

    def put_state(self, state: Mapping[str, ArrayLike]) -> None:
        """Gives the rows a past."""
        for name, rows in state.items():
            self.table.columns[f"state/z/{name}"][self.table.find(self.keys)] = rows

    def _column(self, name: str) -> NDArray:
        return self.table.columns[name][self.table.find(self.keys)]
