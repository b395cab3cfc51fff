"""`Shard`: the tables that one server process holds, and the one applier of their changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

from carls_jax.bank import (
    altering,
    applying,
    bounds,
    changes,
    evicting,
    flushing,
    limiting,
    reading,
)
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.applying import Commit
from carls_jax.bank.before_images import MAX_BEFORE_BYTES, Room
from carls_jax.bank.change_log import ChangeLog, Keeper, LogState
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.client_windows import ClientWindows, Saved
from carls_jax.bank.interface import Applied, BankStats, TableStats
from carls_jax.bank.rows import METADATA, Rows, Written
from carls_jax.bank.snapshots import SnapshotContent
from carls_jax.bank.table_image import TableImage
from carls_jax.bank.table_shard import MAX_CLOCKS, TableShard
from carls_jax.bank.values import check_keys
from carls_jax.errors import BankOverloadedError, InvalidInputError, TableNotFoundError
from carls_jax.keys import PADDING

MAX_TABLES = 256
MAX_SCAN_ROWS = 1 << 20
# How long what needs all tables waits for the writer of one while it holds those of others; twice
# as long each time.
FIRST_PATIENCE_S = 0.05


class Frozen(NamedTuple):
    """Is a shard's state of one instant.

    Attributes:
      tables: Images of all tables.
      clocks: Highest step of each clock.
      sequence: Number of the last change.
      clients: Their last changes, as `ClientWindows.save` has them.
    """

    tables: list[TableImage]
    clocks: Mapping[str, int]
    sequence: int
    clients: Saved


class HeldState(NamedTuple):
    """Is a shard in which no change begins.

    Attributes:
      go_on: Lets changes begin again, and returns the state as it was until then.
    """

    go_on: Callable[[], Frozen]


class Shard:
    """Holds tables, applies changes to them and answers lookups.

    All methods may be called from several threads at once. Changes of one table have one order;
    tables do not wait for one another.

    Args:
      max_before_bytes: What a snapshot that is under way may keep of rows that have changed since
        its instant. Beyond it changes wait, but for one a table.
    """

    def __init__(self, *, max_before_bytes: int = MAX_BEFORE_BYTES) -> None:
        self._max_before_bytes = max_before_bytes
        # Replaced, never altered, so readers need no lock.
        self._tables: Mapping[str, TableShard] = {}
        # Locks are taken in this order: `_imaging` by what takes an image, `_outline` by what makes
        # or replaces tables, then tables' `writer`, then the log's for a moment.
        self._imaging = threading.Lock()
        self._outline = threading.Lock()
        self._placing = threading.Lock()  # for a moment, by what puts a table in its place
        self._log = ChangeLog()
        self._last_alter = 0

    def apply(self, change: Change) -> Applied:
        """Checks a change, gives it a number and applies it, in that order.

        It works on a copy of its own, so that nobody can alter what was checked. A change that a
        client sends again is answered as it was, once that is known, and not applied.

        Raises:
          InvalidInputError, NotFoundError, BankFullError, BankOverloadedError: The change cannot be
            applied; nothing was altered.
          BankStorageError: The change cannot be kept; the message says whether it was applied.
        """
        change = change.copy(updated_at=time.time())
        with self._held(change) as table:
            applied = self._log.find(change.header)
            if applied is None:
                change, commit = self._decide(change, table)
                applied = self._commit(change, self._accept(change), commit)
        self._log.wait(applied.sequence)
        return applied

    def replay(self, change: Change, sequence: int) -> None:
        """Applies a change of a journal as it was, without keeping it once more."""
        with self._held(change) as table:
            commit = self._prepare(change, table)
            self._log.accept_again(change, sequence)
            self._commit(change, sequence, commit)

    def keep_in(self, keeper: Keeper | None) -> None:
        """Has all later changes kept, each before it is applied; None: by nobody."""
        self._log.keep_in(keeper)

    @contextmanager
    def _held(self, change: Change) -> Iterator[TableShard | None]:
        """Lets nobody else alter what a change alters; gives its table, if it is of one."""
        if change.kind in ("create_table", "advance"):
            with self._outline:
                yield None
        else:
            with self._writing(change.header.table) as table:
                yield table

    def _prepare(self, change: Change, table: TableShard | None) -> Commit:
        """Checks a change and returns what applies it."""
        if table is None:
            return self._prepare_outline(change)
        if change.kind == "alter":
            return altering.prepare(table, change, check=self._check_reserved, put=self._put)
        table.wait_for_room(change.keys.size)
        return applying.prepare(table, change)

    def _decide(self, change: Change, table: TableShard | None) -> tuple[Change, Commit]:
        """Prepares a new change: as it is, or as the limit of its table has it."""
        if table is None or table.limiter is None or change.kind == "alter":
            return change, self._prepare(change, table)
        table.wait_for_room(change.keys.size)
        return limiting.prepare(table, change, self._log.clocks, evict=self._evict)

    def _evict(self, change: Change, table: TableShard) -> int:
        """Numbers and applies an eviction from a table whose writer the caller is."""
        commit = self._prepare(change, table)
        return self._commit(change, self._accept(change), commit).num_evicted

    def _accept(self, change: Change) -> int:
        """Has a change, which now cannot fail, kept, and gives it the next number."""
        return self._log.accept(change)

    def _commit(self, change: Change, sequence: int, commit: Commit) -> Applied:
        applied = replace(commit(), sequence=sequence)
        if change.kind == "alter":
            self._last_alter = sequence
        self._log.end(change.header, applied)
        return applied

    def _prepare_outline(self, change: Change) -> Commit:
        if change.kind == "create_table":
            return self._prepare_create_table(change)
        changes.check_author(change.header.author)
        self._check_clock(change.header.author.clock)
        return lambda: Applied(0)

    def _prepare_create_table(self, change: Change) -> Commit:
        spec = changes.spec_of(change)
        if spec.name in self._tables:
            spec.check_agrees(self._tables[spec.name].spec)
            return lambda: Applied(0)
        if len(self._tables) >= MAX_TABLES:
            raise BankOverloadedError(
                f"table {spec.name!r} is one too many: a bank holds at most {MAX_TABLES}; use more "
                "fields, or another bank"
            )
        table = TableShard(spec)
        self._check_reserved(table)

        def commit() -> Applied:
            self._put(table)
            return Applied(0)

        return commit

    def _check_reserved(self, table: TableShard) -> None:
        bounds.check_reserved([*self._tables.values(), table])

    def _put(self, table: TableShard) -> None:
        """Puts a table in its place."""
        with self._placing:
            self._tables = {**self._tables, table.spec.name: table}

    def _check_clock(self, clock: str) -> None:
        if clock not in self._log.clocks and len(self._log.clocks) >= MAX_CLOCKS:
            raise BankOverloadedError(
                f"clock={clock!r} is one clock too many: a bank knows at most {MAX_CLOCKS}"
            )

    @contextmanager
    def _writing(self, name: str) -> Iterator[TableShard]:
        """Gives a table that nobody else alters meanwhile."""
        while True:
            table = self.table(name)
            with table.writer:
                # Whoever waited while it was replaced has the table that was there before.
                if self._tables.get(name) is table:
                    yield table
                    return

    def table(self, name: str) -> TableShard:
        """Returns a table, or raises TableNotFoundError, which lists those that exist."""
        try:
            return self._tables[name]
        except KeyError:
            raise TableNotFoundError(
                f"no table {name!r}; this bank has {', '.join(sorted(self._tables)) or 'none yet'}"
            ) from None

    def _current(self, name: str) -> Iterator[TableShard]:
        """Yields a table, and again the one in its place if it was replaced while it was read.

        What was flushed or created for the reader is in the new one alone.
        """
        table = None
        while (current := self.table(name)) is not table:
            table = current
            yield table

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        """Reads rows, creating them first if the request says so."""
        num_created = 0
        for table in self._current(request.table):
            _check_names(table, request.fields, request.metadata)
            check_keys(keys)
            rows = self._lookup(table, request, keys)
            num_created += rows.num_created
        table.counts.add({"lookup_calls": 1, "rows_looked_up": keys.size})
        return replace(rows, num_created=num_created)

    def _lookup(self, table: TableShard, request: pb.Lookup, keys: Keys) -> Rows:
        if table.spec.lazy_fields:
            sources = reading.authors(table, request.sources) if table.spec.per_source else ("",)
            self._apply_all(flushing.before_lookup(table, request.fields, keys, sources))
        rows, exists = reading.lookup(table, request, keys, clocks=self._log.clocks)
        num_created = 0
        if request.create:
            if table.spec.per_source:
                exists = reading.exist(table, keys, source=request.reader.source)
            missing = keys[~exists & (keys != PADDING)]
            if missing.size:
                # An eviction that makes room for them leaves the other rows of this lookup.
                num_created = self._create(request, keys if table.limiter else missing)
                rows, _ = reading.lookup(table, request, keys, clocks=self._log.clocks)
        if table.limiter is not None:
            table.note_lookup(keys, rows.sources if table.spec.per_source else ("",))
        return replace(rows, num_created=num_created)

    def _create(self, request: pb.Lookup, keys: Keys) -> int:
        by = changes.author(source=request.reader.source)
        return self.apply(changes.create_rows(request.table, keys, by=by)).num_created

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        """Reads the last writes of a field."""
        for table in self._current(request.table):
            if not table.spec.field(request.field).history:
                raise InvalidInputError(f"field {request.field!r} keeps no history")
            check_keys(keys)
            changes_before = flushing.before_lookup(table, [request.field], keys, [request.source])
            self._apply_all(changes_before)
            writes = reading.history(table, request, keys)
        return writes

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        """Reads a block of rows, and where the next begins (0: no more)."""
        start, stop = int(request.start), int(request.start + request.num_rows)
        for table in self._current(request.table):
            _check_names(table, request.fields, request.metadata)
            if not 1 <= request.num_rows <= MAX_SCAN_ROWS:
                raise InvalidInputError(
                    f"num_rows={request.num_rows}: allowed is 1 to {MAX_SCAN_ROWS}"
                )
            self._apply_all(flushing.before_scan(table, request.fields, start, stop))
            scanned = reading.scan(table, request)
        return scanned

    def flush_overdue(self, now: float) -> None:
        """Applies the gradients that have waited as long as their fields allow, at a time.

        Args:
          now: Seconds since the epoch.
        """
        for table in self._tables.values():
            self._apply_all(flushing.overdue(table, now))

    def evict_expired(self, now: float) -> None:
        """Evicts the rows that were not written for longer than their tables' limits allow.

        Args:
          now: Seconds since the epoch, which the evictions are told; how long it was is known.
        """
        for name, table in self._tables.items():
            for start in range(0, table.used_slots, evicting.SCANNED_ROWS):
                stop = start + evicting.SCANNED_ROWS
                if evicting.may_have_expired(table, start, stop):
                    with self._writing(name) as writing:
                        for change in evicting.expired(writing, start, stop, now=now):
                            self._evict(change, writing)

    @property
    def shortest_wait_s(self) -> float | None:
        """The shortest time that a field's gradients may wait, or rows last. None: for ever."""
        specs = [table.spec for table in self._tables.values()]
        lazy = [field.lazy for spec in specs for field in spec.fields.values() if field.lazy]
        ttls_s = [spec.limit.ttl_s for spec in specs if spec.limit and spec.limit.ttl_s]
        return min((*ttls_s, *(one.max_wait_s for one in lazy)), default=None)

    def _apply_all(self, made: Iterable[Change]) -> None:
        for change in made:
            self.apply(change)

    @property
    def last_alter(self) -> int:
        """Number of the last change that altered a table, or more."""
        return self._last_alter

    def stats(self) -> BankStats:
        """Returns counts of all tables."""
        told = self._log.told
        tables = {name: _table_stats(table) for name, table in self._tables.items()}
        return BankStats(tables=tables, clocks=dict(told.clocks), sequence=told.sequence)

    @contextmanager
    def frozen(self) -> Iterator[Frozen]:
        """Gives the state of one instant.

        Changes and lookups go on while the block reads the images. One block at a time: another
        waits.
        """
        with self.held() as state:
            yield state.go_on()

    @contextmanager
    def held(self) -> Iterator[HeldState]:
        """As `frozen`, but no change begins before the block calls `go_on`."""
        with self._imaging, ExitStack() as held, ExitStack() as alone:
            alone.enter_context(self._alone())
            images, log = self._images(held, self._tables), self._log.state()

            def go_on() -> Frozen:
                alone.close()
                return Frozen(images, log.clocks, log.sequence, log.windows.save())

            yield HeldState(go_on)

    def _images(self, held: ExitStack, tables: Mapping[str, TableShard]) -> list[TableImage]:
        """Begins images of tables, which end with `held`; nobody else alters the tables now."""
        room, images = Room(self._max_before_bytes), []
        for _, table in sorted(tables.items()):
            held.callback(table.end_image)
            images.append(table.begin_image(room))
        return images

    def replaced_by(
        self,
        content: SnapshotContent,
        *,
        keep: Callable[[Frozen], None] = lambda _: None,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes over the state of a snapshot; changes nothing if it cannot be read.

        Numbers never go back: the state counts as that after the next change, unless the snapshot
        is of a later one.

        Args:
          content: The snapshot.
          keep: Called with the new state when no change can begin and nothing but this can fail;
            what it raises leaves everything as it was.
          announce: Called then, before anybody has the new state.
        """
        tables = {}
        for saved in content.tables:
            table = TableShard(saved.spec)
            table.sources.replace(saved.names["sources"])
            table.clocks.replace(saved.names["clocks"])
            for block in saved.blocks():
                table.load(block)
            tables[saved.spec.name] = table
        clocks, windows = dict(content.clocks), ClientWindows.load(content.clients)
        with self._alone(), ExitStack() as held:
            last = self._log.told.sequence
            sequence = max(last + 1, content.sequence) if last else content.sequence
            keep(Frozen(self._images(held, tables), clocks, sequence, content.clients))
            # Before anybody alters the new tables, nobody may read the old ones.
            self.retire()
            announce()
            self._log.replace(LogState(sequence, clocks, windows))
            self._last_alter = sequence
            self._tables = tables  # from here on changes begin again

    def close(self) -> None:
        """Ends when the changes that have begun have; no later one begins."""
        with self._alone():
            self._log.close()
            self.retire()

    def retire(self) -> None:
        """Tells the processes that read tables' memory to read it no more."""
        for table in self._tables.values():
            table.retire()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets no change begin, and waits for those that have begun."""
        patience_s = FIRST_PATIENCE_S
        while True:
            with ExitStack() as held:
                held.enter_context(self._outline)
                busy = self._take_writers(held, patience_s)
                if busy is None:
                    yield
                    return
            # Whoever waits for a long change must not hold the writers of other tables.
            with busy.writer:
                patience_s *= 2

    def _take_writers(self, held: ExitStack, patience_s: float) -> TableShard | None:
        """Takes the writers of all tables, or returns the first that could not be had in time."""
        for name in sorted(self._tables):
            table = self._tables[name]
            if not table.writer.acquire(timeout=patience_s):
                return table
            held.callback(table.writer.release)
            if self._tables[name] is not table:  # it was altered while it was waited for
                return self._tables[name]
        return None


def _check_names(table: TableShard, fields: Sequence[str], metadata: Sequence[str]) -> None:
    """Checks what a request names."""
    if not fields:
        raise InvalidInputError(f"fields=(): name at least one of {', '.join(table.spec.fields)}")
    for field in fields:
        table.spec.field(field)
    for kind in metadata:
        if kind not in METADATA:
            raise InvalidInputError(f"metadata={kind!r}: allowed are {', '.join(METADATA)}")


def _table_stats(table: TableShard) -> TableStats:
    return TableStats(
        spec=table.spec,
        num_rows=table.num_rows,
        num_bytes=table.num_bytes,
        counters=table.counts.read(),
        rows_written=table.rows_written.read(),
    )
