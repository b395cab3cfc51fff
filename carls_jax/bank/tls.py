"""TLS: who a server or a client is, and whom it trusts, by certificates in PEM files."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from carls_jax.bank.address import Address
from carls_jax.bank.tokens import check_private
from carls_jax.errors import AccessDeniedError, BankIdentityError, CarlsError, InvalidInputError

# Of the connection that finds out why there is none.
PROBE_TIMEOUT_S = 2.0
# OpenSSL's names for what comes from a server without TLS.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL"}


@dataclass(frozen=True)
class Tls:
    """Names PEM files with certificates: one's own, and of those who vouch for the other side.

    Attributes:
      ca: Certificates of the authorities that the other side's must be of. None: a client takes the
        public ones that gRPC brings along, a server asks clients for no certificate.
      cert: One's own certificate and those between it and its authority. A server needs one; a
        client needs one where the server has a `ca` (mutual TLS).
      key: Private key of `cert`, without a passphrase.

    Raises:
      InvalidInputError: There is `cert` without `key` or the reverse, or a file cannot be used.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidInputError(
                f"Tls(cert={self.cert!r}, key={self.key!r}): a certificate and its private key go "
                "together"
            )
        self._context()

    def client_credentials(self) -> grpc.ChannelCredentials:
        """Returns what gRPC needs of a client."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns what gRPC needs of a server; raises InvalidInputError if there is no `cert`."""
        if self.cert is None or self.key is None:
            raise InvalidInputError("Tls(cert=None): a server needs a certificate and its key")
        return grpc.ssl_server_credentials(
            [(Path(self.key).read_bytes(), Path(self.cert).read_bytes())],
            root_certificates=_read(self.ca),
            require_client_auth=self.ca is not None,
        )

    def _context(self) -> ssl.SSLContext:
        """Returns the same for Python's own TLS, which tells what is wrong; gRPC does not."""
        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(f"Tls(ca={str(self.ca)!r}): {_reason(error)}") from error
        if self.cert is None or self.key is None:
            return context
        try:
            check_private(os.stat(self.key), origin=f"Tls(key={str(self.key)!r})", path=self.key)
            # Without a password OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(
                f"Tls(cert={str(self.cert)!r}, key={str(self.key)!r}): {_reason(error)}"
            ) from error
        return context


def why_not(address: Address, tls: Tls | None) -> CarlsError | None:
    """Finds out whether TLS is why gRPC, which does not say, reaches no server at a TCP address.

    Returns:
      What is wrong with the certificates of either side, or that one side alone speaks TLS; None
      if it is something else.
    """
    context = tls._context() if tls else _trusting()
    context.set_alpn_protocols(["h2"])
    host = address.host.strip("[]")
    try:
        with (
            socket.create_connection((host, address.port), PROBE_TIMEOUT_S) as link,
            context.wrap_socket(link, server_hostname=host) as encrypted,
        ):
            return _after_handshake(address, encrypted) if tls else _speaks_tls(address)
    except ssl.SSLCertVerificationError as error:
        return BankIdentityError(
            f"{address} cannot prove that it is the bank: {error.verify_message.rstrip('.')}. Give "
            "tls=Tls(ca=...) the authority of its certificate, and an address that the "
            "certificate names"
        )
    except ssl.SSLError as error:
        if not tls or error.reason not in _NOT_TLS:
            return None
        return BankIdentityError(
            f"the server at {address} does not speak TLS, so it cannot prove that it is the bank: "
            "start it with --tls-cert and --tls-key"
        )
    except OSError:
        return None


def _after_handshake(address: Address, link: ssl.SSLSocket) -> CarlsError | None:
    """Waits for what a server says first. One that refuses a client's certificate ends here."""
    try:
        if link.recv(1):
            return None
    except TimeoutError:
        return None
    except OSError:  # it hung up, with an alert or without
        pass
    return AccessDeniedError(
        f"the bank at {address} refuses this client's certificate, or that it has none: give "
        "tls=Tls(ca=..., cert=..., key=...) one that the server's --tls-client-ca has signed"
    )


def _speaks_tls(address: Address) -> CarlsError:
    return AccessDeniedError(
        f"the bank at {address} speaks TLS: connect with tls=carls_jax.Tls(ca=...), or set "
        "CARLS_TLS_CA"
    )


def _trusting() -> ssl.SSLContext:
    """Returns what accepts any server; nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _reason(error: OSError) -> str:
    """Says why a file cannot be used; an `SSLError` has no `strerror` that helps."""
    if isinstance(error, ssl.SSLError):
        return f"they do not fit, have a passphrase, or are no PEM ({error.reason or error})"
    return error.strerror or str(error)
