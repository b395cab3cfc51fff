"""`Bank`: what every knowledge bank can do, in this process or another, whole or in shards."""

from __future__ import annotations

import abc
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from carls_jax.bank import changes, joining
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import DEFAULT_CLOCK, Change, Keys
from carls_jax.bank.joining import Followed
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.specs import TableSpec, check_name
from carls_jax.errors import InvalidInputError, TableNotFoundError
from carls_jax.metrics import Flow, Ledger

if TYPE_CHECKING:
    from carls_jax.bank.table import Table
    from carls_jax.bank.table_shard import TableShard

# Raised by any change that an older client or server would misunderstand.
PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class BankIdentity:
    """Says which bank answers.

    Attributes:
      bank_id: Identifier of the bank, kept in its root directory.
      incarnation: Changes whenever the bank's state was put back to an earlier one.
      num_shards: How many servers hold the bank.
      shard_index: Which of them answers, from 0.
    """

    bank_id: str
    incarnation: str
    num_shards: int = 1
    shard_index: int = 0


@dataclass(frozen=True)
class SnapshotIdentity:
    """Names one complete, durable state of a whole bank.

    Attributes:
      bank_id: The bank it was taken of.
      label: The name that the user gave.
      uuid: 32 hexadecimal digits, the same on every shard.
      created_at: Seconds since the epoch.
      num_rows: Rows in all tables.
    """

    bank_id: str
    label: str
    uuid: str
    created_at: float = field(default=0.0, compare=False)
    num_rows: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Applied:
    """Tells what a change did.

    Attributes:
      sequence: Number of the change in its shard; the highest where there are several shards.
      num_created: Rows created.
      num_deleted: Rows removed.
      num_kept: Field values left as they were because they were newer.
      unknown_keys: int64 `[m]`, pushed keys that have no row.
    """

    sequence: int
    num_created: int = 0
    num_deleted: int = 0
    num_kept: int = 0
    unknown_keys: Keys = field(default_factory=lambda: changes.NO_KEYS)


@dataclass(frozen=True)
class TableStats:
    """Counts of one table.

    Attributes:
      spec: What the table is.
      num_rows: Rows that are there.
      num_bytes: Bytes that its columns and key index take at most.
      counters: Calls and rows by kind, since the server has the table: since it started, or since
        it made or restored the table.
      rows_written: Rows updated and pushed by each source, since the same moment.
    """

    spec: TableSpec
    num_rows: int
    num_bytes: int
    counters: Mapping[str, int]
    rows_written: Mapping[str, int]


@dataclass(frozen=True)
class BankStats:
    """Counts of a bank.

    Attributes:
      tables: Counts of each table by name.
      clocks: The highest step told on each clock.
      sequence: Changes applied so far.
    """

    tables: Mapping[str, TableStats]
    clocks: Mapping[str, int]
    sequence: int


