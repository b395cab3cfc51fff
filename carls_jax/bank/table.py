"""`Table`: a client's handle to one table of a bank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank import changes, requests, showing
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.blending import check_blend
from carls_jax.bank.changes import DEFAULT_CLOCK, NO_STEP
from carls_jax.bank.compact import decode, decoded_rows, encode
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.values import as_keys, as_values
from carls_jax.errors import InvalidInputError, KeyNotFoundError
from carls_jax.metrics import Direction, Flow

if TYPE_CHECKING:
    from carls_jax.bank.interface import Applied, Bank, TableStats

# What is loaded or scanned at once: so much as a few frames on the wire hold, and so few rows that
# making room for them in the key index holds scans up for a millisecond.
BLOCK_BYTES = 8 << 20
BLOCK_ROWS = 16_384
_MAX_REQUESTS = 256


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
        self._flows: dict[tuple[str, str], Flow] = {}
        make = partial(requests.lookup, spec, me=bank.source)
        self._make_request, self._known_request = make, lru_cache(_MAX_REQUESTS, typed=True)(make)

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
          create: Creates the rows that are not there, with their initial values; in a per-source
            table those of this client, whether or not it reads them.
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
        request = self._request(
            fields=fields,
            create=create,
            sources=sources,
            max_age_steps=max_age_steps,
            now=now,
            clock=clock,
            metadata=metadata,
        )
        rows = self.bank.lookup(request, as_keys(self.spec, keys))
        self._count("lookup", rows.values)
        return decoded_rows(self.spec, rows)

    def update(
        self,
        keys: object,
        values: Mapping[str, ArrayLike],
        *,
        step: int = NO_STEP,
        clock: str = DEFAULT_CLOCK,
        source: str | None = None,
        if_newer: bool | Sequence[str] = False,
        blend: float = 0.0,
    ) -> Applied:
        """Overwrites fields, or blends them, creating the rows that are not there.

        Args:
          keys: `[n]`; of a repeated key the last value stays.
          values: By field, `[n, *shape]`; finite, those of padding too.
          step: Model step that the values were made with.
          clock: Clock that `step` is on.
          source: The job that writes. None: the bank object's own `source`.
          if_newer: Leaves a field as it is where its own step, on the same clock, is higher than
            `step`; ties are written. Names of fields: those alone, with their groups.
          blend: Share of the present value that is kept, from 0 (none) to below 1: the new value is
            `blend * present + (1 - blend) * given`, an exponential moving average. A field that was
            never written takes what is given. For float fields; see `carls_jax.bank.blending`.

        Raises:
          FieldNotFoundError, ShapeError, DtypeError, NonFiniteError, KeyKindError: nothing changed.
          InvalidInputError: An argument cannot work; nothing changed.
          BankFullError: The table has no room for the new rows; nothing changed.
        """
        ids = as_keys(self.spec, keys)
        arrays = self._encoded(as_values(self.spec, values, num_keys=ids.size))
        check_blend(self.spec, arrays, blend)
        guarded = requests.checked_if_newer(arrays, if_newer)
        by = self._author(step, clock, source)
        change = changes.update(self.name, ids, arrays, by=by, if_newer=guarded, blend=blend)
        applied = self.bank.apply(change)
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

        A lazy field gathers them until the row is read.

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
        change = changes.push(self.name, ids, arrays, by=by, combine=combine, create=create)
        applied = self.bank.apply(change)
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
        """Writes many rows, in blocks; as `update`, but each block is a change of its own.

        Returns:
          How many rows were created.

        Raises:
          As `update`; the blocks before the one that failed were written.
        """
        ids = as_keys(self.spec, keys)
        arrays = as_values(self.spec, values, num_keys=ids.size)
        by = self._author(step, clock, source)
        created = 0
        block_rows = self._block_rows(list(arrays))
        for start in range(0, ids.size, block_rows):
            block = slice(start, start + block_rows)
            part = self._encoded({name: array[block] for name, array in arrays.items()})
            change = changes.update(self.name, ids[block], part, by=by)
            created += self.bank.apply(change).num_created
            self._count("load", part)
        return created

    def delete(self, keys: object, *, source: str | None = None) -> int:
        """Removes rows (in a per-source table the source's own) and returns how many there were."""
        by = self._author(NO_STEP, DEFAULT_CLOCK, source)
        change = changes.delete(self.name, as_keys(self.spec, keys), by=by)
        return self.bank.apply(change).num_deleted

    def scan(
        self,
        *,
        fields: Sequence[str] | None = None,
        metadata: Sequence[str] = ("step",),
        block_rows: int | None = None,
    ) -> Iterator[Rows]:
        """Reads all rows, block by block, in no particular order.

        Rows written meanwhile may or may not be seen; one that is deleted and created again may be
        seen twice. `rows.keys` are the keys (of string tables, their fingerprints). In a per-source
        table each block holds one row per key and source: metadata "source" tells them apart.

        Args:
          fields: Names of the fields to read. None: all.
          metadata: As in `lookup`.
          block_rows: Rows of a block at most. None: about 8 MB of values.
        """
        names = requests.checked_fields(self.spec, fields)
        if block_rows is None:
            block_rows = self._block_rows(names)
        if not 1 <= block_rows <= 1 << 20:
            raise InvalidInputError(f"block_rows={block_rows}: allowed is 1 to 2**20")
        kinds = requests.checked_metadata(metadata)
        request = pb.Scan(table=self.name, fields=names, metadata=kinds, num_rows=block_rows)
        while True:
            rows, request.start = self.bank.scan(request)
            self._count("scan", rows.values)
            if rows.keys.size:
                yield decoded_rows(self.spec, rows)
            if not request.start:
                return

    def to_numpy(self, *, fields: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Returns "keys" and all values by field, ordered by key, as arrays in memory.

        In a per-source table "source" is there too, the author of each row.

        Raises:
          InvalidInputError: A field has the name of one of these.
        """
        names = requests.checked_fields(self.spec, fields)
        own = ("keys", "source") if self.spec.per_source else ("keys",)
        if taken := set(own) & set(names):
            raise InvalidInputError(f"fields={taken}: read them with scan(), or leave them out")
        parts: dict[str, list[NDArray[Any]]] = {"keys": [changes.NO_KEYS]}
        if self.spec.per_source:
            parts["source"] = [np.empty(0, object)]
        for name in names:
            field = self.spec.field(name)
            parts[name] = [np.empty((0, *field.shape), field.dtype)]
        for rows in self.scan(fields=names, metadata=own[1:]):
            parts["keys"].append(rows.keys)
            if self.spec.per_source:
                parts["source"].append(rows.source[names[0]])
            for name in names:
                parts[name].append(rows[name])
        columns = {name: np.concatenate(blocks) for name, blocks in parts.items()}
        order = np.lexsort([columns[name] for name in reversed(own)])
        return {name: column[order] for name, column in columns.items()}

    def sample(
        self, num_rows: int = 10, *, fields: Sequence[str] | None = None, seed: int = 0
    ) -> Rows:
        """Reads rows drawn at random, to look at; a notebook shows them as a table.

        All keys are read to draw among them.

        Args:
          num_rows: How many different keys; all, if there are fewer.
          fields: Names of the fields to read. None: all.
          seed: Another seed draws other rows.

        Raises:
          KeyNotFoundError: The table has no rows.
        """
        names = requests.checked_fields(self.spec, fields)
        smallest = min(self.spec.fields, key=lambda name: self.spec.fields[name].row_bytes)
        blocks = [rows.keys for rows in self.scan(fields=(smallest,), metadata=())]
        if not blocks:
            raise KeyNotFoundError(f"table {self.name!r} has no rows to draw from")
        keys = np.unique(np.concatenate(blocks))
        drawn = np.random.default_rng(seed).permutation(keys)[:num_rows]
        return self.lookup(drawn, fields=names)

    def history(self, keys: object, field: str, *, source: str = "") -> list[list[Written]]:
        """Returns, for each key, the last writes of a field, newest first.

        The field must have been declared with `history=...`; a key without a row has none.
        """
        described = self.spec.field(field)
        if not described.history:
            raise InvalidInputError(
                f"field {field!r} of table {self.name!r} keeps no history: declare it with "
                "Field(history=8), say"
            )
        request = pb.History(table=self.name, field=field, source=source)
        return [
            [replace(one, value=decode(described, one.value)) for one in of_key]
            for of_key in self.bank.history(request, as_keys(self.spec, keys))
        ]

    def stats(self) -> TableStats:
        """Returns counts of this table."""
        return self.bank.stats().tables[self.name]

    def __len__(self) -> int:
        return self.stats().num_rows

    def __repr__(self) -> str:
        return f"<Table {self.name!r} fields={list(self.spec.fields)} keys={self.spec.keys}>"

    def _repr_html_(self) -> str:
        return showing.table_html(self.spec)

    def _encoded(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: encode(self.spec.field(name), value) for name, value in values.items()}

    def _block_rows(self, fields: Sequence[str]) -> int:
        row_bytes = sum(self.spec.field(name).row_bytes for name in fields)
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))

    def _author(self, step: int, clock: str, source: str | None) -> pb.Author:
        name = self.bank.source if source is None else source
        return requests.author(self.spec, step=step, clock=clock, source=name)

    def _request(self, **asked: Any) -> pb.Lookup:
        """Returns the request for a lookup; most are like earlier ones, and nobody alters them."""
        try:
            return self._known_request(**asked)
        except TypeError:  # lists cannot be looked up among them
            return self._make_request(**asked)

    def _count(self, direction: Direction, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            flow = self._flows.get((direction, name))
            if flow is None:
                flow = Flow(self.bank.source, self.name, name, direction)
                self._flows[direction, name] = flow
            self.bank.ledger.add(flow, num_bytes=array.nbytes, num_rows=array.shape[0])
