"""What a table answers: lookups, histories and scans.

n is the number of keys, S the number of authors that a lookup of a per-source table reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.bounds import check_answer
from carls_jax.bank.changes import NO_STEP, Keys
from carls_jax.bank.layout import METADATA_COLUMNS
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.table_shard import TableShard
from carls_jax.bank.values import MAX_KEYS
from carls_jax.errors import InvalidInputError

Mask = NDArray[np.bool_]
# Kind and field; a kind is "value" or one of the metadata.
Place = tuple[str, str]
Columns = dict[Place, NDArray[Any]]

# Of a `Written`, beside its value.
_WRITTEN_BYTES = 1 << 10


def lookup(
    table: TableShard, request: pb.Lookup, keys: Keys, *, clocks: Mapping[str, int]
) -> tuple[Rows, Mask]:
    """Reads rows; the request was checked.

    Args:
      clocks: Each clock's highest step.

    Returns:
      The rows, and which are there, of whatever age: bool `[n]`, in a per-source table `[n, S]`.
    """
    kinds = ["value", *request.metadata]
    row_bytes = _value_bytes(table, request.fields)
    if request.HasField("max_age_steps"):
        kinds = [*dict.fromkeys([*kinds, "step", "clock"])]
    names = _column_names(table, request.fields, kinds)
    sources: tuple[str, ...] = ()
    if table.spec.per_source:
        sources = authors(table, request.sources)
        check_answer(keys.size * len(sources), row_bytes, what="keys and sources")
        arrays, exists = _gather_authors(table, names, keys, sources)
    else:
        check_answer(keys.size, row_bytes, what="keys")
        arrays, exists = _gather(table, names, keys)
    present = {
        name: exists & _is_young(table, request, arrays, name, clocks)
        if request.HasField("max_age_steps")
        else exists.copy()
        for name in request.fields
    }
    if request.HasField("max_age_steps"):
        for name, mask in present.items():
            arrays["value", name][~mask] = 0
    rows = Rows(
        keys=keys,
        values={name: arrays["value", name] for name in request.fields},
        found=np.logical_and.reduce(list(present.values())),
        present=present,
        metadata=_readable(table, request.metadata, arrays, exists),
        sources=sources,
    )
    return rows, exists


def _value_bytes(table: TableShard, fields: Iterable[str]) -> int:
    """Returns how many bytes the values of a row are, as they are answered."""
    return sum(table.spec.field(name).row_bytes for name in set(fields))


def exist(table: TableShard, keys: Keys, *, source: str) -> Mask:
    """Tells, `[n]`, which keys have a row of an author."""
    return _gather(table, {}, keys, source=source)[1]


def _column_names(
    table: TableShard, fields: Sequence[str], kinds: Sequence[str]
) -> dict[Place, str]:
    """Names the columns that a request reads."""
    return {(kind, name): _column_name(table, kind, name) for kind in kinds for name in fields}


def _column_name(table: TableShard, kind: str, field: str) -> str:
    if kind == "value":
        return f"value/{field}"
    if kind == "source" and table.spec.per_source:
        return "author"
    return f"{kind}/{table.spec.group_of(field)}"


def authors(table: TableShard, wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the authors that a request reads, by name."""
    known = sorted(set(table.sources) - {""})
    if "*" in wanted:
        return tuple(known)
    refused = {name[1:] for name in wanted if name.startswith("!")}
    if refused:
        return tuple(name for name in known if name not in refused)
    return tuple(sorted(set(wanted)))


def _gather(
    table: TableShard, names: Mapping[Place, str], keys: Keys, *, source: str = ""
) -> tuple[Columns, Mask]:
    """Copies the rows of keys, `[n, ...]`, blank where there is none, and tells which are there."""
    copies, exists = table.read(keys, tuple(names.values()), source=source)
    return dict(zip(names, copies, strict=True)), exists


def _gather_authors(
    table: TableShard, names: Mapping[Place, str], keys: Keys, sources: Sequence[str]
) -> tuple[Columns, Mask]:
    """Copies the rows of keys and authors, `[n, S, ...]`, and tells which are there."""
    if keys.size * len(sources) > MAX_KEYS:
        raise InvalidInputError(
            f"{keys.size} keys of {len(sources)} sources: allowed are {MAX_KEYS} rows in all; give "
            "fewer keys or name the sources"
        )
    arrays = {
        place: np.empty(
            (keys.size, len(sources), *table.columns[name].shape[1:]), table.columns[name].dtype
        )
        for place, name in names.items()
    }
    exists = np.empty((keys.size, len(sources)), np.bool_)
    for number, source in enumerate(sources):
        of_author, exists[:, number] = _gather(table, names, keys, source=source)
        for place, array in of_author.items():
            arrays[place][:, number] = array
    return arrays, exists


