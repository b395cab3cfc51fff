"""What banks take and return, as wire messages and arrays, and back: one pair of functions each.

n is the number of keys, m the number of writes in a history.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.interface import (
    PROTOCOL_VERSION,
    Applied,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
    TableStats,
)
from carls_jax.bank.joining import Followed
from carls_jax.bank.rows import METADATA, Rows, Written
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.wire import Arrays
from carls_jax.errors import InvalidInputError

_NAMED = ("source", "clock")  # metadata that are text, sent as numbers and a list of names


class _Numbers(defaultdict[str, int]):
    """Numbers names in order of first use."""

    def __init__(self) -> None:
        super().__init__(itertools.count().__next__)

    def of(self, names: NDArray[Any]) -> NDArray[np.int32]:
        """Returns the numbers of an array of names."""
        flat = np.fromiter((self[name] for name in names.ravel().tolist()), np.int32, names.size)
        return flat.reshape(names.shape)


def pack_change(change: Change) -> tuple[pb.Change, Arrays]:
    """Turns a change into its message and arrays."""
    values = {f"value/{name}": array for name, array in change.values.items()}
    return change.header, {"keys": change.keys, **values}


def unpack_change(message: pb.Change, arrays: Arrays) -> Change:
    """Undoes `pack_change`.

    Raises:
      InvalidInputError: An array has no place in a change.
    """
    values = {}
    for name, array in arrays.items():
        prefix, _, field = name.partition("/")
        if prefix == "value":
            values[field] = array
        elif name != "keys":
            raise InvalidInputError(f"array {name!r}: a change has 'keys' and 'value/FIELD'")
    return Change(message, arrays.get("keys", NO_KEYS), values)


def pack_applied(applied: Applied) -> tuple[pb.Applied, Arrays]:
    """Turns what a change did into its message and arrays."""
    message = pb.Applied(
        sequence=applied.sequence,
        num_created=applied.num_created,
        num_deleted=applied.num_deleted,
        num_kept=applied.num_kept,
        num_evicted=applied.num_evicted,
        num_not_admitted=applied.num_not_admitted,
        is_repeated=applied.is_repeated,
    )
    return message, {"unknown_keys": applied.unknown_keys}


def unpack_applied(message: pb.Applied, arrays: Arrays) -> Applied:
    """Undoes `pack_applied`."""
    return Applied(
        sequence=message.sequence,
        num_created=message.num_created,
        num_deleted=message.num_deleted,
        num_kept=message.num_kept,
        num_evicted=message.num_evicted,
        num_not_admitted=message.num_not_admitted,
        unknown_keys=arrays["unknown_keys"],
        is_repeated=message.is_repeated,
    )


def pack_rows(rows: Rows) -> tuple[pb.LookedUp, dict[str, NDArray[Any]]]:
    """Turns rows into their message and arrays, without the keys, which the reader has."""
    arrays: dict[str, NDArray[Any]] = {"found": rows.found}
    arrays |= {f"present/{name}": array for name, array in rows.present.items()}
    arrays |= {f"value/{name}": array for name, array in rows.values.items()}
    numbers = {kind: _Numbers() for kind in _NAMED}
    for kind, by_field in rows.metadata.items():
        for name, array in by_field.items():
            arrays[f"{kind}/{name}"] = numbers[kind].of(array) if kind in numbers else array
    message = pb.LookedUp(
        num_created=rows.num_created,
        sources=rows.sources,
        source_names=list(numbers["source"]),
        clock_names=list(numbers["clock"]),
    )
    return message, arrays


def unpack_rows(message: pb.LookedUp, keys: Keys, arrays: Arrays) -> Rows:
    """Undoes `pack_rows`."""
    names = {"source": message.source_names, "clock": message.clock_names}
    by_kind: dict[str, dict[str, NDArray[Any]]] = {}
    for place, array in arrays.items():
        kind, _, name = place.partition("/")
        named = _texts(names[kind], array) if kind in names else array
        by_kind.setdefault(kind, {})[name] = named
    return Rows(
        keys=keys,
        values=by_kind["value"],
        found=arrays["found"],
        present=by_kind["present"],
        metadata={kind: by_kind[kind] for kind in METADATA if kind in by_kind},
        sources=tuple(message.sources),
        num_created=message.num_created,
    )


def pack_followed(followed: Followed) -> tuple[pb.Followed, Arrays]:
    """Turns what a chain of lookups found into its message and arrays."""
    rows, arrays = pack_rows(followed.rows)
    return pb.Followed(rows=rows), {"keys": followed.keys, "places": followed.places, **arrays}


def unpack_followed(message: pb.Followed, arrays: Arrays) -> Followed:
    """Undoes `pack_followed`."""
    of_rows = dict(arrays)
    keys, places = of_rows.pop("keys"), of_rows.pop("places")
    num_rows = of_rows["found"].shape[0]
    return Followed(keys, places, unpack_rows(message.rows, keys[:num_rows], of_rows))


def _texts(names: Sequence[str], numbers: NDArray[Any]) -> NDArray[Any]:
    return np.take(np.array(list(names), dtype=object), numbers)


def pack_history(history: Sequence[Sequence[Written]]) -> tuple[pb.LookedUp, Arrays]:
    """Turns the last writes of n keys into their message and arrays."""
    writes = list(itertools.chain.from_iterable(history))
    numbers = {kind: _Numbers() for kind in _NAMED}
    arrays: dict[str, NDArray[Any]] = {
        "counts": np.array([len(one) for one in history], np.int64),
        "version": np.array([one.version for one in writes], np.int64),
        "step": np.array([one.step for one in writes], np.int64),
        "updated_at": np.array([one.updated_at for one in writes], np.float64),
        "source": numbers["source"].of(np.array([one.source for one in writes], object)),
        "clock": numbers["clock"].of(np.array([one.clock for one in writes], object)),
    }
    if writes:
        arrays["value"] = np.stack([one.value for one in writes])
    message = pb.LookedUp(source_names=list(numbers["source"]), clock_names=list(numbers["clock"]))
    return message, arrays


def unpack_history(message: pb.LookedUp, arrays: Arrays) -> list[list[Written]]:
    """Undoes `pack_history`."""
    columns = zip(
        arrays["version"].tolist(),
        arrays["step"].tolist(),
        arrays["updated_at"].tolist(),
        _texts(message.source_names, arrays["source"]).tolist(),
        _texts(message.clock_names, arrays["clock"]).tolist(),
        (value.copy() for value in arrays.get("value", ())),
        strict=True,
    )
    writes = itertools.starmap(Written, columns)
    return [list(itertools.islice(writes, count)) for count in arrays["counts"].tolist()]


def pack_stats(stats: BankStats) -> pb.Description:
    """Turns counts into their message."""
    return pb.Description(
        tables=[
            pb.TableDescription(
                spec_json=json.dumps(one.spec.to_dict()),
                num_rows=one.num_rows,
                num_bytes=one.num_bytes,
                counters=one.counters,
                rows_written=one.rows_written,
            )
            for one in stats.tables.values()
        ],
        clocks=stats.clocks,
        sequence=stats.sequence,
    )


def unpack_stats(message: pb.Description) -> BankStats:
    """Undoes `pack_stats`."""
    tables = [
        TableStats(
            spec=TableSpec.from_dict(json.loads(one.spec_json)),
            num_rows=one.num_rows,
            num_bytes=one.num_bytes,
            counters=dict(one.counters),
            rows_written=dict(one.rows_written),
        )
        for one in message.tables
    ]
    return BankStats(
        tables={one.spec.name: one for one in tables},
        clocks=dict(message.clocks),
        sequence=message.sequence,
    )


def pack_identity(identity: BankIdentity) -> pb.Identity:
    """Turns a bank's identity into its message; the incarnation travels in every reply."""
    return pb.Identity(
        protocol_version=PROTOCOL_VERSION,
        bank_id=identity.bank_id,
        shard_index=identity.shard_index,
        num_shards=identity.num_shards,
    )


def unpack_identity(message: pb.Identity, *, incarnation: str) -> BankIdentity:
    """Undoes `pack_identity`."""
    return BankIdentity(
        bank_id=message.bank_id,
        incarnation=incarnation,
        num_shards=message.num_shards,
        shard_index=message.shard_index,
    )


def pack_snapshot(snapshot: SnapshotIdentity) -> pb.Snapshot:
    """Turns a snapshot's identity into its message."""
    return pb.Snapshot(
        bank_id=snapshot.bank_id,
        label=snapshot.label,
        uuid=snapshot.uuid,
        created_at=snapshot.created_at,
        num_rows=snapshot.num_rows,
    )


def unpack_snapshot(message: pb.Snapshot) -> SnapshotIdentity:
    """Undoes `pack_snapshot`."""
    return SnapshotIdentity(
        bank_id=message.bank_id,
        label=message.label,
        uuid=message.uuid,
        created_at=message.created_at,
        num_rows=message.num_rows,
    )
