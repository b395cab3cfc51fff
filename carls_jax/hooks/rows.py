"""What `hooks.lookup` returns: `Rows`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import jax

from carls_jax.errors import FieldNotFoundError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Holds looked-up rows as JAX arrays; the counterpart of `carls_jax.bank.Rows`, and a pytree.

    Attributes:
      values: By field, `[*batch, *shape]`; zeros where `present` is False. Those of an int64 field
        are uint32 pairs, `[*batch, *shape, 2]`, and can be looked up as they are.
      present: By field, bool `[*batch]`, the row is there and this field is young enough.
      step: By field, int32 `[*batch]`, the model step that its author used; -1: never written.
    """

    values: Mapping[str, jax.Array]
    present: Mapping[str, jax.Array]
    step: Mapping[str, jax.Array]

    def __getitem__(self, field: str) -> jax.Array:
        try:
            return self.values[field]
        except KeyError:
            raise FieldNotFoundError(
                f"the lookup did not ask for field {field!r}, only {', '.join(self.values)}"
            ) from None

    @property
    def found(self) -> jax.Array:
        """bool `[*batch]`: the row is there and each field asked for is young enough."""
        return reduce(jax.numpy.logical_and, self.present.values())
