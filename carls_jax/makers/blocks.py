"""What a maker's function gives, as blocks of rows that are fit to be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Table
from carls_jax.bank.blending import check_blend
from carls_jax.errors import InvalidInputError
from carls_jax.keys import PADDING, int_keys, shard_of, string_keys
from carls_jax.makers.context import Context
from carls_jax.makers.maker import Maker


class Block(NamedTuple):
    """Holds rows of one table: keys `[n]`, and by field the values `[n, ...]`."""

    table: str
    keys: Any
    values: Mapping[str, Any]


def check_tables(maker: Maker, context: Context) -> None:
    """Checks that the bank has what a maker reads and writes.

    Raises:
      TableNotFoundError, FieldNotFoundError: The message lists what exists.
      DtypeError: The maker blends, and a field holds no floats.
    """
    for name in maker.reads:
        context.table(name)
    for name, fields in maker.writes.items():
        check_blend(context.table(name).spec, fields, maker.blend)
        for field in fields:
            context.table(name).spec.field(field)


def blocks_of(maker: Maker, context: Context) -> Iterator[Block]:
    """Calls a maker's function and yields what it gives; blocks without rows are left out.

    Raises:
      InvalidInputError: A block is none, or has a table or field that the maker does not declare.
      Exception: Whatever the function raises.
    """
    blocks = _refreshed(maker, context) if maker.is_refresh else _made(maker, context)
    for block in blocks:
        _check_declared(maker, block)
        if np.size(block.keys):
            yield block


def _refreshed(maker: Maker, context: Context) -> Iterator[Block]:
    given = maker.function(context)
    if not isinstance(given, Iterable):
        raise InvalidInputError(f"maker {maker.name!r} returned {_kind(given)}: {_wanted(maker)}")
    for block in given:
        sizes = (3,) if len(maker.writes) > 1 else (2, 3)
        if not isinstance(block, tuple) or len(block) not in sizes:
            raise InvalidInputError(
                f"maker {maker.name!r} yielded {_kind(block)}: {_wanted(maker)}"
            )
        yield Block(*block) if len(block) == 3 else Block(next(iter(maker.writes)), *block)


def _made(maker: Maker, context: Context) -> Iterator[Block]:
    (table,) = maker.writes
    keys = _own_keys(maker, context, context.table(table))
    for start in range(0, len(keys), maker.batch_size):
        batch = keys[start : start + maker.batch_size]
        values = maker.function(context, batch)
        if values is not None:
            yield Block(table, batch, values)


def _own_keys(maker: Maker, context: Context, table: Table) -> NDArray[Any]:
    """Returns the keys that belong to this worker, sorted and each once."""
    if maker.keys is None:
        keys = ids = _all_keys(table)
    else:
        keys = np.asarray(context.cache(maker.keys))
        if not keys.size:
            return keys
        ids = string_keys(keys) if table.spec.keys == "str" else int_keys(keys)
    is_own = shard_of(ids, context.num_workers) == context.worker
    return np.unique(keys[is_own & (ids != PADDING)])


def _all_keys(table: Table) -> NDArray[np.int64]:
    fields = table.spec.fields
    smallest = min(fields, key=lambda name: fields[name].row_bytes)  # a scan reads one at least
    blocks = [rows.keys for rows in table.scan(fields=(smallest,), metadata=())]
    return np.concatenate([np.empty(0, np.int64), *blocks])


def _check_declared(maker: Maker, block: Block) -> None:
    if not isinstance(block.table, str) or block.table not in maker.writes:
        raise InvalidInputError(
            f"maker {maker.name!r} may not write table {block.table!r}; it declares "
            f"{', '.join(maker.writes)}"
        )
    if not isinstance(block.values, Mapping):
        raise InvalidInputError(
            f"maker {maker.name!r} gave {_kind(block.values)} as the values of {block.table!r}: "
            "give {field: values}"
        )
    declared = maker.writes[block.table]
    undeclared = sorted(set(block.values) - set(declared))
    if undeclared:
        raise InvalidInputError(
            f"maker {maker.name!r} may not write {', '.join(undeclared)} of {block.table!r}; it "
            f"declares {', '.join(declared)}"
        )


def _wanted(maker: Maker) -> str:
    if len(maker.writes) > 1:
        return f"yield (table, keys, {{field: values}}), table one of {', '.join(maker.writes)}"
    return "yield (keys, {field: values})"


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
