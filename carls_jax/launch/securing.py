"""Who may use a run's bank: the token and certificates of its servers, and how clients find them.

A server at a TCP port publishes beside its address where the file with its token is, never the
token. Nothing of it is on a command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from carls_jax.bank import Tls
from carls_jax.bank.address import parse_address
from carls_jax.bank.tokens import TOKEN_VARIABLE, Token, kept_token, token_from_environment
from carls_jax.errors import ConfigError, NotFoundError
from carls_jax.launch.addresses import publish, resolve, withdraw


@dataclass(frozen=True)
class Security:
    """Says how a bank server at a TCP port is secured; a unix socket is its owner's alone.

    Attributes:
      token_file: Holds the token that clients show; made if it is not there. None: the token is
        that of the environment, or is kept in a file beside the bank.
      tls: The server's certificate, and whose clients it takes.
      insecure: Lets others on the way read the token and all rows.
    """

    token_file: Path | None = None
    tls: Tls | None = None
    insecure: bool = False

    def check(self, address: str) -> None:
        """Raises ConfigError if an address is a unix socket and this is not for one."""
        if parse_address(address).path and self != Security():
            raise ConfigError(
                f"address={address}: a unix socket is its owner's alone: leave out --token-file, "
                "--tls-... and --insecure, or give host:port"
            )


@dataclass(frozen=True)
class Shown:
    """Is what a server wants to be shown.

    Attributes:
      token: None at a unix socket.
      path: The file that holds the token; None: the environment does.
    """

    token: Token | None = field(default=None, repr=False)
    path: Path | None = None

    @property
    def hint(self) -> str:
        """Further arguments of `connect`, as text."""
        if self.path:
            return f", token_file={str(self.path)!r}"
        return f", token=os.environ[{TOKEN_VARIABLE!r}]" if self.token else ""


def token_of(security: Security, address: str, *, directory: Path) -> Shown:
    """Returns what a server wants to be shown at an address.

    Args:
      security: What the user gave.
      address: Where it listens.
      directory: Where a new token is kept, in the file `token` of mode 0600.

    Raises:
      InvalidInputError: The token is none, or its file cannot be used.
    """
    if parse_address(address).path:
        return Shown()
    if security.token_file is None and (found := token_from_environment()):
        return Shown(found)
    path = (security.token_file or directory / "token").absolute()
    return Shown(kept_token(path), path)


@contextmanager
def published(workdir: Path, shown: Shown, *, shard_index: int) -> Iterator[None]:
    """Tells the other processes of a workdir where a server's token is, until the block ends."""
    name = _name(shard_index)
    if shown.path:
        publish(workdir, name, str(shown.path))
    else:
        withdraw(workdir, name)
    yield
    withdraw(workdir, name)


def token_file(workdir: str | os.PathLike[str]) -> str | None:
    """Returns the file that holds the token of a run's bank.

    None: the bank wants none, or its processes have it in their environment.
    """
    try:
        return resolve(workdir, _name(0), timeout_s=0)
    except NotFoundError:
        return None


def _name(shard_index: int) -> str:
    return f"token-{shard_index}"
