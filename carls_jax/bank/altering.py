"""Altering a table that has rows: other hyper-parameters and limits, and added fields.

Where the columns stay as they are, the table goes on with another spec. Otherwise a new table takes
over what the old one holds, and its place. Writers of the table wait meanwhile; readers go on in
the old one, which is let go of when the last of them has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from carls_jax.bank import changes
from carls_jax.bank.changes import Change
from carls_jax.bank.interface import Applied
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import InvalidInputError, SpecMismatchError

_ANOTHER_TABLE = "make a table of another name, and load what scan() reads of this one"
_ANOTHER_FIELD = "add a field of another name"


def check_alter(existing: TableSpec, spec: TableSpec, *, num_rows: int) -> None:
    """Checks that a table with rows can get another spec.

    Raises:
      SpecMismatchError: It would be another table; the message says what to do instead.
      InvalidInputError: `max_rows` is less than the rows that are there.
    """
    if reasons := [*_table_differs(existing, spec), *_fields_differ(existing, spec)]:
        raise SpecMismatchError(f"table {spec.name!r} cannot be altered so: {'; '.join(reasons)}")
    if spec.max_rows < num_rows:
        raise InvalidInputError(
            f"max_rows={spec.max_rows}: table {spec.name!r} has {num_rows} rows: delete some "
            f"before, or give {num_rows} or more"
        )


def _table_differs(existing: TableSpec, spec: TableSpec) -> Iterator[str]:
    for name in ("keys", "per_source", "seed"):
        old, new = getattr(existing, name), getattr(spec, name)
        if old != new:
            yield f"{name} is {old!r}, given {new!r}: {_ANOTHER_TABLE}"
    for name in existing.fields:
        if name not in spec.fields:
            yield f"field {name!r} is missing: give it, too, or {_ANOTHER_TABLE}"
    for group, names in existing.groups.items():
        if added := sorted({*spec.groups.get(group, ())} - {*existing.fields}):
            yield (
                f"fields {', '.join(added)} would join group {group!r}, whose rows were written "
                f"without them ({', '.join(names)}): give them a group of their own"
            )


def _fields_differ(existing: TableSpec, spec: TableSpec) -> Iterator[str]:
    for name in existing.fields:
        if name in spec.fields:
            old, new = _identity(existing.fields[name]), _identity(spec.fields[name])
            for kind in old:
                if old[kind] != new[kind]:
                    yield (
                        f"{kind} of field {name!r} is {old[kind]!r}, given {new[kind]!r}: "
                        f"{_ANOTHER_FIELD}"
                    )


def _identity(field: Field) -> dict[str, object]:
    """Returns what of a field cannot be altered."""
    kinds = ("shape", "dtype", "init", "group", "history", "compact")
    return {kind: getattr(field, kind) for kind in kinds} | {
        "optimizer": field.optimizer and field.optimizer.name,
        "lazy": "on" if field.lazy else "off",
    }


def prepare(
    table: TableShard,
    change: Change,
    *,
    check: Callable[[TableShard], None],
    put: Callable[[TableShard], None],
) -> Callable[[], Applied]:
    """Checks a change of a table's spec and returns what applies it, as `applying.prepare` does.

    A new table is made here: what can fail then has not failed, and to put it in place takes no
    time. The caller holds the old one's `writer`, until the change was applied or given up.

    Args:
      check: Raises BankOverloadedError if the bank cannot have a new table beside the others.
      put: Puts a table in the place of the old one.

    Raises:
      SpecMismatchError, InvalidInputError: As `check_alter`.
      ConfigError: The limit allows no row.
      BankFullError, BankOverloadedError: There is no room for two tables.
    """
    spec = changes.spec_of(change)
    check_alter(table.spec, spec, num_rows=table.num_rows)
    new = None
    if not table.can_follow(spec):
        new = TableShard(spec, min_slots=table.used_slots)
        check(new)
        new.take_over(table)

    def commit() -> Applied:
        if new is None:
            table.follow(spec)
        else:
            # Before anybody alters the new one, nobody may read the old one.
            table.retire()
            put(new)
        return Applied(0)

    return commit
