"""Labels: the names that users give to snapshots."""

from __future__ import annotations

import re

from carls_jax.errors import InvalidInputError

_LABEL = re.compile(r"(?![0-9a-f]{32}\Z)(?!\.{1,2}\Z)[A-Za-z0-9._\-]{1,64}")


def check_label(label: object) -> str:
    """Returns a label if it is one.

    One that looks like a UUID would hide the snapshot which has that UUID.

    Raises:
      InvalidInputError: It is not 1 to 64 letters, digits, dots, dashes or underscores, or it is
        ".", ".." or a UUID.
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise InvalidInputError(
            f"label={label!r:.80}: a label is 1 to 64 of the characters A-Z a-z 0-9 . _ -, and "
            "neither '.', '..' nor the 32 digits of a UUID"
        )
    return label
