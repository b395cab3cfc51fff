"""`Table`: a client's handle to one table of a bank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import DEFAULT_CLOCK, NO_STEP
from carls_jax.bank.rows import METADATA, Rows, Written
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.values import as_keys, as_values
from carls_jax.errors import InvalidInputError
from carls_jax.metrics import Direction, Flow

if TYPE_CHECKING:
    from carls_jax.bank.interface import Applied, Bank, TableStats

BLOCK_ROWS = 65_536


class Table:
    """Reads and writes the rows of one table; made by `Bank.table`.

    n is the number of keys. Keys may be any integer array-like, or strings where the spec says so;
    -1 is padding: looked up it is not found, written it is ignored. Methods may be called from
    several threads at once.

    Attributes:
      bank: The bank that holds the table.
      spec: What the table is.
    """

    def __init__(self, bank: Bank, spec: TableSpec) -> None:
        self.bank = bank
        self.spec = spec

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.spec.name

    def lookup(
        self,
        keys: object,
        *,
        fields: Sequence[str] | None = None,
        create: bool = False,
        sources: Sequence[str] | str | None = None,
        max_age_steps: int | None = None,
        now: int | None = None,
        clock: str = DEFAULT_CLOCK,
        metadata: Sequence[str] = ("step",),
    ) -> Rows:
        """Reads rows.

        Args:
          keys: `[n]`; repeated keys are answered each time.
          fields: Names of the fields to read. None: all.
          create: Creates the rows that are not there, with their initial values.
          sources: In a per-source table the authors to read: names, "!me" (all but this client) or
            "*" (all, the default). The arrays of the answer then are `[n, S, ...]`.
          max_age_steps: Fields written longer ago than this come back as not found, as do fields
            never written.
          now: The reader's step on `clock`. None: the highest step the bank has seen on it.
          clock: Clock that `now` is on.
          metadata: Which of "version", "step", "updated_at", "source", "clock" to read as well.

        Returns:
          The rows; where one is not found its values are zeros.

        Raises:
          FieldNotFoundError: A field does not exist.
          InvalidInputError: An argument cannot work; the message says which and why.
        """
        names = self._fields(fields)
        request = pb.Lookup(
            table=self.name,
            fields=names,
            metadata=_metadata(metadata),
            create=create,
            sources=self._sources(sources),
            max_age_steps=_steps(max_age_steps, "max_age_steps"),
            now=_steps(now, "now"),
            clock=clock,
            reader=pb.Author(clock=clock, step=NO_STEP, source=self.bank.source),
        )
        rows = self.bank.lookup(request, as_keys(self.spec, keys))
        self._count("lookup", rows.values)
        return rows

    def update(
        self,
        keys: object,
        values: Mapping[str, ArrayLike],
        *,
        step: int = NO_STEP,
        clock: str = DEFAULT_CLOCK,
        source: str | None = None,
        if_newer: bool = False,
    ) -> Applied:
        """Overwrites fields, creating the rows that are not there.

        Args:
          keys: `[n]`; of a repeated key the last value stays.
          values: By field, `[n, *shape]`.
          step: Model step that the values were made with.
          clock: Clock that `step` is on.
          source: The job that writes. None: the bank object's own `source`.
          if_newer: Leaves a field as it is where its step is higher than `step`; ties are written.

        Raises:
          FieldNotFoundError, ShapeError, DtypeError, NonFiniteError, KeyKindError: nothing changed.
          BankFullError: The table has no room for the new rows; nothing changed.
        """
        ids = as_keys(self.spec, keys)
        arrays = as_values(self.spec, values, num_keys=ids.size)
        by = self._author(step, clock, source)
        applied = self.bank.apply(changes.update(self.name, ids, arrays, by=by, if_newer=if_newer))
        self._count("update", arrays)
        return applied

    def push(
        self,
        keys: object,
        gradients: Mapping[str, ArrayLike],
        *,
        step: int = NO_STEP,
        clock: str = DEFAULT_CLOCK,
        source: str | None = None,
        combine: Literal["sum", "mean"] = "sum",
        create: bool = True,
    ) -> Applied:
        """Sends gradients, which the fields' optimizers apply to the rows.

        Args:
          keys: `[n]`; the gradients of a repeated key are combined first.
          gradients: By field, `[n, *shape]`; each field must have an optimizer.
          step: Model step; a learning-rate schedule is evaluated at it.
          clock: Clock that `step` is on.
          source: The job that pushes. None: the bank object's own `source`.
          combine: "sum" or "mean" of a repeated key's gradients.
          create: Creates rows that are not there. Otherwise their keys are returned as
            `unknown_keys`; the other rows are updated all the same.

        Raises:
          InvalidInputError: A field has no optimizer, or as `update`; nothing changed.
        """
        if combine not in ("sum", "mean"):
            raise InvalidInputError(f"combine={combine!r}: allowed are 'sum' and 'mean'")
        ids = as_keys(self.spec, keys)
        arrays = as_values(self.spec, gradients, num_keys=ids.size)
        by = self._author(step, clock, source)
        applied = self.bank.apply(
            changes.push(self.name, ids, arrays, by=by, combine=combine, create=create)
        )
        self._count("push", arrays)
        return applied

    def load(
        self,
        keys: object,
        values: Mapping[str, ArrayLike],
        *,
        step: int = 0,
        clock: str = DEFAULT_CLOCK,
        source: str | None = None,
    ) -> int:
        """Writes many rows, in blocks; as `update`, but not as one change.

        Returns:
          How many rows were created.
        """
        ids = as_keys(self.spec, keys)
        arrays = as_values(self.spec, values, num_keys=ids.size)
        by = self._author(step, clock, source)
        created = 0
        for start in range(0, ids.size, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            part = {name: array[block] for name, array in arrays.items()}
            created += self.bank.apply(
                changes.update(self.name, ids[block], part, by=by)
            ).num_created
            self._count("load", part)
        return created

    def delete(self, keys: object, *, source: str | None = None) -> int:
        """Removes rows (in a per-source table the source's own) and returns how many there were."""
        by = self._author(NO_STEP, DEFAULT_CLOCK, source)
        return self.bank.apply(
            changes.delete(self.name, as_keys(self.spec, keys), by=by)
        ).num_deleted

    def scan(
        self,
        *,
        fields: Sequence[str] | None = None,
        metadata: Sequence[str] = ("step",),
        block_rows: int = BLOCK_ROWS,
    ) -> Iterator[Rows]:
        """Reads all rows, block by block, in no particular order.

        Rows written meanwhile may or may not be seen. `rows.keys` are the keys (of string tables,
        their fingerprints); in a per-source table `rows.sources` is empty and each block holds one
        row per key and source: ask for metadata "source" to tell them apart.
        """
        if not 1 <= block_rows <= 1 << 20:
            raise InvalidInputError(f"block_rows={block_rows}: allowed is 1 to 2**20")
        request = pb.Scan(
            table=self.name,
            fields=self._fields(fields),
            metadata=_metadata(metadata),
            num_rows=block_rows,
        )
        while True:
            rows, request.start = self.bank.scan(request)
            self._count("scan", rows.values)
            if rows.keys.size:
                yield rows
            if not request.start:
                return

    def to_numpy(self, *, fields: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Returns "keys" and all values by field, ordered by key, as arrays in memory."""
        names = self._fields(fields)
        blocks = list(self.scan(fields=names))
        if not blocks:
            empty = {
                name: np.zeros((0, *self.spec.field(name).shape), self.spec.field(name).dtype)
                for name in names
            }
            return {"keys": changes.NO_KEYS.copy(), **empty}
        keys = np.concatenate([rows.keys for rows in blocks])
        order = np.argsort(keys, kind="stable")
        columns = {name: np.concatenate([rows[name] for rows in blocks])[order] for name in names}
        return {"keys": keys[order], **columns}

    def history(self, keys: object, field: str, *, source: str = "") -> list[list[Written]]:
        """Returns, for each key, the last writes of a field, newest first.

        The field must have been declared with `history=...`; a key without a row has none.
        """
        if not self.spec.field(field).history:
            raise InvalidInputError(
                f"field {field!r} of table {self.name!r} keeps no history: declare it with "
                "Field(history=8), say"
            )
        request = pb.History(table=self.name, field=field, source=source)
        return self.bank.history(request, as_keys(self.spec, keys))

    def stats(self) -> TableStats:
        """Returns counts of this table."""
        return self.bank.stats().tables[self.name]

    def __len__(self) -> int:
        return self.stats().num_rows

    def __repr__(self) -> str:
        return f"<Table {self.name!r} fields={list(self.spec.fields)} keys={self.spec.keys}>"

    def _fields(self, fields: Sequence[str] | None) -> list[str]:
        if isinstance(fields, str):
            raise InvalidInputError(f"fields={fields!r}: give a tuple of names, ({fields!r},)")
        names = list(self.spec.fields if fields is None else fields)
        if not names:
            raise InvalidInputError(
                f"fields=(): name at least one of {', '.join(self.spec.fields)}"
            )
        for name in names:
            self.spec.field(name)
        return names

    def _sources(self, sources: Sequence[str] | str | None) -> list[str]:
        if not self.spec.per_source:
            if sources is not None:
                raise InvalidInputError(
                    f"sources={sources!r}: table {self.name!r} is not per_source"
                )
            return []
        if sources is None or sources == "*":
            return ["*"]
        if sources == "!me":
            if not self.bank.source:
                raise InvalidInputError("sources='!me': connect with source=... to be somebody")
            return [f"!{self.bank.source}"]
        return [sources] if isinstance(sources, str) else list(sources)

    def _author(self, step: int, clock: str, source: str | None) -> pb.Author:
        name = self.bank.source if source is None else source
        if self.spec.per_source and not name:
            raise InvalidInputError(
                f"source='': table {self.name!r} is per_source; name the writer with source=..."
            )
        return changes.author(step=step, clock=clock, source=name)

    def _count(self, direction: Direction, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            self.bank.ledger.add(
                Flow(self.bank.source, self.name, name, direction),
                num_bytes=array.nbytes,
                num_rows=array.shape[0],
            )


def _metadata(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in METADATA:
            raise InvalidInputError(f"metadata={tuple(names)!r}: allowed are {', '.join(METADATA)}")
    return list(names)


def _steps(value: int | None, argument: str) -> int | None:
    if value is not None and (isinstance(value, bool) or int(value) != value or value < 0):
        raise InvalidInputError(f"{argument}={value!r}: allowed are integers from 0")
    return None if value is None else int(value)
