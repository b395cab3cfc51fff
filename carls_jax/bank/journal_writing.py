"""`SegmentWriter`: one file of a journal, which records are appended to."""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Sequence
from pathlib import Path

from carls_jax.bank.journal_records import MARK_BYTES, Piece, num_bytes_of
from carls_jax.bank.journal_segments import PAGE_BYTES, Page, segment_path, this_machine

_MAX_PIECES = os.sysconf("SC_IOV_MAX")


class SegmentWriter:
    """Is a new segment, which others know as one once it was published.

    Calls of `append` do not overlap; `sync` may be called beside them.

    Its file is closed with the object, so whoever still syncs it has it open.

    Args:
      directory: Where it is made; it has no segment that begins with the same sequence.
      first: Sequence of the first record.
      spare: A file there that is written over, see `Spares`. None: the file is new.

    Attributes:
      path: The file.
      first: As given.
      mark: What each record begins with.
      num_bytes: Its length so far.
      is_sound: Whether the file holds what was appended and nothing else.
      is_emptied: Whether its records were taken away, so that it takes no more.

    Raises:
      OSError: It cannot be made; nothing is left of it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bank_id: str,
        shard_index: int,
        first: int,
        spare: Path | None = None,
    ) -> None:
        self.path = segment_path(directory, first)
        self.first = first
        self.mark = secrets.token_bytes(MARK_BYTES)
        self.num_bytes = 0
        self.is_sound = True
        self.is_emptied = False
        is_reused = spare is not None
        page = Page(bank_id, shard_index, first, self.mark.hex(), this_machine(), is_reused)
        self._made = spare or self.path
        flags = os.O_WRONLY if is_reused else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._file = os.open(self._made, flags, 0o600)
        self._close = weakref.finalize(self, os.close, self._file)
        try:
            self.append([page.encode()])
        except BaseException:
            self._made.unlink()
            raise
        assert self.num_bytes == PAGE_BYTES

    def publish(self) -> None:
        """Calls the file a segment, which it is now; raises OSError if the disk fails."""
        if self._made != self.path:
            os.rename(self._made, self.path)

    def append(self, pieces: Sequence[Piece]) -> None:
        """Appends the pieces of a record; the kernel has all of it, or the file is as before.

        Raises:
          OSError: The disk is full or fails; if it is not sound then, it could not be put back.
        """
        try:
            _write(self._file, pieces, self.num_bytes)
        except BaseException:
            self.is_sound = False
            os.ftruncate(self._file, self.num_bytes)
            self.is_sound = True
            raise
        self.num_bytes += num_bytes_of(pieces)

    def empty(self) -> None:
        """Takes all records away; raises OSError if the disk fails."""
        self.is_emptied = True
        os.ftruncate(self._file, PAGE_BYTES)
        self.num_bytes = PAGE_BYTES

    def sync(self) -> None:
        """Returns when the disk has what was appended; raises OSError if it fails."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Closes the file."""
        self._close()

    def end(self) -> None:
        """Has the file end where its records do; raises OSError if the disk fails."""
        os.ftruncate(self._file, self.num_bytes)


def _write(file: int, pieces: Sequence[Piece], offset: int) -> None:
    """Writes pieces at an offset, all of them, in as few calls as the system allows."""
    left = list(pieces)
    while left:
        written = os.pwritev(file, left[:_MAX_PIECES], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = memoryview(left[0])[written:]


def sync_directory(path: Path) -> None:
    """Returns when the disk has a directory's entries; raises OSError if it fails."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
