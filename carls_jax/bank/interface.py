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
from carls_jax.errors import (
    BankIdentityError,
    CarlsError,
    InvalidInputError,
    SnapshotNotFoundError,
    TableNotFoundError,
)
from carls_jax.metrics import Flow, Ledger

if TYPE_CHECKING:
    from carls_jax.bank.table import Table
    from carls_jax.bank.table_shard import TableShard

# Raised by any change that an older client or server would misunderstand.
PROTOCOL_VERSION = 2


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
      num_evicted: Rows removed to make room.
      num_not_admitted: Rows left out since their keys were not seen often enough; see `Limit`.
      unknown_keys: int64 `[m]`, pushed keys that have no row.
      is_repeated: Whether the change had been applied before, and this is what was answered then,
        but for rows that made room or were not let in.
    """

    sequence: int
    num_created: int = 0
    num_deleted: int = 0
    num_kept: int = 0
    num_evicted: int = 0
    num_not_admitted: int = 0
    unknown_keys: Keys = field(default_factory=lambda: changes.NO_KEYS)
    is_repeated: bool = False


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
        self._handles_of = 0  # `last_alter` when they were made
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
            # Noted before the bank is asked: what is altered meanwhile is asked for again.
            if self._handles_of != self.last_alter:
                self._handles, self._handles_of = {}, self.last_alter
            if name not in self._handles or isinstance(spec, TableSpec):
                self._handles[name] = Table(self, self._spec(name))
            return self._handles[name]

    def alter(self, spec: TableSpec) -> Table:
        """Gives a table that exists another spec, while others read and write it.

        Hyper-parameters of optimizers, settings of lazy fields, `max_rows` and the limit may
        differ, and fields may be added. All rows have an added field at once, with its initial
        value, as if the table had had it from the start. What gradients were gathered is applied
        by the settings of then. Rows keep their values, versions, steps and optimizer state.

        Hyper-parameters and limits take effect at once. To add fields, or to make room for more
        rows than the table was made for, the bank copies it: its memory is taken twice until
        readers have let go of the old one, and writers of the table wait. Where a bank has several
        shards each does so by itself; should one fail, the same call again, or `resume`, finishes.

        `Table` objects from before go on working for the fields that they know. `table(name)` gives
        one that knows the others, in this process at once and in others after the next answer of
        the server.

        Returns:
          The table, with its new spec.

        Raises:
          TableNotFoundError: There is no such table.
          SpecMismatchError: A field is missing, or something else differs; the message says what to
            do instead. Nothing changed.
          InvalidInputError: `max_rows` is less than the rows that are there. Nothing changed.
          BankFullError, BankOverloadedError: There is no room for two tables. Nothing changed.
        """
        self.apply(changes.alter(spec))
        with self._handles_lock:
            self._handles.pop(spec.name, None)
        return self.table(spec.name)

    def namespace(self, name: str) -> Bank:
        """Returns the part of this bank that has tables and clocks of its own under a name.

        Several runs can share one bank so: none sees or touches the tables and clocks of another,
        whatever they are called. Snapshots are of the whole bank all the same, and `restore` puts
        back the tables of all namespaces.

        Args:
          name: 1 to 64 letters, digits, dots, dashes or underscores.

        Returns:
          A bank that is to be closed before this one; closing it leaves this one open.

        Raises:
          InvalidInputError: The name is not one, or this bank is in a namespace already.
        """
        from carls_jax.bank.namespaces import NamespacedBank

        return NamespacedBank(self, name)

    @property
    def last_alter(self) -> int:
        """A number that differs after a table was altered, as far as this object knows."""
        return 0

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

    def resume(self, error: CarlsError) -> Applied:
        """Goes on with a change that failed, and applies no part of it twice.

        What a bank may have applied is sent again as the same change, which is answered and not
        applied if it was. To make the change anew, as another, might apply it twice.

        Args:
          error: What `apply`, or a method of a table that writes, raised when a server was away or
            one of several shards could not do its part; or what this raised when it failed again.

        Returns:
          What the change did, in all.

        Raises:
          InvalidInputError: Nothing is left of a change to go on with, or so many changes later
            nobody can tell whether it was applied.
        """
        from carls_jax.bank.resuming import unfinished

        (change,) = unfinished(error).left.values()
        return self.apply(change)

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
    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        """Makes the present state durable under a label; returns when it is.

        It is of one instant, over all tables and shards.

        Args:
          label: Any name.
          uuid: 32 hexadecimal digits, the same for all shards of a bank; None: drawn anew.
          is_frozen: Of one shard: it is the state for which `freeze` was called with this `uuid`.

        Raises:
          BankTimeoutError: `freeze` was called too long ago, and nothing was taken.
          InvalidInputError: The label is no name, or the bank has no root directory.
        """

    def freeze(self, uuid: str) -> None:
        """Lets no change of a shard begin until its snapshot of this UUID, or for two seconds.

        So the shards of a bank, each of which is frozen, take snapshots of one instant.

        Raises:
          BankOverloadedError: Another snapshot is being taken.
          InvalidInputError: This is no single shard, or it has no root directory.
        """
        raise InvalidInputError(f"uuid={uuid!r}: {type(self).__name__} is no single shard")

    def thaw(self, uuid: str) -> None:
        """Ends what `freeze` began, without a snapshot."""
        raise InvalidInputError(f"uuid={uuid!r}: {type(self).__name__} is no single shard")

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
    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        """Reads a whole snapshot, named as for `restore`, and changes nothing.

        Raises:
          SnapshotNotFoundError, BankIdentityError: As `restore`.
          SnapshotCorruptError: The snapshot is damaged; the message says where.
        """

    @abc.abstractmethod
    def pin(self, owner: str, snapshots: Sequence[SnapshotIdentity | str]) -> None:
        """Has snapshots kept, however old they become, until the owner names them no more.

        The owner's pins outlast the server. Called again, it lets go of those that the owner named
        before and does not name now; with none, of all.

        Args:
          owner: Who needs them: any printable text of at most 1024 characters.
          snapshots: Identities or UUIDs.

        Raises:
          InvalidInputError: `owner` is no name, or the bank has no root directory.
          SnapshotNotFoundError: There is no such complete snapshot; nothing was changed.
          BankOverloadedError: There are too many pins, or owners; nothing was changed.
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


