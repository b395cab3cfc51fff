"""`Durability`: keeps a shard in its directory, so that it goes on after a crash as it was.

ROOT/snapshots/          states, see `snapshots.py`
ROOT/journal/            the changes since the last of them, see `journal.py`
ROOT/incarnation.json    see `incarnation.py`
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from carls_jax.bank import incarnation
from carls_jax.bank.changes import Change
from carls_jax.bank.durable_files import sync
from carls_jax.bank.incarnation import JournalMode
from carls_jax.bank.journal import Journal
from carls_jax.bank.journal_segments import segment_files
from carls_jax.bank.recovery import recover
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.errors import BankClosedError, BankStorageError, CarlsError, InvalidInputError

MAX_JOURNAL_BYTES = 1 << 30

_logger = logging.getLogger(__name__)


class Durability:
    """Recovers a shard and keeps its changes from then on, as the mode says.

    Methods may be called from several threads at once, but for what they say.

    Args:
      root: Directory of the shard.
      shard: A new one, that nobody uses yet.
      store: Its snapshots.
      mode: "off": changes are kept by snapshots alone. "process": they outlast the process.
        "fsync": they outlast a loss of power.
      take_snapshot: Called in a thread of its own when the journal has become too long.
      max_journal_bytes: How long that is.

    Attributes:
      incarnation: What the bank is an incarnation of after the recovery.

    Raises:
      InvalidInputError: There is no such mode, or the bound is not positive.
      CarlsError: As `recover`.
    """

    def __init__(
        self,
        root: Path,
        shard: Shard,
        store: SnapshotStore,
        *,
        bank_id: str,
        shard_index: int,
        mode: JournalMode,
        take_snapshot: Callable[[], object],
        max_journal_bytes: int = MAX_JOURNAL_BYTES,
    ) -> None:
        if mode not in get_args(JournalMode):
            raise InvalidInputError(
                f"journal={mode!r}: allowed are {', '.join(get_args(JournalMode))}"
            )
        if max_journal_bytes < 1:
            raise InvalidInputError(f"max_journal_bytes={max_journal_bytes}: allowed is 1 and more")
        self._root, self._directory, self._mode = root, root / "journal", mode
        self._bank_id, self._shard_index = bank_id, shard_index
        self._take_snapshot = take_snapshot
        self._max_bytes = self._full_at = max_journal_bytes
        self._taking = threading.Lock()  # held while the journal is being made shorter
        has_journal = bool(segment_files(self._directory))
        recover(shard, store, self._directory, bank_id=bank_id, shard_index=shard_index)
        self.incarnation = incarnation.begin(root, mode, has_journal=has_journal)
        self._journal: Journal | None = None
        if mode != "off":
            self._journal = self._new_journal(shard.stats().sequence)
            shard.keep_in(self)

    @property
    def has_journal(self) -> bool:
        """Whether changes are kept one by one."""
        return self._journal is not None

    @property
    def is_needless(self) -> bool:
        """Whether there is a journal that nobody goes on with, and a snapshot should replace."""
        return self._journal is None and self._directory.exists()

    def append(self, record: Change, sequence: int) -> None:
        """As `Journal.append`."""
        journal = self._journal
        assert journal is not None, "a change was to be kept where there is no journal"
        journal.append(record, sequence)
        if journal.num_bytes > self._full_at and self._taking.acquire(blocking=False):
            threading.Thread(target=self._shorten, name="automatic-snapshot", daemon=True).start()

    def wait(self, sequence: int) -> None:
        """As `Journal.wait`."""
        if self._journal:
            self._journal.wait(sequence)

    def _shorten(self) -> None:
        """Has a snapshot taken, which cuts the journal; if it fails, not again at once."""
        try:
            self._take_snapshot()
        except BankClosedError:
            _logger.debug("the bank was closed before its journal was cut")
        except (CarlsError, OSError) as error:
            _logger.error("the journal grows, since no snapshot could be taken: %s", error)
        finally:
            num_bytes = self._journal.num_bytes if self._journal else 0
            self._full_at = max(self._max_bytes, num_bytes + self._max_bytes // 8)
            self._taking.release()

    def cut(self, sequence: int) -> None:
        """Gives back the space of changes up to a sequence, which a durable snapshot holds."""
        try:
            if self._journal:
                self._journal.cut(sequence)
            elif self._directory.exists():
                shutil.rmtree(self._directory)
        except (CarlsError, OSError) as error:  # the snapshot is there all the same
            _logger.warning("the journal %s was not cut: %s", self._directory, error)

    def begin_another(self) -> str:
        """Returns another incarnation; what is recovered from now on is of it, or of a later one.

        It is called before a restored state is made durable.
        """
        return incarnation.begin_another(self._root, self._mode)

    def begin_anew(self, sequence: int) -> None:
        """Keeps changes after a sequence, whatever came before; no change is under way.

        Raises:
          BankStorageError: It cannot, and goes on as before.
        """
        if self._journal is None:
            return
        old, self._journal = self._journal, self._new_journal(sequence)
        try:
            old.close()
        except BankStorageError as error:
            _logger.warning("of the journal of before a restore: %s", error)
        self.cut(sequence)

    def close(self) -> None:
        """Makes durable what was kept; no change is under way."""
        if self._journal is None:
            return
        self._journal.close()
        for file in segment_files(self._directory):
            sync(file.path)
        incarnation.end(self._root, self._mode)

    def _new_journal(self, after: int) -> Journal:
        assert self._mode != "off"
        return Journal(
            self._directory,
            mode=self._mode,
            bank_id=self._bank_id,
            shard_index=self._shard_index,
            after=after,
        )
