"""`KeptChanges`: changes that wait for their server, so many bytes of them at most."""

from __future__ import annotations

from collections import deque

from carls_jax.bank.changes import Change

# Of a change beside its arrays, about.
_HEADER_BYTES = 1024


class KeptChanges:
    """Keeps changes in order; when there are too many, the oldest is dropped and counted.

    Not for use by several threads at once.

    Args:
      max_bytes: Of all changes together.

    Attributes:
      num_kept: Changes that were kept, ever.
      num_dropped: How many of them were dropped.
      rows_dropped: Rows that these would have written.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._changes: deque[Change] = deque()
        self._num_bytes = 0
        self.num_kept = 0
        self.num_dropped = 0
        self.rows_dropped = 0

    def __len__(self) -> int:
        """Counts the changes that wait."""
        return len(self._changes)

    def append(self, change: Change) -> None:
        """Keeps a change, whose arrays nobody alters any more, after the others."""
        self.num_kept += 1
        self._changes.append(change)
        self._num_bytes += _num_bytes(change)
        self._drop()

    def put_back(self, change: Change) -> None:
        """Keeps a change that was taken, as the first."""
        self._changes.appendleft(change)
        self._num_bytes += _num_bytes(change)
        self._drop()

    def take(self) -> Change:
        """Takes the first change out."""
        change = self._changes.popleft()
        self._num_bytes -= _num_bytes(change)
        return change

    def drop_all(self) -> None:
        """Drops what waits."""
        while self._changes:
            self._count_dropped(self.take())

    def _drop(self) -> None:
        while self._num_bytes > self._max_bytes:
            self._count_dropped(self.take())

    def _count_dropped(self, change: Change) -> None:
        self.num_dropped += 1
        self.rows_dropped += change.keys.size


def _num_bytes(change: Change) -> int:
    arrays = (change.keys, *change.values.values())
    return _HEADER_BYTES + sum(array.nbytes for array in arrays)
