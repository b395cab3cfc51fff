"""`SameHostServer`: offers a bank to processes of this machine, through memory shared with each."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from pathlib import Path

from google.protobuf.message import DecodeError

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import same_host_handshake, status
from carls_jax.bank.listening import remove_stale_socket
from carls_jax.bank.pacing import client_of_process
from carls_jax.bank.same_host_connection import MAX_MESSAGE_BYTES, Connection, Kind, LinkError
from carls_jax.bank.same_host_segment import IS_SUPPORTED
from carls_jax.bank.staging import Staging
from carls_jax.bank.table_sharing import TableSharing
from carls_jax.bank.wire import Arrays
from carls_jax.errors import AddressInUseError, InvalidInputError

# 128 MiB of segments.
DEFAULT_CONNECTIONS = 64
# Whoever stops in the middle of a request or a reply for so long is taken for dead.
STALLED_S = 60.0
# After a connection could not be made.
PAUSE_S = 0.1

_NO_ARRAYS: Arrays = {}
_ASKED = (Kind.REQUEST, Kind.OPEN)
_logger = logging.getLogger(__name__)


def offer(staging: Staging, path: str, *, max_connections: int) -> SameHostServer | None:
    """Begins to answer requests at a path, unless there is none or the system cannot do it."""
    if not path or not max_connections or not IS_SUPPORTED:
        return None
    try:
        return SameHostServer(staging, path, max_connections=max_connections)
    except (OSError, AddressInUseError) as error:
        _logger.warning("clients of this machine will use gRPC: %s", error)
        return None


class SameHostServer:
    """Answers requests at a socket from construction on; a thread for each connection.

    Methods may be called from several threads at once.

    Args:
      staging: What answers.
      path: Where the socket is made, open to its owner alone.
      max_connections: Further ones are turned away. Each takes `SEGMENT_BYTES` of memory.

    Raises:
      AddressInUseError: A live server, or another file, is at the path.
      OSError: The system lets no socket be made there.
    """

    def __init__(self, staging: Staging, path: str, *, max_connections: int) -> None:
        self._staging = staging
        self._path = path
        self._max_connections = max_connections
        self._is_stopping = threading.Event()
        self._lock = threading.Lock()
        self._peers: dict[threading.Thread, socket.socket] = {}
        self._listener = _listen(path)
        threading.Thread(target=self._accept, name="same-host-accept", daemon=True).start()

    @property
    def num_connections(self) -> int:
        """Connections that clients have now."""
        with self._lock:
            return len(self._peers)

    def turn_away(self) -> None:
        """Frees the path and takes no more requests; those under way go on."""
        with self._lock:
            if self._is_stopping.is_set():
                return
            self._is_stopping.set()
            Path(self._path).unlink(missing_ok=True)
            # Closing alone would not wake the thread that accepts.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for peer in self._peers.values():
                _shut(peer, socket.SHUT_RD)

    def wait(self, timeout_s: float) -> None:
        """Waits, after `turn_away`, for requests under way; ends the connections of those left."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            peers = dict(self._peers)
        for thread in peers:
            thread.join(max(deadline - time.monotonic(), 0))
        for peer in peers.values():
            _shut(peer, socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._is_stopping.is_set():
            try:
                peer, _ = self._listener.accept()
                self._begin(peer)
            except (OSError, RuntimeError) as error:  # no descriptor, or no thread, is free
                if not self._is_stopping.wait(PAUSE_S):
                    _logger.warning("no connection could be made at %s: %s", self._path, error)

    def _begin(self, peer: socket.socket) -> None:
        thread = threading.Thread(
            target=self._serve, args=(peer,), name="same-host-server", daemon=True
        )
        with self._lock:
            if self._is_stopping.is_set() or len(self._peers) >= self._max_connections:
                peer.close()
                _logger.info("a connection beyond %d was turned away", self._max_connections)
                return
            thread.start()
            self._peers[thread] = peer

    def _serve(self, peer: socket.socket) -> None:
        """Answers one client until it goes."""
        try:
            connection = same_host_handshake.welcome(peer)
            client = client_of_process(connection.process())
            with TableSharing(connection, self._staging.share) as sharing:
                while True:
                    self._answer(connection, sharing, client)
        except OSError as error:
            _logger.debug("a connection at %s ended: %s", self._path, error)
        finally:
            with self._lock:
                del self._peers[threading.current_thread()]
                peer.close()

    def _answer(self, connection: Connection, sharing: TableSharing, client: str) -> None:
        """Answers the next request of a client."""
        connection.deadline = None
        packet = connection.receive()
        connection.deadline = time.monotonic() + STALLED_S
        if packet.kind not in _ASKED or packet.message_bytes > MAX_MESSAGE_BYTES:
            raise LinkError(f"{packet} where a request should begin")
        message, pieces = connection.content(packet)
        if packet.kind is Kind.OPEN:
            sharing.open(message.decode(errors="replace"), call=packet.call)
            return
        kind, arrays = Kind.REPLY, _NO_ARRAYS
        try:
            reply, arrays = self._staging.answer(_parsed(message), pieces, client=client)
            message = reply.SerializeToString()
        except LinkError:
            raise
        except Exception as error:
            deque(pieces, maxlen=0)  # the client expects its request to be taken whole
            kind, message = Kind.FAILURE, status.pack_error(error)
        connection.deadline = time.monotonic() + STALLED_S
        connection.send(kind, packet.call, message, arrays)


def _listen(path: str) -> socket.socket:
    remove_stale_socket(Path(path))
    listener = same_host_handshake.new_socket()
    try:
        listener.bind(path)
        os.chmod(path, 0o600)  # nobody can connect before `listen`
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _shut(peer: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the client has gone already
        peer.shutdown(how)


def _parsed(message: bytes) -> pb.Request:
    try:
        return pb.Request.FromString(message)
    except DecodeError as error:
        raise InvalidInputError(f"the bytes are no request: {error}") from error