def uuid_of(snapshot: SnapshotIdentity | str) -> str:
    """Returns the UUID of a snapshot that is named by it, or by its identity."""
    return snapshot.uuid if isinstance(snapshot, SnapshotIdentity) else snapshot


def check_bank(snapshot: SnapshotIdentity | str, bank_id: str) -> None:
    """Raises BankIdentityError if a snapshot is known to be of another bank."""
    if isinstance(snapshot, SnapshotIdentity) and snapshot.bank_id != bank_id:
        raise BankIdentityError(
            f"snapshot {snapshot.label!r} is of bank {snapshot.bank_id}; this is {bank_id}"
        )


def check_complete(
    snapshots: Sequence[SnapshotIdentity], wanted: Sequence[SnapshotIdentity | str]
) -> list[str]:
    """Returns the UUIDs of the snapshots that are wanted; all of them must be among those listed.

    Raises:
      SnapshotNotFoundError: One is not; the message lists those there are.
    """
    there = {one.uuid for one in snapshots}
    for uuid in map(uuid_of, wanted):
        if uuid not in there:
            listed = ", ".join(f"{one.label} ({one.uuid})" for one in snapshots) or "none"
            raise SnapshotNotFoundError(f"no complete snapshot {uuid!r}; there are: {listed}")
    return [uuid_of(one) for one in wanted]


def find_snapshot(
    snapshots: Sequence[SnapshotIdentity], wanted: SnapshotIdentity | str
) -> SnapshotIdentity | None:
    """Returns the snapshot of this identity, UUID or label (its newest), or None."""
    for one in reversed(snapshots):
        if one == wanted or wanted in (one.uuid, one.label):
            return one
    return None
