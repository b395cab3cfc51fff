"""Binds a gRPC server to an address: a unix socket of its owner alone, or a TCP port of its own."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import grpc

from carls_jax.bank.address import Address
from carls_jax.bank.tls import Tls
from carls_jax.errors import AddressInUseError, CarlsError, InvalidInputError

_umask_lock = threading.Lock()


def listen(server: grpc.Server, address: Address, *, tls: Tls | None = None) -> Address:
    """Binds a server to an address and returns the address, with the port that was chosen.

    Raises:
      InvalidInputError: It is no address of this machine, or others may replace the socket.
      AddressInUseError: A live server, or a file that is no socket, is at the address.
    """
    if address.path:
        _listen_at_path(server, Path(address.path))
        return address
    try:
        if tls:
            port = server.add_secure_port(str(address), tls.server_credentials())
        else:
            port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise _why_not(address) from error
    return Address(host=address.host, port=port)


def _listen_at_path(server: grpc.Server, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_directory(path)
    remove_stale_socket(path)
    # The mask is the process's, so files that other threads make in this instant get it too.
    with _umask_lock:
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise InvalidInputError(f"cannot listen at unix:{path}: {error}") from error
        finally:
            os.umask(mask)


def _check_directory(path: Path) -> None:
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise InvalidInputError(
            f"address='unix:{path}': every user can replace files in {path.parent} (mode "
            f"{stat.S_IMODE(mode):04o}), and so the server: chmod o-w it, or choose another "
            "directory"
        )


def remove_stale_socket(path: Path) -> None:
    """Removes what a dead server left; raises AddressInUseError for all else that is there."""
    if not path.exists():
        return
    if not path.is_socket():
        raise AddressInUseError(f"{path} is a file and no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        is_dead = probe.connect_ex(str(path)) == errno.ECONNREFUSED
    if not is_dead:
        raise AddressInUseError(
            f"a live server listens at unix:{path}; stop it or choose another path"
        )
    path.unlink()


def _why_not(address: Address) -> CarlsError:
    """Finds out why gRPC, which does not say, could not listen at a TCP address."""
    try:
        found = socket.getaddrinfo(address.host.strip("[]"), address.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, place in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return InvalidInputError(f"address={str(address)!r}: cannot listen there: {error}")
    return AddressInUseError(f"{address} is taken by another server; port 0 chooses a free one")
