"""Small files that other processes read while they are replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old content or the new, never half of it."""
    # Two writers of one path each need a draft of their own.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
