"""Where a server listens: `unix:/path` or `host:port`."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from carls_jax.errors import InvalidInputError

# The kernel keeps a socket's path in 108 bytes, the last of which is zero.
MAX_PATH_BYTES = 107
SAME_HOST_SUFFIX = ".same-host"
FORMS = "unix:/path/to/socket and host:port"

_HOST_PORT = re.compile(r"(?P<host>[A-Za-z0-9_.\-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """Is the address of one server; made by `parse_address`.

    Attributes:
      path: Absolute path of a unix socket; "" for TCP.
      host: Name, IPv4 address, or IPv6 address in brackets; "" for a unix socket.
      port: 0 lets a server choose a free one.
    """

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def same_host_path(self) -> str:
        """Path of the socket through which memory is shared; "" if there is none.

        There is none beside a TCP port, nor where the path would be too long.
        """
        path = f"{self.path}{SAME_HOST_SUFFIX}"
        return path if self.path and len(os.fsencode(path)) <= MAX_PATH_BYTES else ""

    @property
    def is_loopback(self) -> bool:
        """Whether the address is TCP and, as it is written, within this machine.

        Other names are not looked up: what they stand for may change.
        """
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def __str__(self) -> str:
        """Writes the address as users and gRPC do."""
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Reads the address of one server; a relative path is made absolute.

    Raises:
      InvalidInputError: It has neither form, or the path is too long for a socket.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        path = os.path.abspath(text.removeprefix("unix:"))
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise InvalidInputError(
                f"address={text!r}: the path has {len(os.fsencode(path))} bytes and a socket's "
                f"has at most {MAX_PATH_BYTES}; choose a shorter directory"
            )
        return Address(path=path)
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65_535:
        raise InvalidInputError(f"address={text!r}: allowed are {FORMS}, with ports up to 65535")
    return Address(host=match["host"], port=int(match["port"]))
