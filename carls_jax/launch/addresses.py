"""How the roles of a program find one another: one small file per name in the workdir.

A server binds a free port or a socket, and only then publishes where it listens; the others wait
for the file. Nobody has to choose a port beforehand, and start order does not matter.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carls_jax.errors import ConfigError, NotFoundError
from carls_jax.launch.atomic_file import replace_text

# sockaddr_un.sun_path holds 108 bytes, the last of them zero (unix(7)).
_MAX_SOCKET_PATH_BYTES = 107
_MAX_SOCKET_NAME_BYTES = len("/bank-63.sock")
_POLL_S = 0.05
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def publish(workdir: str | os.PathLike[str], name: str, address: str) -> None:
    """Tells the other processes of a workdir where `name` is reached; replaces what was told.

    Raises:
      ConfigError: `name` is not letters, digits, `_`, `.` and `-`, or `address` is empty.
    """
    if not address:
        raise ConfigError(f"the address of {name!r} is empty; publish it after binding")
    path = _address_path(workdir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, address)


def resolve(workdir: str | os.PathLike[str], name: str, *, timeout_s: float) -> str:
    """Returns the address published as `name`, and waits for it up to `timeout_s` seconds.

    Raises:
      ConfigError: `name` is not letters, digits, `_`, `.` and `-`.
      NotFoundError: Nobody published it in time; the message lists those that are known.
    """
    path = _address_path(workdir, name)
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() >= deadline:
            known = sorted(file.name for file in path.parent.glob("[!.]*"))
            raise NotFoundError(
                f"no process published the address {name!r} in {path.parent} within "
                f"{timeout_s} s; published: {known}. Is the role running with this workdir?"
            )
        time.sleep(_POLL_S)
    return path.read_text(encoding="utf-8")


def clear(workdir: str | os.PathLike[str]) -> None:
    """Removes all addresses of a workdir: those of an earlier launch lead nowhere."""
    for path in _directory(workdir).glob("*"):
        path.unlink(missing_ok=True)


def withdraw(workdir: str | os.PathLike[str], name: str) -> None:
    """Removes what was told about `name`: a server that ends in good order is not to be found.

    Raises:
      ConfigError: `name` is not letters, digits, `_`, `.` and `-`.
    """
    _address_path(workdir, name).unlink(missing_ok=True)


@contextmanager
def socket_directory(workdir: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a directory whose path is short enough for unix sockets in it.

    It is `workdir`, or, where that is too long, a new directory of mode 0700 under the temporary
    directory, which is removed at the end. A launcher holds it, so that a server that is started
    again listens where it did before.

    Raises:
      ConfigError: Both are too long.
    """
    inside = Path(workdir).absolute()
    if _fits(inside):
        yield inside
        return
    with tempfile.TemporaryDirectory(prefix="carls-") as directory:
        if not _fits(Path(directory)):
            raise ConfigError(
                f"a socket's path may have {_MAX_SOCKET_PATH_BYTES} bytes, and {str(inside)!r} and "
                f"{directory!r} are too long for it; set TMPDIR to a shorter path"
            )
        yield Path(directory)


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory)) + _MAX_SOCKET_NAME_BYTES <= _MAX_SOCKET_PATH_BYTES


def _directory(workdir: str | os.PathLike[str]) -> Path:
    return Path(workdir) / "addresses"


def _address_path(workdir: str | os.PathLike[str], name: str) -> Path:
    _check_name(name)
    return _directory(workdir) / name


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {name!r} must begin with a letter or digit and hold only those, '_', '.', '-'"
        )
