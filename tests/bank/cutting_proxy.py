"""A proxy between clients and a server, which can keep answers back and cut connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class CuttingProxy:
    """Carries bytes between a socket of its own and a server's, until the end of a `with` block.

    Attributes:
      address: Where clients connect.
      num_connections: Connections that were made so far.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.address = f"unix:{path}"
        self.num_connections = 0
        self._server = server
        self._answers = threading.Event()
        self._answers.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_answers(self) -> None:
        """Lets requests through, and keeps back what the server answers."""
        self._answers.clear()

    def cut(self) -> None:
        """Ends all connections, with what was kept back; answers of later ones go through."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _end(one)
        self._answers.set()

    def let_answers_through(self) -> None:
        """Ends `hold_answers`."""
        self._answers.set()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        _end(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._server))
            except OSError:
                client.close()
                continue
            with self._lock:
                self.num_connections += 1
                self._sockets |= {client, server}
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_answer:
                    self._answers.wait()
                with self._lock:
                    if source not in self._sockets:  # it was cut while its answers were kept back
                        return
                to.sendall(data)
        _end(source)
        _end(to)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
