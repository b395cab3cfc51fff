"""`connect`: the bank at an address, whatever kind it is."""

from __future__ import annotations

import os

from carls_jax.bank.access import access_of
from carls_jax.bank.address import parse_address
from carls_jax.bank.interface import Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.namespaces import NamespacedBank, check_namespace
from carls_jax.bank.remote import DEFAULT_TIMEOUT_S, RemoteBank
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.tls import Tls
from carls_jax.errors import InvalidInputError

_LOCAL = "local:"
FORMS = """\
  local:                    a bank in this process, in memory
  local:/path               the same, with a directory for snapshots
  unix:/path                a server on this machine
  host:port                 a server anywhere
  host:port,host:port,...   the servers of one bank in the order of their shards (also unix:)"""


def connect(
    address: str,
    *,
    source: str = "",
    namespace: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    tls: Tls | None = None,
    insecure: bool = False,
) -> Bank:
    """Returns the bank at an address.

    Nothing is sent yet: a server need not run before the first call, or `wait_ready`. At
    "unix:/path" rows are looked up in the server's own memory where it can be shared, and only what
    memory cannot answer is asked of the server.

    A server at "host:port" wants its token, the same for all servers of one bank. What is not given
    here is taken of the environment: `CARLS_TOKEN_FILE` or `CARLS_TOKEN`, `CARLS_TLS_CA`,
    `CARLS_TLS_CERT` and `CARLS_TLS_KEY`, `CARLS_INSECURE=1`.

    Args:
      address: "local:", "local:/path", "unix:/path", "host:port", or several of the last two with
        commas between them: the servers of one bank in the order of their shards.
      source: The name under which this client writes.
      namespace: The part of the bank to see, as of `Bank.namespace`, so that several runs can share
        one bank. None: all of it.
      timeout_s: Deadline of each call to a server, in seconds.
      token: The server's token.
      token_file: The file that holds it.
      tls: Whom to trust at "host:port", and who this client is. Without it nothing is sent beyond
        this machine.
      insecure: Sends all the same, so that others on the way can read the token and all rows.

    Raises:
      InvalidInputError: The address is malformed (the message lists the forms), a token or a
        certificate cannot be used, or an address is beyond this machine and there is no `tls`.
    """
    if not timeout_s > 0:
        raise InvalidInputError(f"timeout_s={timeout_s!r}: allowed are positive seconds")
    if namespace is not None:
        check_namespace(namespace)
    if address.startswith(_LOCAL):
        return _within(LocalBank(address.removeprefix(_LOCAL) or None, source=source), namespace)
    addresses = address.split(",")
    try:
        paths = [parse_address(one).path for one in addresses]
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}. The forms of an address are:\n{FORMS}") from None
    access = None
    if not all(paths):
        access = access_of(token=token, token_file=token_file, tls=tls, insecure=insecure)
    banks = [
        RemoteBank(
            one, source=source, timeout_s=timeout_s, num_shards=len(addresses), access=access
        )
        for one in addresses
    ]
    whole = banks[0] if len(banks) == 1 else ShardedBank(banks, source=source)
    return _within(whole, namespace)


def _within(bank: Bank, namespace: str | None) -> Bank:
    return bank if namespace is None else NamespacedBank(bank, namespace, closes=True)
