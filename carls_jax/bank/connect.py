"""`connect`: the bank at an address, whatever kind it is."""

from __future__ import annotations

from carls_jax.bank.interface import Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import DEFAULT_TIMEOUT_S, RemoteBank
from carls_jax.bank.sharded import ShardedBank
from carls_jax.errors import InvalidInputError

_LOCAL = "local:"
FORMS = """\
  local:                    a bank in this process, in memory
  local:/path               the same, with a directory for snapshots
  unix:/path                a server on this machine
  host:port                 a server anywhere
  host:port,host:port,...   the servers of one bank in the order of their shards (also unix:)"""


def connect(address: str, *, source: str = "", timeout_s: float = DEFAULT_TIMEOUT_S) -> Bank:
    """Returns the bank at an address.

    Nothing is sent yet: a server need not run before the first call, or `wait_ready`. At
    "unix:/path" rows are looked up in the server's own memory where it can be shared, and only what
    memory cannot answer is asked of the server.

    Args:
      address: "local:", "local:/path", "unix:/path", "host:port", or several of the last two with
        commas between them: the servers of one bank in the order of their shards.
      source: The name under which this client writes.
      timeout_s: Deadline of each call to a server, in seconds.

    Raises:
      InvalidInputError: The address is malformed; the message lists the forms.
    """
    if not timeout_s > 0:
        raise InvalidInputError(f"timeout_s={timeout_s!r}: allowed are positive seconds")
    if address.startswith(_LOCAL):
        return LocalBank(address.removeprefix(_LOCAL) or None, source=source)
    addresses = address.split(",")
    try:
        banks = [
            RemoteBank(one, source=source, timeout_s=timeout_s, num_shards=len(addresses))
            for one in addresses
        ]
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}. The forms of an address are:\n{FORMS}") from None
    return banks[0] if len(banks) == 1 else ShardedBank(banks, source=source)
