"""`Spares`: files of a journal's needless segments, which later ones write over.

    DIRECTORY/00000000000000000001.spare    was the segment that began with this sequence

What is written over needs no memory for the file that the system has not got yet, no room on the
disk, and, to be synced, no change of the file's length.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_SPARES = 4
"""As many segments as are needless at once, with the default lengths of them and the journal."""

_SUFFIX = ".spare"


class Spares:
    """Holds the spare files of one journal.

    `take` and `give` may be called by two threads at once, and each by one at a time.

    Args:
      directory: The journal's; those that an earlier process left there are deleted.

    Raises:
      OSError: One cannot be deleted.
    """

    def __init__(self, directory: Path) -> None:
        for path in directory.glob(f"*{_SUFFIX}"):
            path.unlink()
        self._paths: list[Path] = []

    def take(self) -> Path | None:
        """Returns a file that nobody else gets; None: there is none."""
        return self._paths.pop() if self._paths else None

    def give(self, path: Path) -> None:
        """Makes a needless segment a spare, or deletes it, if there are enough.

        Raises:
          OSError: The disk fails; the segment is there as before.
        """
        if len(self._paths) >= MAX_SPARES:
            path.unlink(missing_ok=True)
            return
        spare = path.with_suffix(_SUFFIX)
        try:
            os.rename(path, spare)
        except FileNotFoundError:  # somebody deleted it
            return
        self._paths.append(spare)
