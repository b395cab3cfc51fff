"""How a server lets a client of this machine read a table: one file descriptor, once.

The descriptor travels beside a reply that says what is where in the file. The client counts what it
reads in a corner of the connection's segment, where the server adds it to the table's own counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from carls_jax.bank import status
from carls_jax.bank.index import index_parts
from carls_jax.bank.interface import BankIdentity
from carls_jax.bank.layout import columns_of
from carls_jax.bank.same_host_connection import COUNTERS_BYTES, Connection, Kind
from carls_jax.bank.specs import TableSpec
from carls_jax.bank.table_memory import Part, parts_from_list, parts_to_list
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import BankOverloadedError, CarlsError, InvalidInputError

_INT64 = np.dtype(np.int64)
Share: TypeAlias = Callable[[str], tuple[BankIdentity, TableShard]]

COUNTERS = ("lookup_calls", "rows_looked_up")
MAX_SHARED_TABLES = COUNTERS_BYTES // (8 * len(COUNTERS))
# What a client says beyond is not believed, so that no sum leaves 64 bits.
MAX_COUNT = 1 << 48


@dataclass(frozen=True)
class SharedTable:
    """Describes a table's memory.

    Attributes:
      bank_id: Identifier of the bank that holds the table.
      incarnation: The bank's, as in every reply.
      number: Which of the segment's counters are the table's.
      spec: What the table is.
      parts: The arrays in the file.
    """

    bank_id: str
    incarnation: str
    number: int
    spec: TableSpec
    parts: Mapping[str, Part]

    def encode(self) -> bytes:
        """Returns the message that a descriptor goes with."""
        described: dict[str, Any] = {
            **vars(self),
            "spec": self.spec.to_dict(),
            "parts": parts_to_list(self.parts),
        }
        return json.dumps(described).encode()

    @classmethod
    def decode(cls, message: bytes) -> SharedTable:
        """Undoes `encode`; raises ValueError if the message describes no table."""
        try:
            described = json.loads(message)
            described["spec"] = TableSpec.from_dict(described["spec"])
            described["parts"] = parts_from_list(described["parts"])
            shared = cls(**described)
            shared._check()
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"no shared table: {error!r}") from error
        return shared

    def _check(self) -> None:
        """Raises ValueError if the parts are not those of the table: all is read by address."""
        if not 0 <= self.number < MAX_SHARED_TABLES:
            raise ValueError(f"number={self.number}: allowed is 0 to {MAX_SHARED_TABLES - 1}")
        (max_rows,) = self.parts["key"].shape
        columns = columns_of(self.spec, {}).items()
        expected = {name: ((max_rows, *column.shape), column.dtype) for name, column in columns}
        expected |= {"guards": ((max_rows,), np.dtype("uint32")), "retired": ((1,), _INT64)}
        for name, (size, dtype) in index_parts(max_rows).items():
            expected[name] = (size,), dtype
        for name, (shape, dtype) in expected.items():
            part = self.parts[name]
            if (part.shape, np.dtype(part.dtype)) != (shape, dtype):
                raise ValueError(f"{name!r} is {part}, expected {dtype} {shape}")


class TableSharing:
    """Shares tables with the client of one connection, and counts what it reads; a context manager.

    Args:
      connection: Where the client asks.
      share: Returns the bank's identity and the table of a name.
    """

    def __init__(self, connection: Connection, share: Share) -> None:
        self._connection = connection
        self._share = share
        self._counted = ExitStack()
        self._num_tables = 0

    def open(self, name: str, *, call: int) -> None:
        """Answers a client that asks for a table: with a descriptor, or why there is none."""
        try:
            identity, table = self._share(name)
            if not table.is_shared:
                raise InvalidInputError(f"the memory of table {name!r} cannot be shared")
            if self._num_tables == MAX_SHARED_TABLES:
                raise BankOverloadedError(f"{MAX_SHARED_TABLES} tables are shared already")
        except CarlsError as error:
            self._connection.send(Kind.FAILURE, call, status.pack_error(error), {})
            return
        number, self._num_tables = self._num_tables, self._num_tables + 1
        shared = SharedTable(
            identity.bank_id, identity.incarnation, number, table.spec, table.memory.parts
        )
        self._counted.enter_context(table.counts.including(lambda: self._read(number)))
        self._connection.send(
            Kind.TABLE, call, shared.encode(), {}, descriptors=[table.memory.descriptor]
        )

    def _read(self, number: int) -> dict[str, int]:
        """Returns what the client has counted of a table, and nothing of a table never read."""
        counts = np.frombuffer(self._counters, np.int64).reshape(-1, len(COUNTERS))
        numbers = np.clip(counts[number], 0, MAX_COUNT).tolist()
        return {name: count for name, count in zip(COUNTERS, numbers, strict=True) if count}

    def __enter__(self) -> TableSharing:
        # Held beyond the connection: the last counts are read when it has ended.
        self._counters = self._connection.counters
        return self

    def __exit__(self, *_: object) -> None:
        self._counted.close()
