"""Joins: reads the rows whose keys are the values of other rows.

n is the number of keys asked for, m that of the distinct keys that they lead to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import requests
from carls_jax.bank.changes import Keys
from carls_jax.bank.rows import Rows
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.values import MAX_KEYS, check_keys
from carls_jax.errors import DtypeError, InvalidInputError
from carls_jax.keys import PADDING

MAX_LINKS = 16

Lookup = Callable[[pb.Lookup, Keys], Rows]
SpecOf = Callable[[str], TableSpec]


@dataclass(frozen=True, eq=False)
class Followed:
    """Holds what a chain of lookups found: each row once, and who shares it.

    Attributes:
      keys: int64 `[m]`, the distinct keys of the last lookup.
      places: int32 `[n, ...]`, which of `keys` each value on the way stands for; padding is what
        leads nowhere. `...` are the axes of what the lookups before the last found: authors, where
        their table is per-source, and those of their field.
      rows: Of the first keys; the rows of the others are those that the reader holds.
    """

    keys: Keys
    places: NDArray[np.int32]
    rows: Rows


def follow(
    lookup: Lookup, request: pb.Follow, keys: Keys, held: Keys, *, spec_of: SpecOf
) -> Followed:
    """Makes the lookups of a chain, each with the values that the one before found as keys.

    Args:
      lookup: Reads rows of one table.
      request: The chain.
      keys: int64 `[n]`, of the first lookup.
      held: int64 `[h]`, keys whose rows of the last lookup the reader has.
      spec_of: Returns a table's spec, or raises TableNotFoundError.

    Raises:
      InvalidInputError, NotFoundError: A lookup is impossible (then none was made), or the keys
        lead to too many others.
    """
    _check(request, spec_of)
    if held.size:
        check_keys(held)
    distinct, places = _distinct(check_keys(keys))
    *links, last = request.links
    for link in links:
        reached = _reached(lookup(link, distinct), link.fields[0], num_asked=places.size)
        distinct, of_reached = _distinct(reached)
        places = of_reached.take(places, axis=0)
    is_held = _among(distinct, held)
    if not is_held.any() and distinct.size:
        return Followed(distinct, places.astype(np.int32), lookup(last, distinct))
    if is_held.all():  # a lookup needs a key, and padding costs nothing
        distinct, is_held = np.append(distinct, PADDING), np.append(is_held, False)
    order = np.argsort(is_held, kind="stable")
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    rows = lookup(last, distinct[~is_held])
    return Followed(distinct[order], rank.take(places), rows)


def _distinct(keys: Keys) -> tuple[Keys, NDArray[np.intp]]:
    """Returns the distinct keys, and for each of `[...]` which of them it is."""
    distinct, places = np.unique(keys, return_inverse=True)
    return distinct, places.reshape(keys.shape)


def _among(ascending: Keys, held: Keys) -> NDArray[np.bool_]:
    """Tells, `[m]`, which distinct keys are held; a fifth of the time that `np.isin` takes."""
    is_held = np.zeros(ascending.size, np.bool_)
    if ascending.size and held.size:
        at = np.minimum(np.searchsorted(ascending, held), ascending.size - 1)
        is_held[at[ascending[at] == held]] = True
    is_held[ascending == PADDING] = False
    return is_held


def _reached(rows: Rows, field: str, *, num_asked: int) -> Keys:
    """Returns the keys that rows hold, int64 `[m, ...]`, and padding where a row is not found."""
    values: NDArray[Any] = rows[field]
    num_keys = num_asked * math.prod(values.shape[1:])
    if num_keys > MAX_KEYS:
        raise InvalidInputError(
            f"{num_asked} keys lead to {num_keys} by field {field!r}: allowed are {MAX_KEYS}; give "
            "fewer keys"
        )
    found = rows.found.reshape(rows.found.shape + (1,) * (values.ndim - rows.found.ndim))
    # Rows that were not found hold zeros, and 0 is somebody's key.
    return np.where(found, values.astype(np.int64), PADDING)


def _check(request: pb.Follow, spec_of: SpecOf) -> None:
    """Finds what any of the lookups would refuse, before one of them creates a row."""
    if not 1 <= len(request.links) <= MAX_LINKS:
        raise InvalidInputError(f"{len(request.links)} links: allowed are 1 to {MAX_LINKS}")
    for link in request.links:
        spec = spec_of(link.table)
        requests.checked_fields(spec, link.fields)
        requests.checked_metadata(link.metadata)
    for link in request.links[:-1]:
        if len(link.fields) != 1:
            raise InvalidInputError(
                f"fields={tuple(link.fields)}: a chain goes on from one field that holds keys"
            )
        _check_holds_keys(spec_of(link.table), link.fields[0])


def _check_holds_keys(spec: TableSpec, field: str) -> None:
    dtype = spec.field(field).dtype
    if np.dtype(dtype).kind not in "iu":
        raise DtypeError(
            f"a chain goes on from field {field!r} of table {spec.name!r}, which is {dtype}: keys "
            "are integers"
        )
