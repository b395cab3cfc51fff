"""`SharedTables`: lookups without a server's help, in the memory of a bank of this machine."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import same_host_handshake, status
from carls_jax.bank.changes import Keys
from carls_jax.bank.index import index_of
from carls_jax.bank.row_reader import RowReader
from carls_jax.bank.rows import Rows
from carls_jax.bank.same_host_connection import Kind
from carls_jax.bank.table_memory import attach
from carls_jax.bank.table_sharing import SharedTable
from carls_jax.bank.values import MAX_KEYS
from carls_jax.keys import PADDING

# The server opens a table at once, or not at all.
OPENING_S = 1.0
# After a table could not be opened, until it is tried again.
RETRY_S = 1.0
# What a row may be written for. Then the server is asked, which will tell if it is in trouble.
LONGEST_WRITE_S = 0.1

# Metadata whose numbers need no names.
_PLAIN = frozenset({"version", "step", "updated_at"})
# Different requests that are remembered; a step in a request makes another one each time.
_MAX_PLANS = 256

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """Says which columns answer a request.

    Attributes:
      fields: Their values are the first columns.
      metadata: Kind and field of the other columns.
      columns: Names of all, and then counts of gradients, which the server is to apply first.
    """

    fields: tuple[str, ...]
    metadata: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]


class _Table:
    """Is the memory of one table, and what was asked of it before."""

    def __init__(
        self, link: _Link, shared: SharedTable, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        self.link = link
        self.number = shared.number
        self.reader = RowReader(arrays)
        self.index = index_of(arrays)
        self.retired = arrays["retired"]
        self._spec = shared.spec
        self._plans: dict[bytes, _Plan | None] = {}

    def plan(self, request: pb.Lookup) -> _Plan | None:
        """Returns the columns that answer a request, or None if the server alone can."""
        asked = request.SerializeToString()
        plans = self._plans  # another thread may begin anew meanwhile
        if asked not in plans:
            if len(plans) >= _MAX_PLANS:
                plans = self._plans = {}
            plans[asked] = self._made_plan(request)
        return plans[asked]

    def _made_plan(self, request: pb.Lookup) -> _Plan | None:
        fields = tuple(request.fields)
        if (
            not fields
            or not {*fields} <= {*self._spec.fields}
            or not {*request.metadata} <= _PLAIN
            or request.HasField("max_age_steps")
            or request.sources
        ):
            return None
        metadata = tuple((kind, name) for kind in request.metadata for name in fields)
        columns = [f"value/{name}" for name in fields]
        columns += [f"{kind}/{self._spec.group_of(name)}" for kind, name in metadata]
        lazy = self._spec.lazy_fields
        columns += [f"pending/{name}/count" for name in fields if name in lazy]
        return _Plan(fields, metadata, tuple(columns))


class SharedTables:
    """Reads tables out of the memory of the server that listens at a path.

    A lookup is answered here if the table is in such memory, the request asks for nothing that the
    server alone knows, and the server is alive after the rows were read. May be used from several
    threads at once.

    Args:
      path: Where the server accepts same-host connections.
      bank_id: The bank that must be there.

    Attributes:
      incarnation: The bank's when a table was last opened; "" before.
    """

    def __init__(self, path: str, *, bank_id: str) -> None:
        self._path = path
        self._bank_id = bank_id
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._tables: Mapping[str, _Table] = {}
        self._retry_at: dict[str, float] = {}
        self._is_closed = False
        self.incarnation = ""

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows | None:
        """Reads rows, or returns None where the server is to be asked."""
        if os.getpid() != self._process or not _are_allowed(keys):
            return None
        table = self._tables.get(request.table) or self._open(request.table)
        plan = table.plan(request) if table else None
        if table is None or plan is None:
            return None
        read = table.reader.read(keys, plan.columns, table.index, longest_s=LONGEST_WRITE_S)
        # Only what is seen after the rows were read shows that they were the bank's.
        if table.retired[0] or not table.link.is_alive():
            with self._lock:
                self._forget(table.link)
            return None
        if read is None:
            return None
        copies, found = read
        if request.create and (keys[~found] != PADDING).any():
            return None
        num_shown = len(plan.fields) + len(plan.metadata)
        if any(count.any() for count in copies[num_shown:]):
            return None
        table.link.count(table.number, keys.size)
        return _rows(plan, keys, copies[:num_shown], found)

    def close(self) -> None:
        """Lets go of all memory; from then on the server is to be asked."""
        if os.getpid() == self._process:
            with self._lock:
                self._is_closed = True
                self._forget(self._link)

    def _open(self, name: str) -> _Table | None:
        """Has the server share a table; None: it does not."""
        with self._lock:
            if name in self._tables:
                return self._tables[name]
            now = time.monotonic()
            if self._is_closed or now < self._retry_at.get(name, 0.0):
                return None
            try:
                self._link = self._link or _Link(self._path)
                table = self._receive(self._link, name)
            except _RefusedError as error:
                reason = str(error)
                if not self._tables:  # it would hold one of the server's connections for nothing
                    self._forget(self._link)
            except (OSError, ValueError) as error:
                reason = str(error)
                # An answer that is still on its way must not be taken for the next one.
                self._forget(self._link)
            else:
                self._tables = {**self._tables, name: table}
                return table
            _logger.debug("the server at %s does not share %s: %s", self._path, name, reason)
            later = {other: at for other, at in self._retry_at.items() if now < at}
            self._retry_at = {**later, name: time.monotonic() + RETRY_S}
            return None

    def _receive(self, link: _Link, name: str) -> _Table:
        with link.open(name) as (message, descriptor):
            shared = SharedTable.decode(message)
            if (shared.bank_id, shared.spec.name) != (self._bank_id, name):
                raise ValueError(
                    f"table {shared.spec.name!r} of bank {shared.bank_id} in place of {name!r} of "
                    f"{self._bank_id}"
                )
            arrays = attach(descriptor, shared.parts)
        self.incarnation = shared.incarnation
        return _Table(link, shared, arrays)

    def _forget(self, link: _Link | None) -> None:
        """Lets go of a link, and of all tables. The caller holds the lock."""
        if link is not None and self._link is link:
            self._link, self._tables = None, {}
            link.close()


class _RefusedError(Exception):
    """Says that the server does not share a table."""


class _Link:
    """Is the connection by which tables were shared: while it lives the server does."""

    def __init__(self, path: str) -> None:
        self._connection = same_host_handshake.connect(path, timeout_s=OPENING_S)
        self._held = ExitStack()
        self._held.callback(self._connection.close)
        # PERFORMANCE: a third of the time of `select.poll`, which asks each descriptor.
        self._ends = self._held.enter_context(select.epoll())
        self._ends.register(self._connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        # A child that the server has forked keeps the socket open when the server is killed.
        with suppress(OSError, AttributeError):
            process = os.pidfd_open(self._connection.process())
            self._held.callback(os.close, process)
            self._ends.register(process, select.EPOLLIN)
        self._lock = threading.Lock()
        # PERFORMANCE: a tenth of the time that adding to a NumPy array's numbers takes.
        self._counters = memoryview(self._connection.counters).cast("B").cast("q")
        self._is_open = True

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[bytes, int]]:
        """Gives what the server says of a table and, until the block ends, the descriptor."""
        self._connection.deadline = time.monotonic() + OPENING_S
        self._connection.send(Kind.OPEN, 0, name.encode(), {})
        packet, descriptors = self._connection.receive_descriptors()
        with ExitStack() as held:
            for descriptor in descriptors:
                held.callback(os.close, descriptor)
            message, _ = self._connection.content(packet)
            if packet.kind is Kind.FAILURE:
                raise _RefusedError(str(status.unpack_error(message)))
            if packet.kind is not Kind.TABLE or len(descriptors) != 1:
                raise ValueError(f"{packet} with {len(descriptors)} descriptors is no table")
            yield message, descriptors[0]

    def is_alive(self) -> bool:
        """Tells whether the server still has the other end."""
        try:
            is_quiet = not self._ends.poll(0)
        except (OSError, ValueError):  # it was closed meanwhile
            return False
        # Looked at last: once the link is closed the descriptor may be that of something else.
        return is_quiet and self._is_open

    def count(self, number: int, num_rows: int) -> None:
        """Tells the server of a lookup."""
        with self._lock:
            self._counters[2 * number] += 1
            self._counters[2 * number + 1] += num_rows

    def close(self) -> None:
        self._is_open = False
        self._held.close()


def _are_allowed(keys: Keys) -> bool:
    """Tells whether keys are as they should be; if not, the server says what is wrong."""
    return keys.dtype == np.int64 and keys.ndim == 1 and 1 <= keys.size <= MAX_KEYS


def _rows(plan: _Plan, keys: Keys, copies: list[NDArray[Any]], found: NDArray[np.bool_]) -> Rows:
    metadata: dict[str, dict[str, NDArray[Any]]] = {}
    for (kind, name), copy in zip(plan.metadata, copies[len(plan.fields) :], strict=True):
        metadata.setdefault(kind, {})[name] = copy.astype(np.int64) if kind == "version" else copy
    return Rows(
        keys=keys,
        values=dict(zip(plan.fields, copies, strict=False)),
        found=found,
        present={name: found.copy() for name in plan.fields},
        metadata=metadata,
    )
