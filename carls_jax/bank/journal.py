"""`Journal`: keeps each change before it is acknowledged, so that none is lost with the process.

Segments follow one another in a directory (`journal_segments.py`); a record is appended whole or
not at all (`journal_writing.py`). `read_journal` gives the changes back after a start.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, get_args

from carls_jax.bank import journal_records
from carls_jax.bank.changes import Change
from carls_jax.bank.journal_reading import read_journal
from carls_jax.bank.journal_segments import (
    SegmentFile,
    earlier_segments,
    segment_path,
)
from carls_jax.bank.journal_spares import Spares
from carls_jax.bank.journal_writing import SegmentWriter, sync_directory
from carls_jax.errors import BankClosedError, BankStorageError, ConfigError

__all__ = ["MAX_SEGMENT_BYTES", "Journal", "Mode", "read_journal"]

Mode = Literal["process", "fsync"]
MAX_SEGMENT_BYTES = 256 << 20
"""Space comes back in whole segments; each costs a page and, where it is synced, three syncs."""


class Journal:
    """Appends changes to segments, and deletes those that a snapshot has made needless.

    `append` is called by one thread at a time, in the order of the sequences; all else by any
    threads at once. What an earlier process left in the directory was read before (`read_journal`).

    Args:
      directory: Made if it is not there. Nobody else writes in it.
      mode: "process": a change outlives the process once it was appended, since the kernel has it.
        "fsync": it outlives a loss of power once it was waited for.
      bank_id: Identifier of the bank.
      shard_index: Which shard of the bank this is.
      after: Sequence of the last change that needs no record.
      max_segment_bytes: Beyond this length another segment begins.

    Raises:
      ConfigError: There is no such mode.
      JournalCorruptError: The directory holds changes after `after`, which were not read.
      BankStorageError: The disk is full or fails.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mode: Mode,
        bank_id: str,
        shard_index: int,
        after: int,
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"journal={mode!r}: allowed are {', '.join(get_args(Mode))}")
        self._directory = directory
        self._syncs = mode == "fsync"
        self._bank_id, self._shard_index = bank_id, shard_index
        self._max_segment_bytes = max_segment_bytes
        # Held by whoever alters what follows, and told of every sync that ends.
        self._changed = threading.Condition(threading.Lock())
        self._last = self._synced = after
        self._is_syncing = False
        self._is_closed = False
        self._failure: OSError | None = None
        self._cutting = threading.Lock()  # taken before `_changed`
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._spares = Spares(directory)
            self._sealed = deque(earlier_segments(directory, after))
            if self._syncs:
                sync_directory(directory.parent)
        except OSError as error:
            raise self._unusable(error) from error
        self._present = self._new_segment()

    def append(self, record: Change, sequence: int) -> None:
        """Records a change that cannot fail any more.

        Args:
          sequence: That of the last change, and one.

        Raises:
          BankStorageError: The disk is full or fails: nothing was recorded, and the change must not
            be applied. The next may be tried, unless the error says that the journal is given up.
          BankClosedError: The journal was closed.
        """
        with self._changed:
            assert sequence == self._last + 1, (sequence, self._last)
            self._check_usable()
            if self._present.is_emptied or self._present.num_bytes >= self._max_segment_bytes:
                self._begin_next()
            kept = self._synced if self._syncs else self._last
            mark = self._present.mark
            pieces = journal_records.encode(record, sequence, mark=mark, kept=kept)
            try:
                self._present.append(pieces)
            except OSError as error:
                if not self._present.is_sound:
                    self._failure = error
                raise BankStorageError(
                    f"change {sequence} was refused, since {self._present.path} cannot take "
                    f"{journal_records.num_bytes_of(pieces)} bytes more: {error}; make room on the "
                    "disk: a snapshot gives the journal's own space back"
                ) from error
            self._last = sequence

    def wait(self, sequence: int) -> None:
        """Returns when a change that was appended outlives what the mode promises.

        Of all who wait, one syncs for all that was appended when it begins.

        Raises:
          BankStorageError: A sync failed. The journal is given up: nobody knows what the disk has.
        """
        if not self._syncs:
            return
        with self._changed:
            assert sequence <= self._last, (sequence, self._last)
            while self._synced < sequence:
                self._check_usable()
                if self._is_syncing:
                    self._changed.wait()
                else:
                    self._sync()

    def cut(self, sequence: int) -> None:
        """Gives up segments whose changes are all up to a sequence: a committed snapshot has them.

        Their files are written over by later ones, or deleted if there are enough of such.

        The present segment ends if it holds such changes, so this cut, or the next, gets its space.

        Raises:
          BankStorageError: A file cannot be given up, or the disk is full or fails.
          BankClosedError: The journal was closed.
        """
        with self._cutting:
            # What needs no new file goes first: the disk may be full.
            self._give_up(sequence)
            with self._changed:
                if self._present.first <= sequence:
                    self._check_usable()
                    if self._last <= sequence:
                        self._empty()
                    self._begin_next()
            self._give_up(sequence)

    @property
    def num_bytes(self) -> int:
        """Bytes of all segments that are needed."""
        with self._changed:
            return self._present.num_bytes + sum(num_bytes for _, num_bytes in self._sealed)

    def close(self) -> None:
        """Keeps all that was appended as the mode promises, and closes the file.

        Raises:
          BankStorageError: A sync failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_syncing)
            if self._is_closed:
                return
            self._is_closed = True
            if self._syncs and self._synced < self._last and not self._failure:
                self._sync(holding=True)
            self._end()
            self._present.close()
            if self._failure:
                raise self._unusable(self._failure) from self._failure

    def _sync(self, *, holding: bool = False) -> None:
        """Has the disk keep all that was appended so far, unless it fails.

        It is called with `_changed` held, and lets go of it meanwhile, if not told to hold it.
        """
        segment, last = self._present, self._last
        self._is_syncing = True
        try:
            with nullcontext() if holding else self._let_go():
                segment.sync()
            self._synced = max(self._synced, last)
        except OSError as error:
            # It is never tried again: the kernel may have dropped what it could not write, and a
            # second sync would succeed without it.
            self._failure = error
        finally:
            self._is_syncing = False
            self._changed.notify_all()

    @contextmanager
    def _let_go(self) -> Iterator[None]:
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()

    def _end(self) -> None:
        """Leaves nothing of an earlier segment behind the last record."""
        try:
            self._present.end()
        except OSError as error:
            self._failure = self._failure or error

    def _empty(self) -> None:
        """Gives the space of the present segment back, which a page for the next one may need."""
        try:
            self._present.empty()
        except OSError as error:
            self._failure = error
            raise self._unusable(error) from error

    def _begin_next(self) -> None:
        """Begins another segment, unless the present one holds no record.

        The disk has all of the present one before, if the journal syncs.
        """
        self._changed.wait_for(lambda: not self._is_syncing)
        self._check_usable()
        if self._present.first > self._last:
            return
        if self._syncs and self._synced < self._last:
            self._sync(holding=True)
            self._check_usable()
        old, self._present = self._present, self._new_segment()
        self._sealed.append((SegmentFile(old.path, old.first), old.num_bytes))
        old.close()

    def _new_segment(self) -> SegmentWriter:
        try:
            segment = SegmentWriter(
                self._directory,
                bank_id=self._bank_id,
                shard_index=self._shard_index,
                first=self._last + 1,
                spare=self._spares.take(),
            )
        except OSError as error:
            raise BankStorageError(
                f"{segment_path(self._directory, self._last + 1)} cannot be made: {error}; make "
                "room on the disk"
            ) from error
        try:
            if self._syncs:
                # A record may reach the disk before the page does, if they are synced together;
                # and so may the new name of a file that is written over.
                segment.sync()
            segment.publish()
            if self._syncs:
                sync_directory(self._directory)
        except OSError as error:
            self._failure = error
            raise self._unusable(error) from error
        return segment

    def _give_up(self, sequence: int) -> None:
        """Gives up what a cut makes needless, oldest first: what is left has no gap."""
        while True:
            with self._changed:
                firsts = [file.first for file, _ in self._sealed] + [self._present.first]
                if len(firsts) == 1 or firsts[1] > sequence + 1:
                    return
                file, _ = self._sealed[0]
            try:
                self._spares.give(file.path)
            except OSError as error:
                raise BankStorageError(
                    f"{file.path} cannot be given up: {error}; delete it, a snapshot holds it"
                ) from error
            with self._changed:
                self._sealed.popleft()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise BankClosedError(f"the journal {self._directory} was closed")
        if self._failure:
            raise self._unusable(self._failure) from self._failure

    def _unusable(self, error: OSError) -> BankStorageError:
        return BankStorageError(
            f"the journal {self._directory} is given up, since the disk failed: {error}; see to "
            "the disk and start the bank again, which reads what was kept"
        )
