"""`FaultyProxy`: a TCP proxy that does to connections what networks do, at random moments."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from typing import Literal, TypeAlias

Fault: TypeAlias = Literal["cut", "drop", "delay", "duplicate"]

CHUNK_BYTES = 1 << 14
LONGEST_DELAY_S = 0.2
# What was sent on a connection is kept up to so much, to be sent once more.
MOST_KEPT_BYTES = 8 << 20


class FaultyProxy:
    """Carries bytes between a port of its own and a server's, until the end of a `with` block.

    Some chunks meet a fault. "cut": a part of the chunk is carried, and both connections end.
    "drop": this chunk and all that follow it in its direction are lost, and nobody is told; a
    little later the connections end. "delay": the chunk waits. "duplicate": all that the client has
    sent on this connection so far is sent to the server once more, on another connection.

    Args:
      port: The server's, on this machine.
      faults: How likely each fault is for a chunk.
      chance: Where and when they come.

    Attributes:
      port: Where clients connect.
      counts: How often each fault came.
    """

    def __init__(self, port: int, faults: dict[Fault, float], chance: random.Random) -> None:
        self._server = ("127.0.0.1", port)
        self._faults, self._chance = faults, chance
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._sockets: set[socket.socket] = set()
        self.counts: Counter[Fault] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        _in_thread(self._accept)

    def stop_faults(self) -> None:
        """Carries everything from now on."""
        with self._lock:
            self._faults = {}

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for one in sockets:
            _end(one)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
                server = self._connect()
            except OSError:
                continue  # the server is away: the client finds the connection closed
            with self._lock:
                self._sockets |= {client, server}
            kept = bytearray()
            _in_thread(self._carry, client, server, kept, True)
            _in_thread(self._carry, server, client, kept, False)

    def _connect(self) -> socket.socket:
        server = socket.create_connection(self._server)
        with self._lock:
            self._sockets.add(server)
        return server

    def _carry(
        self, source: socket.socket, to: socket.socket, kept: bytearray, is_request: bool
    ) -> None:
        """Carries one direction of a connection to its end."""
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if is_request and len(kept) < MOST_KEPT_BYTES:
                    kept += data
                fault, amount = self._next_fault()
                if fault == "cut":
                    to.sendall(data[: int(amount * len(data))])
                    break
                if fault == "drop":
                    self._over.wait(amount * LONGEST_DELAY_S)
                    break
                if fault == "delay":
                    self._over.wait(amount * LONGEST_DELAY_S)
                to.sendall(data)
                if fault == "duplicate":
                    _in_thread(self._send_again, bytes(kept))
        _end(source)
        _end(to)

    def _next_fault(self) -> tuple[Fault | None, float]:
        """Returns a fault, or none, and a random part of a whole."""
        with self._lock:
            drawn, amount = self._chance.random(), self._chance.random()
            for fault, likely in self._faults.items():
                drawn -= likely
                if drawn < 0:
                    self.counts[fault] += 1
                    return fault, amount
        return None, amount

    def _send_again(self, requests: bytes) -> None:
        """Sends what a client has sent before, and reads what is answered until it ends."""
        with contextlib.suppress(OSError), self._connect() as server:
            server.settimeout(1.0)
            server.sendall(requests)
            while server.recv(CHUNK_BYTES):
                pass


def _in_thread(work: object, *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()  # type: ignore[arg-type]


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
