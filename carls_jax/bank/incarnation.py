"""Which incarnation a bank's directory is of: `ROOT/incarnation.json`.

It stays the same as long as nothing that was acknowledged can have been lost. So it is kept with
what the changes since then outlast: nothing, their process (the machine must not have been started
anew meanwhile), or everything.
"""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Literal

from carls_jax.bank.durable_files import replace_file

JournalMode = Literal["off", "process", "fsync"]

_FILE = "incarnation.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NOTHING, _EVERYTHING = "nothing", "everything"

_logger = logging.getLogger(__name__)


def begin(root: Path, mode: JournalMode, *, has_journal: bool) -> str:
    """Returns the incarnation that a bank is of from now on, which may be that of before.

    Args:
      mode: How its changes are kept from now on.
      has_journal: Whether there is one of before.
    """
    incarnation, outlast = _read(root)
    is_whole = outlast and outlast in (_EVERYTHING, _this_boot())
    if not (incarnation and is_whole and has_journal):
        incarnation = uuid.uuid4().hex
    _write(root, incarnation, _outlast(mode))
    return incarnation


def begin_another(root: Path, mode: JournalMode) -> str:
    """Returns a new incarnation, which the bank is of from now on, or else after the next start."""
    incarnation = uuid.uuid4().hex
    _write(root, incarnation, _outlast(mode))
    return incarnation


def end(root: Path, mode: JournalMode) -> None:
    """Notes that the disk has all changes, if they were kept at all."""
    incarnation, _ = _read(root)
    if mode != "off" and incarnation:
        _write(root, incarnation, _EVERYTHING)


def _outlast(mode: JournalMode) -> str:
    return {"off": _NOTHING, "process": _this_boot() or _NOTHING, "fsync": _EVERYTHING}[mode]


def _this_boot() -> str:
    """Returns what names the time since the machine was started; "" if the system does not say."""
    return _BOOT.read_text().strip() if _BOOT.exists() else ""


def _read(root: Path) -> tuple[str, str]:
    """Returns the incarnation and what its changes outlast; twice "" if that is not known."""
    try:
        kept = json.loads((root / _FILE).read_bytes())
        return str(kept["incarnation"]), str(kept["changes_outlast"])
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        _logger.warning("%s is damaged, so this is another incarnation: %r", root / _FILE, error)
        return "", ""


def _write(root: Path, incarnation: str, outlast: str) -> None:
    kept = {"incarnation": incarnation, "changes_outlast": outlast}
    replace_file(root / _FILE, json.dumps(kept) + "\n")
