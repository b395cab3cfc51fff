"""What a step reads and writes, as data: `Lookup`, `Update` and `Push`.

    plan = {
        "own": Lookup(nodes, ("pseudo_label", "confidence"), keys="id", max_age_steps=500),
        "neighbor": Lookup(nodes, "neighbors", keys="id").then("embedding"),
    }
    writes = {"gradient": Push(nodes, "embedding", keys="neighbor")}

`keys` names an entry of the batch, or a lookup further up in the plan: then the keys that its rows
were read by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import numpy as np

from carls_jax.bank import Bank, TableSpec
from carls_jax.errors import DtypeError, InvalidInputError

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Lookup:
    """Plans a lookup for every batch.

    Attributes:
      table: The table, by name or spec.
      fields: The field or fields to read.
      keys: Name of the batch's entry that holds the keys, of any shape `[B, ...]`.
      max_age_steps: Rows written longer ago are not found. None: no limit.
      create: Creates rows that are not there.
      sources: As in `Table.lookup`; the answers then have an axis of authors. Name them where the
        step is compiled: the axis of "*" and "!me" grows with each new author.
      following: The lookup whose keys are the values that this one finds; made by `then`.
    """

    table: TableSpec | str
    fields: str | tuple[str, ...]
    _: KW_ONLY
    keys: str
    max_age_steps: int | None = None
    create: bool = False
    sources: str | tuple[str, ...] | None = None
    following: Lookup | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", _checked_fields(self.table, self.fields))

    def then(
        self,
        fields: str | tuple[str, ...],
        *,
        table: TableSpec | str | None = None,
        max_age_steps: int | None = None,
        create: bool = False,
        sources: str | tuple[str, ...] | None = None,
    ) -> Lookup:
        """Goes on from the keys found so far: ids, then neighbours, then the neighbours' rows.

        Args:
          fields: The field or fields to read of the rows whose keys were found.
          table: Where those rows are. None: the same table.
          max_age_steps, create, sources: As in the first lookup, whose own do not apply here.
        """
        last = self.last
        if len(last.fields) != 1:
            raise InvalidInputError(
                f"then() goes on from one field that holds keys; this lookup reads {last.fields}"
            )
        following = Lookup(
            last.table if table is None else table,
            fields,
            keys=last.fields[0],
            max_age_steps=max_age_steps,
            create=create,
            sources=sources,
        )
        return self._followed_by(following)

    def _followed_by(self, following: Lookup) -> Lookup:
        if self.following is not None:
            following = self.following._followed_by(following)
        return replace(self, following=following)

    @property
    def links(self) -> Iterator[Lookup]:
        """This lookup and those that follow it."""
        link: Lookup | None = self
        while link is not None:
            yield link
            link = link.following

    @property
    def last(self) -> Lookup:
        """The lookup whose rows the step gets."""
        return list(self.links)[-1]


@dataclass(frozen=True)
class Update:
    """Plans that an output of every step overwrites a field; see `Session.write`.

    Attributes:
      table: The table, by name or spec.
      field: The field to write.
      keys: Name of the batch's entry that holds the keys, or of a lookup.
    """

    table: TableSpec | str
    field: str
    _: KW_ONLY
    keys: str

    def __post_init__(self) -> None:
        _checked_fields(self.table, self.field)


@dataclass(frozen=True)
class Push(Update):
    """Plans that an output of every step is pushed as a field's gradients.

    Where `keys` is a lookup, the gradients of rows that it did not find go nowhere.

    Attributes:
      combine: How the gradients of a repeated key are combined: "sum" or "mean".
    """

    combine: Literal["sum", "mean"] = "sum"


def name_of(table: TableSpec | str) -> str:
    """Returns the name of a table given by name or spec."""
    return table if isinstance(table, str) else table.name


def check_plan(plan: Mapping[str, Lookup], writes: Mapping[str, Update], bank: Bank) -> None:
    """Checks what can be known before the first batch is drawn.

    Raises:
      TableNotFoundError, FieldNotFoundError: One does not exist; the message lists those that do.
      DtypeError: A lookup goes on from a field that holds no keys.
      InvalidInputError: An entry is no `Lookup`, `Update` or `Push`, or a field that takes no
        gradients is pushed to.
    """
    for name, lookup in plan.items():
        if not isinstance(lookup, Lookup):
            raise InvalidInputError(f"plan[{name!r}]={lookup!r}: give a Lookup")
        for link in lookup.links:
            _check_link(name, link, bank)
    for name, write in writes.items():
        if not isinstance(write, Update):
            raise InvalidInputError(f"writes[{name!r}]={write!r}: give an Update or a Push")
        field = bank.table(name_of(write.table)).spec.field(write.field)
        if isinstance(write, Push) and field.optimizer is None:
            raise InvalidInputError(
                f"writes[{name!r}]: field {write.field!r} of table {name_of(write.table)!r} has no "
                "optimizer, so it takes no gradients: declare it with Field(optimizer=...)"
            )


def _check_link(name: str, link: Lookup, bank: Bank) -> None:
    spec = bank.table(name_of(link.table)).spec
    for one in link.fields:
        dtype = spec.field(one).dtype
        if link.following is not None and np.dtype(dtype).kind not in "iu":
            raise DtypeError(
                f"plan[{name!r}] goes on from field {one!r} of table {spec.name!r}, which is "
                f"{dtype}: keys are integers"
            )


def _checked_fields(table: TableSpec | str, fields: str | tuple[str, ...]) -> tuple[str, ...]:
    names = (fields,) if isinstance(fields, str) else tuple(fields)
    if not names:
        raise InvalidInputError(f"a plan for table {name_of(table)!r} names no field")
    if isinstance(table, TableSpec):
        for name in names:
            table.field(name)
    return names
