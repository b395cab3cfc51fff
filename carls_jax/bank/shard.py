"""`Shard`: the tables that one server process holds, and the one applier of their changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from carls_jax.bank import applying, changes, flushing, reading
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.applying import Commit
from carls_jax.bank.before_images import MAX_BEFORE_BYTES, Room
from carls_jax.bank.changes import NO_STEP, Change, Keys
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
        # Both are replaced, never altered, so readers need no lock.
        self._tables: Mapping[str, TableShard] = {}
        self._clocks: Mapping[str, int] = {}
        self._sequence = 0
        # Locks are taken in this order: `_imaging` by what takes an image, `_outline` by what makes
        # or replaces tables, then tables' `writer`, then `_numbering` for a moment.
        self._imaging = threading.Lock()
        self._outline = threading.Lock()
        self._numbering = threading.Lock()

    def apply(self, change: Change) -> Applied:
        """Checks a change, gives it a number and applies it, in that order.

        It works on a copy of its own, so that nobody can alter what was checked.

        Raises:
          InvalidInputError, NotFoundError, BankFullError, BankOverloadedError: The change cannot be
            applied; nothing was altered.
        """
        change = change.copy(updated_at=time.time())
        with self._prepared(change) as commit:
            sequence = self._accept(change)
            applied = commit()
        return replace(applied, sequence=sequence)

    @contextmanager
    def _prepared(self, change: Change) -> Iterator[Commit]:
        """Checks a change and gives what applies it, while nobody else alters what it alters."""
        if change.kind in ("create_table", "advance"):
            with self._outline:
                yield self._prepare(change)
        else:
            with self._writing(change.header.table) as table:
                table.wait_for_room(change.keys.size)
                yield applying.prepare(table, change)

    def _accept(self, change: Change) -> int:
        """Gives a change, which now cannot fail, the next number, and tells its clock.

        A journal appends the change here: numbers, and so its lines, have one order.
        """
        with self._numbering:
            self._sequence += 1
            by = change.header.author
            if by.clock and by.step > self._clocks.get(by.clock, NO_STEP):
                self._clocks = {**self._clocks, by.clock: by.step}
            return self._sequence

    def _prepare(self, change: Change) -> Commit:
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

        def commit() -> Applied:
            self._tables = {**self._tables, spec.name: table}
            return Applied(0)

        return commit

    def _check_clock(self, clock: str) -> None:
        if clock not in self._clocks and len(self._clocks) >= MAX_CLOCKS:
            raise BankOverloadedError(
                f"clock={clock!r} is one clock too many: a bank knows at most {MAX_CLOCKS}"
            )

    @contextmanager
    def _writing(self, name: str) -> Iterator[TableShard]:
        """Gives a table that nobody else alters meanwhile."""
        while True:
            table = self.table(name)
            with table.writer:
                # Whoever waited while a snapshot was restored has the table that was there before.
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

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        """Reads rows, creating them first if the request says so."""
        table = self._checked(request.table, request.fields, request.metadata)
        check_keys(keys)
        if table.spec.lazy_fields:
            sources = reading.authors(table, request.sources) if table.spec.per_source else ("",)
            self._apply_all(flushing.before_lookup(table, request.fields, keys, sources))
        rows, exists = reading.lookup(table, request, keys, clocks=self._clocks)
        num_created = 0
        if request.create:
            if table.spec.per_source:
                exists = reading.exist(table, keys, source=request.reader.source)
            missing = keys[~exists & (keys != PADDING)]
            if missing.size:
                num_created = self._create(request, missing)
                rows, _ = reading.lookup(table, request, keys, clocks=self._clocks)
        table.counts.add({"lookup_calls": 1, "rows_looked_up": keys.size})
        return replace(rows, num_created=num_created)

    def _create(self, request: pb.Lookup, keys: Keys) -> int:
        by = changes.author(source=request.reader.source)
        return self.apply(changes.create_rows(request.table, keys, by=by)).num_created

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        """Reads the last writes of a field."""
        table = self._checked(request.table, [request.field], [])
        if not table.spec.field(request.field).history:
            raise InvalidInputError(f"field {request.field!r} keeps no history")
        check_keys(keys)
        changes_before = flushing.before_lookup(table, [request.field], keys, [request.source])
        self._apply_all(changes_before)
        return reading.history(table, request, keys)

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        """Reads a block of rows, and where the next begins (0: no more)."""
        table = self._checked(request.table, request.fields, request.metadata)
        if not 1 <= request.num_rows <= MAX_SCAN_ROWS:
            raise InvalidInputError(f"num_rows={request.num_rows}: allowed is 1 to {MAX_SCAN_ROWS}")
        start, stop = int(request.start), int(request.start + request.num_rows)
        self._apply_all(flushing.before_scan(table, request.fields, start, stop))
        return reading.scan(table, request)

    def flush_overdue(self, now: float) -> None:
        """Applies the gradients that have waited as long as their fields allow, at a time.

        Args:
          now: Seconds since the epoch.
        """
        for table in self._tables.values():
            self._apply_all(flushing.overdue(table, now))

    @property
    def shortest_wait_s(self) -> float | None:
        """The shortest time that gradients of a field may wait. None: no field is lazy."""
        specs = [table.spec for table in self._tables.values()]
        lazy = [field.lazy for spec in specs for field in spec.fields.values() if field.lazy]
        return min((one.max_wait_s for one in lazy), default=None)

    def _apply_all(self, made: Iterable[Change]) -> None:
        for change in made:
            self.apply(change)

    def _checked(self, name: str, fields: Sequence[str], metadata: Sequence[str]) -> TableShard:
        """Returns the table of a request whose names were checked."""
        table = self.table(name)
        if not fields:
            raise InvalidInputError(
                f"fields=(): name at least one of {', '.join(table.spec.fields)}"
            )
        for field in fields:
            table.spec.field(field)
        for kind in metadata:
            if kind not in METADATA:
                raise InvalidInputError(f"metadata={kind!r}: allowed are {', '.join(METADATA)}")
        return table

    def stats(self) -> BankStats:
        """Returns counts of all tables."""
        with self._numbering:
            clocks, sequence = self._clocks, self._sequence
        tables = {name: _table_stats(table) for name, table in self._tables.items()}
        return BankStats(tables=tables, clocks=dict(clocks), sequence=sequence)

    @contextmanager
    def frozen(self) -> Iterator[tuple[list[TableImage], dict[str, int], int]]:
        """Gives the state of one instant: images of all tables, clocks, number of changes.

        Changes and lookups go on while the block reads the images. One block at a time: another
        waits.
        """
        room = Room(self._max_before_bytes)
        with self._imaging, ExitStack() as held:
            with self._alone():
                images = []
                for _, table in sorted(self._tables.items()):
                    held.callback(table.end_image)
                    images.append(table.begin_image(room))
                clocks, sequence = dict(self._clocks), self._sequence
            yield images, clocks, sequence

    def replaced_by(
        self, content: SnapshotContent, *, before: Callable[[], None] = lambda: None
    ) -> None:
        """Takes over the state of a snapshot; changes nothing if it cannot be read.

        `before` is called when nothing can fail any more, and nobody has the new state yet.
        """
        tables = {}
        for saved in content.tables:
            table = TableShard(saved.spec)
            table.sources.replace(saved.names["sources"])
            table.clocks.replace(saved.names["clocks"])
            for block in saved.blocks():
                table.load(block)
            tables[saved.spec.name] = table
        with self._alone():
            # Before anybody alters the new tables, nobody may read the old ones.
            self.retire()
            before()
            self._clocks = dict(content.clocks)
            self._sequence = content.sequence
            self._tables = tables  # from here on changes begin again

    def retire(self) -> None:
        """Tells the processes that read tables' memory to read it no more."""
        for table in self._tables.values():
            table.retire()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets no change begin, and waits for those that have begun."""
        with ExitStack() as held:
            held.enter_context(self._outline)
            for name in sorted(self._tables):
                held.enter_context(self._tables[name].writer)
            yield


def _table_stats(table: TableShard) -> TableStats:
    return TableStats(
        spec=table.spec,
        num_rows=table.num_rows,
        num_bytes=table.num_bytes,
        counters=table.counts.read(),
        rows_written=table.rows_written.read(),
    )
