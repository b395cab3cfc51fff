"""Which of the values that a step gets lack what the training loop itself wrote before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from carls_jax.training.knowledge import Fetched
from carls_jax.training.plan import Lookup, Update, name_of
from carls_jax.training.writes import Writes

Behind = Mapping[str, Mapping[str, NDArray[np.int32]]]


def behind_of(
    fetched: Fetched,
    plan: Mapping[str, Lookup],
    write_plan: Mapping[str, Update],
    writes: Writes,
    *,
    now: int,
) -> Behind:
    """Returns `Known.behind` of each lookup, for the fields that the loop writes.

    Args:
      fetched: What was looked up for the step `now`, which is the one to be made next.
      plan: The lookups, by name.
      write_plan: What is done with a step's outputs, by name.
      writes: What was sent; it may forget what no later step can lack.
    """
    written = {(name_of(one.table), one.field) for one in write_plan.values()}
    behind: dict[str, dict[str, NDArray[np.int32]]] = {}
    for name, lookup in plan.items():
        table = name_of(lookup.last.table)
        behind[name] = {
            field: writes.behind(table, field, fetched.found[name], now=now)
            for field in lookup.last.fields
            if (table, field) in written
        }
    writes.forget(fetched.as_of)
    return behind