class Bank(abc.ABC):
    """Is a knowledge bank: a set of tables.

    `LocalBank`, `RemoteBank` and `ShardedBank` cannot be told apart by a caller. All methods may be
    called from several threads at once. Made by `carls_jax.connect`.

    Attributes:
      source: The name under which this client writes.
      ledger: Payload bytes that this client moved, by table, field and direction.
    """

    def __init__(self, *, source: str = "") -> None:
        if source:
            check_name(source, argument="source")
        self.source = source
        self.ledger = Ledger()
        self._handles: dict[str, Table] = {}
        self._handles_lock = threading.Lock()

    def table(self, spec: TableSpec | str) -> Table:
        """Returns a table, creating it if a spec is given and none exists.

        Raises:
          TableNotFoundError: A name was given and no table has it.
          SpecMismatchError: The spec disagrees with the table that exists.
          BankOverloadedError: The bank holds as many tables as it can.
        """
        from carls_jax.bank.table import Table

        if isinstance(spec, TableSpec):
            self.apply(changes.create_table(spec))
            name = spec.name
        else:
            name = spec
        with self._handles_lock:
            if name not in self._handles or isinstance(spec, TableSpec):
                self._handles[name] = Table(self, self._spec(name))
            return self._handles[name]

    def _spec(self, name: str) -> TableSpec:
        tables = self.tables()
        if name not in tables:
            raise TableNotFoundError(
                f"no table {name!r}; this bank has {', '.join(sorted(tables)) or 'none yet'}"
            )
        return tables[name]

    def tables(self) -> dict[str, TableSpec]:
        """Returns the specs of all tables by name."""
        return {name: stats.spec for name, stats in self.stats().tables.items()}

    def advance(self, step: int, *, clock: str = DEFAULT_CLOCK) -> None:
        """Tells the bank that a clock has reached a step; a lower step changes nothing."""
        self.apply(changes.advance(by=changes.author(step=step, clock=clock, source=self.source)))

    @property
    @abc.abstractmethod
    def identity(self) -> BankIdentity:
        """Which bank this is."""

    @abc.abstractmethod
    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Waits until the bank answers; raises BankUnavailableError when the time is over."""

    @abc.abstractmethod
    def apply(self, change: Change) -> Applied:
        """Applies one change, whole or not at all. The one way by which a bank is altered.

        The arrays may be altered as soon as this returns, and not before.

        Raises:
          InvalidInputError, NotFoundError: The change cannot be applied.
          BankFullError, BankOverloadedError: There is no room for what it would add.
        """

    @abc.abstractmethod
    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        """Reads rows; `Table.lookup` is the friendly form."""

    @abc.abstractmethod
    def follow(self, request: pb.Follow, keys: Keys, held: Keys = changes.NO_KEYS) -> Followed:
        """Reads the rows whose keys are the values of other rows, and counts them in the ledger.

        On one server it is one round trip.

        Args:
          request: The lookups; each but the first has what the one before found as keys.
          keys: int64 `[n]`, of the first lookup.
          held: int64 `[h]`, keys whose rows of the last lookup are not wanted again.

        Raises:
          InvalidInputError, NotFoundError: A lookup is impossible, or leads to too many rows; the
            message says which and why.
        """

    def _count(self, request: pb.Lookup, rows: Rows) -> None:
        for name, values in rows.values.items():
            self.ledger.add(
                Flow(self.source, request.table, name, "lookup"),
                num_bytes=values.nbytes,
                num_rows=values.shape[0],
            )

    def _counted(self, lookup: joining.Lookup) -> joining.Lookup:
        """Returns a lookup that is counted in the ledger."""

        def counted(request: pb.Lookup, keys: Keys) -> Rows:
            rows = lookup(request, keys)
            self._count(request, rows)
            return rows

        return counted

    def share(self, table: str) -> tuple[BankIdentity, TableShard]:
        """Returns a table itself, for a server that lets other processes read its memory.

        Raises:
          TableNotFoundError: There is no such table here.
          InvalidInputError: This bank holds no tables in this process.
        """
        raise InvalidInputError(f"table={table!r}: {type(self).__name__} holds no tables itself")

    @abc.abstractmethod
    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        """Reads the last writes of a field; `Table.history` is the friendly form."""

    @abc.abstractmethod
    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        """Reads a block of rows and where the next begins (0: no more); see `Table.scan`."""

    @abc.abstractmethod
    def stats(self) -> BankStats:
        """Returns counts of all tables."""

    @abc.abstractmethod
    def snapshot(self, label: str, *, uuid: str | None = None) -> SnapshotIdentity:
        """Makes the present state durable under a label; returns when it is.

        `uuid` is 32 hexadecimal digits, the same for all shards of a bank; None: drawn anew.

        Raises:
          InvalidInputError: The label is no name, or the bank has no root directory.
        """

    @abc.abstractmethod
    def snapshots(self) -> list[SnapshotIdentity]:
        """Lists the complete snapshots, oldest first."""

    @abc.abstractmethod
    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        """Puts the bank back to a snapshot, named by identity, UUID or (the newest of a) label.

        Raises:
          SnapshotNotFoundError: No complete snapshot is so named; nothing was changed.
          SnapshotCorruptError: The snapshot is damaged; nothing was changed.
          BankIdentityError: The snapshot is of another bank.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of what this object holds; later calls raise BankClosedError."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} source={self.source!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find_snapshot(
    snapshots: Sequence[SnapshotIdentity], wanted: SnapshotIdentity | str
) -> SnapshotIdentity | None:
    """Returns the snapshot of this identity, UUID or label (its newest), or None."""
    for one in reversed(snapshots):
        if one == wanted or wanted in (one.uuid, one.label):
            return one
    return None