def _is_young(
    table: TableShard,
    request: pb.Lookup,
    arrays: Columns,
    name: str,
    clocks: Mapping[str, int],
) -> Mask:
    """Tells whether a field was written at most `max_age_steps` ago on its own clock."""
    highest = {**clocks, request.clock: request.now} if request.HasField("now") else clocks
    now = np.array([highest.get(clock, NO_STEP) for clock in table.clocks], np.int64)
    step = arrays["step", name]
    age = now[arrays["clock", name]] - step
    return np.asarray((step != NO_STEP) & (age <= request.max_age_steps), np.bool_)


def _readable(
    table: TableShard, kinds: Sequence[str], arrays: Columns, exists: Mask
) -> dict[str, dict[str, NDArray[Any]]]:
    """Returns metadata by kind and field, blank where no row is, with names for numbers."""
    readable: dict[str, dict[str, NDArray[Any]]] = {kind: {} for kind in kinds}
    numbered = {"source": table.sources, "clock": table.clocks}
    is_missing = None if exists.all() else ~exists
    for (kind, name), array in arrays.items():
        if kind not in readable:
            continue
        if kind == "version":
            array = array.astype(np.int64)
        if kind in numbered:
            array = np.array(list(numbered[kind]), dtype=object)[array]
            if is_missing is not None:
                array[is_missing] = ""
        readable[kind][name] = array
    return readable


def history(table: TableShard, request: pb.History, keys: Keys) -> list[list[Written]]:
    """Reads the last writes of a field, newest first."""
    check_answer(
        keys.size * table.spec.field(request.field).history,
        # Each write becomes an object of its own.
        _value_bytes(table, [request.field]) + _WRITTEN_BYTES,
        what="writes",
    )
    names = {
        (kind, request.field): f"history/{request.field}/{kind}"
        for kind in ("value", *METADATA_COLUMNS)
    }
    arrays, exists = _gather(table, names, keys, source=request.source)
    rings = {kind: array for (kind, _), array in arrays.items()}
    sources, clocks = list(table.sources), list(table.clocks)
    return [
        _written({kind: array[row] for kind, array in rings.items()}, sources, clocks)
        if exists[row]
        else []
        for row in range(keys.size)
    ]


def _written(
    ring: Mapping[str, NDArray[Any]], sources: Sequence[str], clocks: Sequence[str]
) -> list[Written]:
    """Returns the writes of one row's ring, whose places without a version were never written."""
    places = [place for place in np.argsort(ring["version"])[::-1] if ring["version"][place]]
    return [
        Written(
            version=int(ring["version"][place]),
            step=int(ring["step"][place]),
            updated_at=float(ring["updated_at"][place]),
            source=sources[ring["source"][place]],
            clock=clocks[ring["clock"][place]],
            value=ring["value"][place].copy(),
        )
        for place in places
    ]


def scan(table: TableShard, request: pb.Scan) -> tuple[Rows, int]:
    """Reads the rows of the next slots, and where to go on (0: no more)."""
    names = _column_names(table, request.fields, ["value", *request.metadata])
    columns = {place: table.columns[name] for place, name in names.items()}
    columns["key", ""] = table.columns["key"]
    num_rows = min(int(request.num_rows), table.num_rows)
    check_answer(num_rows, _value_bytes(table, request.fields), what="rows")
    parts: list[Columns] = []
    start, stop = int(request.start), int(request.start + request.num_rows)
    for part in table.slices(min(stop, table.used_slots) - start):
        with table.lock:
            slots = table.live_slots(start + part.start, min(start + part.stop, stop))
            parts.append({place: column[slots] for place, column in columns.items()})
    arrays = {
        place: np.concatenate([column[:0], *(one[place] for one in parts)])
        for place, column in columns.items()
    }
    keys = arrays.pop(("key", ""))
    exists = np.ones(keys.size, np.bool_)
    rows = Rows(
        keys=keys,
        values={name: arrays["value", name] for name in request.fields},
        found=exists,
        present={name: exists.copy() for name in request.fields},
        metadata=_readable(table, request.metadata, arrays, exists),
    )
    return rows, stop if stop < table.used_slots else 0
