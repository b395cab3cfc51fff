"""Tokens: the secret that a client shows to a server which listens at a TCP port.

A token is given in a file or an environment variable, never on a command line, which every user of
a machine can read. Only `Token.value` and the file hold it: it is in no repr, error or log.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from carls_jax.errors import InvalidInputError

TOKEN_VARIABLE = "CARLS_TOKEN"
TOKEN_FILE_VARIABLE = "CARLS_TOKEN_FILE"
# Request metadata, as RFC 6750 has it.
METADATA_KEY = "authorization"
MAX_FILE_BYTES = 4096

# The letters are those of RFC 6750; 16 of them are 96 bits if drawn at random.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=\-]{16,512}")
_NEW_TOKEN_BYTES = 32


@dataclass(frozen=True)
class Token:
    """Is a token.

    Attributes:
      value: The secret.
      origin: Where it was found, in words.

    Raises:
      InvalidInputError: It is none; the message does not show it.
    """

    value: str = field(repr=False)
    origin: str = "token=..."

    def __post_init__(self) -> None:
        if not isinstance(self.value, str) or not _TOKEN.fullmatch(self.value):
            raise InvalidInputError(
                f"the token of {self.origin} is none: it has 16 to 512 of the characters A-Z a-z "
                "0-9 . _ ~ + / = -"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a client sends with each request."""
        return ((METADATA_KEY, f"Bearer {self.value}"),)

    def is_shown_by(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Tells whether a request shows this token; how long it takes does not tell of it."""
        shown = [value for key, value in metadata if key == METADATA_KEY]
        expected = f"Bearer {self.value}".encode()
        return len(shown) == 1 and hmac.compare_digest(_bytes(shown[0]), expected)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogateescape")


def read_token(path: str | os.PathLike[str], *, origin: str = "") -> Token:
    """Returns the token that a file holds.

    Raises:
      InvalidInputError: The file cannot be read, holds no token, or is open to others.
    """
    origin = origin or f"token_file={os.fspath(path)}"
    try:
        with open(path, "rb") as file:
            check_private(os.fstat(file.fileno()), origin=origin, path=path)
            raw = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise InvalidInputError(f"{origin}: no token can be read there: {error.strerror}") from None
    return Token(raw.decode("ascii", errors="replace").strip(), origin)


def check_private(found: os.stat_result, *, origin: str, path: str | os.PathLike[str]) -> None:
    """Raises InvalidInputError if a file with a secret is another user's, or open to others."""
    if found.st_uid not in (0, os.getuid()):
        raise InvalidInputError(f"{origin}: the file is of user {found.st_uid}, so it is not used")
    if found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise InvalidInputError(
            f"{origin}: every user can read or write the file (mode "
            f"{stat.S_IMODE(found.st_mode):04o}): chmod 600 {os.fspath(path)}"
        )


def kept_token(path: str | os.PathLike[str]) -> Token:
    """Returns the token that a file holds, a new one if there is no file; it then has mode 0600.

    Several processes may do so at once: all get the same.

    Raises:
      InvalidInputError: As `read_token`, or the file cannot be made.
    """
    path = Path(path)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(path)
        except OSError as error:
            raise InvalidInputError(
                f"token_file={path}: cannot be made: {error.strerror}"
            ) from error
    return read_token(path)


def _make(path: Path) -> None:
    """Makes a file with a new token, unless there is one meanwhile."""
    # `mkstemp` makes files of mode 0600, and a link is there whole or not at all.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".token-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(_NEW_TOKEN_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)


def token_from_environment() -> Token | None:
    """Returns the token of `CARLS_TOKEN`, or of the file that `CARLS_TOKEN_FILE` names.

    Raises:
      InvalidInputError: Both are set, or there is no such token.
    """
    value, path = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    if value and path:
        raise InvalidInputError(
            f"{TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are both set: unset one of them"
        )
    if value:
        return Token(value, TOKEN_VARIABLE)
    return read_token(path, origin=f"{TOKEN_FILE_VARIABLE}={path}") if path else None
