"""Reading a journal after a start: all changes that it kept, or an error that says what is lost.

A writer that is stopped at any instant leaves whole records and, at most, the beginning of one
more: a *torn tail*, which is cut off. Whether bytes that are no record are a torn tail or damage is
told by the records behind them: each says which ones were safe when it was written (`Head.kept`).
"""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from carls_jax.bank.changes import Change
from carls_jax.bank.journal_records import HEAD_BYTES, MARK_BYTES, Head, read_head
from carls_jax.bank.journal_segments import (
    PAGE_BYTES,
    Page,
    SegmentFile,
    differences,
    read_page,
    segment_files,
    this_machine,
)
from carls_jax.errors import BankStorageError, InvalidInputError, JournalCorruptError

_SCANNED_BYTES = 1 << 20

_logger = logging.getLogger(__name__)


def read_journal(
    directory: Path, *, bank_id: str, shard_index: int, after: int
) -> Iterator[tuple[int, Change]]:
    """Reads the changes after a sequence, in order and without gaps.

    It keeps one record in memory at a time. The arrays of a change are read-only and nobody else's.
    What is wrong further on is raised when it is reached; a torn tail is cut off the file when all
    before it was taken. A directory that is not there holds no changes.

    Args:
      after: Sequence of the last change that is known already. Files without later ones are not
        read.

    Raises:
      JournalCorruptError: The journal is damaged elsewhere than at its end, or changes are missing.
      BankIdentityError: It is of another bank or shard.
      BankStorageError: The disk cannot be read.
    """
    files = _needed(segment_files(directory), after)
    if files and files[0].first > after + 1:
        raise JournalCorruptError(
            f"{directory} begins with change {files[0].first}: changes {after + 1} to "
            f"{files[0].first - 1} are missing; put the files with them back, or restore a newer "
            "snapshot"
        )
    expected = None
    differing = ""
    for file, following in itertools.pairwise([*files, None]):
        assert file is not None  # only the last of these is
        page = _checked_page(file, expected, is_last=following is None)
        if page is None:
            return
        page.check(file, bank_id=bank_id, shard_index=shard_index)
        differing = differing or _say_differences(file, page)
        expected = file.first
        until = following.first if following else None
        for head, payload in _Records(file, page).all(until=until):
            if head.sequence > after:
                yield head.sequence, _change(file, head, payload)
            expected = head.sequence + 1


def _needed(files: list[SegmentFile], after: int) -> list[SegmentFile]:
    """Leaves out the files before that which holds, or would hold, the next sequence."""
    starts = [i for i, file in enumerate(files) if file.first <= after + 1]
    return files[starts[-1] :] if starts else files


def _checked_page(file: SegmentFile, expected: int | None, *, is_last: bool) -> Page | None:
    """Returns the page of the next file; None: its writer made no more of it."""
    if expected not in (None, file.first):
        raise JournalCorruptError(
            f"{file.path} does not follow on the file before it, which ends before change "
            f"{expected}: put the files between them back. {_way_out(file, 0)}"
        )
    page = read_page(file)
    if page is None and not is_last:
        raise JournalCorruptError(f"{file.path} is cut off. {_way_out(file, 0)}")
    return page


def _say_differences(file: SegmentFile, page: Page) -> str:
    """Logs, and returns, in what the machine that wrote a segment differs."""
    found = differences(page.machine, this_machine())
    if found:
        _logger.warning(
            "%s was written on another machine or under other libraries (%s): what is replayed is "
            "not bitwise what it was",
            file.path,
            found,
        )
    return found


def _change(file: SegmentFile, head: Head, payload: memoryview) -> Change:
    try:
        return head.change(payload)
    except InvalidInputError as error:
        raise JournalCorruptError(f"{file.path}: {error}") from error


def _way_out(file: SegmentFile, offset: int) -> str:
    return (
        "Put the files back from a copy; or give up all later changes for good: truncate -s "
        f"{offset} {file.path}, and move the files after it away"
    )


class _Records:
    """Reads the records of one segment. Not for use by several threads at once."""

    def __init__(self, file: SegmentFile, page: Page) -> None:
        self._file = file
        self._mark = bytes.fromhex(page.mark)
        self._is_reused = page.is_reused
        self._expected = page.first
        self._buffer = bytearray()

    def all(self, *, until: int | None) -> Iterator[tuple[Head, memoryview]]:
        """Reads all records; each payload is overwritten by that of the next.

        Args:
          until: Sequence with which the next file begins; None: this one is the last.
        """
        with self._file.path.open("rb") as opened:
            offset, size = PAGE_BYTES, os.fstat(opened.fileno()).st_size
            while offset < size and self._expected != until:
                record = self._record_at(opened, offset, size)
                if record is None:
                    self._judge(opened, offset, size, is_last=until is None)
                    return
                if record[0].sequence != self._expected:
                    raise self._corrupt(offset, f"holds change {record[0].sequence}")
                yield record
                offset += HEAD_BYTES + record[0].num_bytes
                self._expected += 1

    def _record_at(
        self, opened: io.BufferedReader, offset: int, size: int
    ) -> tuple[Head, memoryview] | None:
        """Returns the record that begins at an offset; None: no whole and sound one does."""
        try:
            opened.seek(offset)
            head = read_head(opened.read(HEAD_BYTES), mark=self._mark)
            if head is None or head.num_bytes > size - offset - HEAD_BYTES:
                return None
            if head.num_bytes > len(self._buffer):
                self._buffer = bytearray(head.num_bytes)
            payload = memoryview(self._buffer)[: head.num_bytes]
            is_whole = opened.readinto(payload) == head.num_bytes
        except OSError as error:
            raise BankStorageError(
                f"{self._file.path} cannot be read at byte {offset}: {error}; see to the disk, or "
                "put the file back from a copy"
            ) from error
        return (head, payload) if is_whole and head.fits(payload) else None

    def _judge(self, opened: io.BufferedReader, offset: int, size: int, *, is_last: bool) -> None:
        """Cuts off what is no record, from an offset on, or raises if it was one."""
        if not is_last:
            raise self._corrupt(offset, "is damaged there, and another file follows")
        for found in self._marks(opened, offset + 1):
            record = self._record_at(opened, found, size)
            if record and record[0].kept >= self._expected:
                raise self._corrupt(
                    offset,
                    f"is damaged there, and not torn: change {record[0].sequence} at byte {found} "
                    "was written when it was whole",
                )
        opened.seek(offset)
        has_begun = self._mark.startswith(opened.read(MARK_BYTES))
        with self._file.path.open("r+b") as written:
            written.truncate(offset)
            os.fsync(written.fileno())
        if self._is_reused and not has_begun:
            return  # there is what an earlier segment held
        _logger.warning(
            "%s ends in a torn record, as it does when its writer is killed: cut off %d bytes "
            "after change %d; no change before them is lost",
            self._file.path,
            size - offset,
            self._expected - 1,
        )

    def _marks(self, opened: io.BufferedReader, offset: int) -> Iterator[int]:
        """Finds the places from an offset on where a record may begin."""
        while True:
            opened.seek(offset)
            data = opened.read(_SCANNED_BYTES)
            found = data.find(self._mark)
            while found >= 0:
                yield offset + found
                found = data.find(self._mark, found + 1)
            if len(data) < MARK_BYTES:
                return
            offset += len(data) - MARK_BYTES + 1

    def _corrupt(self, offset: int, what: str) -> JournalCorruptError:
        return JournalCorruptError(
            f"{self._file.path} at byte {offset}, where change {self._expected} begins, {what}. "
            + _way_out(self._file, offset)
        )
