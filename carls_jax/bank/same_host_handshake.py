"""How a same-host connection begins: each side makes sure of the other, one memfd changes hands."""

from __future__ import annotations

import contextlib
import os
import socket

from carls_jax.bank.same_host_connection import (
    CREDENTIALS,
    PACKET_BYTES,
    SEGMENT_BYTES,
    Connection,
    Kind,
    LinkError,
    Packet,
    decode_packet,
)
from carls_jax.bank.same_host_segment import make_segment, map_segment

# Raised by any change of what the packets mean or how the segment is used.
FORMAT_VERSION = 2


def new_socket() -> socket.socket:
    """Returns a new socket that is no file yet; each packet on it is received whole or not."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def welcome(peer: socket.socket) -> Connection:
    """Begins a connection, in the server.

    Raises:
      PermissionError: The client is another user's.
      OSError: The client has gone, or the system has no memory to share.
    """
    _check_user(peer)
    descriptor = make_segment(SEGMENT_BYTES)
    try:
        segment = map_segment(descriptor, SEGMENT_BYTES)
        packet = Packet(Kind.WELCOME, FORMAT_VERSION, num_bytes=SEGMENT_BYTES)
        socket.send_fds(peer, [packet.encode()], [descriptor])
    finally:
        os.close(descriptor)
    return Connection(peer, segment)


def connect(path: str, *, timeout_s: float) -> Connection:
    """Begins a connection to the server that listens at a path.

    Raises:
      PermissionError: The server is another user's.
      OSError: No server listens there, or none that shares memory in this format.
    """
    peer = new_socket()
    try:
        peer.settimeout(timeout_s)
        peer.connect(path)
        _check_user(peer)
        return Connection(peer, _receive_segment(peer))
    except BaseException:
        peer.close()
        raise


def _receive_segment(peer: socket.socket) -> memoryview:
    raw, descriptors, _, _ = socket.recv_fds(peer, PACKET_BYTES + 1, 1, socket.MSG_CMSG_CLOEXEC)
    with contextlib.ExitStack() as held:
        for descriptor in descriptors:
            held.callback(os.close, descriptor)
        expected = Packet(Kind.WELCOME, FORMAT_VERSION, num_bytes=SEGMENT_BYTES)
        if decode_packet(raw) != expected or len(descriptors) != 1:
            raise LinkError(f"the server does not speak format {FORMAT_VERSION}")
        return map_segment(descriptors[0], SEGMENT_BYTES)


def _check_user(peer: socket.socket) -> None:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    process, user, _ = CREDENTIALS.unpack(raw)
    if user != os.getuid():
        raise PermissionError(f"process {process} at the other side is of user {user}")
