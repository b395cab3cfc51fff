"""`Access`: what a client shows to servers at TCP ports, and how it makes sure of them.

A unix socket needs none of it: the system lets its owner alone connect.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from carls_jax.bank.address import Address
from carls_jax.bank.tls import Tls
from carls_jax.bank.tokens import (
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    Token,
    read_token,
    token_from_environment,
)
from carls_jax.errors import AccessDeniedError, CarlsError, InvalidInputError

INSECURE_VARIABLE = "CARLS_INSECURE"
TLS_VARIABLES = {"ca": "CARLS_TLS_CA", "cert": "CARLS_TLS_CERT", "key": "CARLS_TLS_KEY"}

Options: TypeAlias = Iterable[tuple[str, Any]]


@dataclass(frozen=True)
class Access:
    """Holds what a client needs at TCP addresses.

    Attributes:
      token: What it shows. None: nothing, so servers will refuse it.
      tls: Whom it trusts, and who it is. None: requests travel as they are.
      insecure: Lets requests, and the token, travel as they are beyond this machine.
    """

    token: Token | None = None
    tls: Tls | None = None
    insecure: bool = False

    def check(self, address: Address) -> None:
        """Raises InvalidInputError if others could read what would be sent to an address."""
        if not (address.path or address.is_loopback or self.tls or self.insecure):
            raise InvalidInputError(
                f"address={str(address)!r} is on another machine, and without TLS others on the "
                "way can read the token and all rows: connect with tls=carls_jax.Tls(ca=...), or "
                f"with insecure=True (or set {TLS_VARIABLES['ca']}, or {INSECURE_VARIABLE}=1)"
            )

    def open_channel(self, address: Address, options: Options) -> grpc.Channel:
        """Returns a channel to an address."""
        self.check(address)
        if address.path or not self.tls:
            return grpc.insecure_channel(str(address), options=list(options))
        credentials = self.tls.client_credentials()
        return grpc.secure_channel(str(address), credentials, options=list(options))

    def metadata(self, address: Address) -> tuple[tuple[str, str], ...]:
        """Returns what is sent with each request."""
        return self.token.metadata if self.token and not address.path else ()

    def explained(self, refusal: CarlsError) -> AccessDeniedError:
        """Returns a server's refusal with what this client showed, and the way out."""
        shown = f"the token of {self.token.origin}" if self.token else "no token"
        return AccessDeniedError(
            f"{refusal}; this client showed {shown}: connect with token_file=..., or set "
            f"{TOKEN_FILE_VARIABLE} (or {TOKEN_VARIABLE}); `carls-jax bank` tells the file when it "
            "starts"
        )


def access_of(
    *,
    token: str | None,
    token_file: str | os.PathLike[str] | None,
    tls: Tls | None,
    insecure: bool,
) -> Access:
    """Returns the access that a user gave, or for what was not given that of the environment.

    Raises:
      InvalidInputError: There are two tokens, or one that is none, or a file cannot be used.
    """
    if token is not None and token_file is not None:
        raise InvalidInputError("token=..., token_file=...: give one of them")
    found = token_from_environment() if token is None and token_file is None else None
    if token is not None:
        found = Token(token)
    if token_file is not None:
        found = read_token(token_file)
    is_insecure = insecure or os.environ.get(INSECURE_VARIABLE) == "1"
    return Access(found, tls or _tls_from_environment(), is_insecure)


def _tls_from_environment() -> Tls | None:
    given = {name: os.environ[one] for name, one in TLS_VARIABLES.items() if os.environ.get(one)}
    return Tls(**given) if given else None
