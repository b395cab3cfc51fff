"""Redis as a peer: a server of its own on a unix socket, and the leanest client hiredis allows.

Redis is no part of carls_jax: where `redis-server` or hiredis (`pip install carls-jax[bench]`) is
not there, benchmarks leave it out and say so.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.errors import LaunchError

NAME = "Redis, unix socket"
MISSING = "Redis was left out: redis-server or hiredis is not installed."

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 30.0
_RECEIVE_BYTES = 1 << 20
_BLOCK_ROWS = 8192


class RedisPeer:
    """Keeps float32 rows in Redis, each as one value under its key. Not for several threads.

    It writes to the socket itself: redis-py, which does the same through hiredis, is never faster.

    Attributes:
      pid: Process of the server.
    """

    def __init__(self, connection: socket.socket, *, width: int, pid: int) -> None:
        import hiredis

        self.pid = pid
        self._pack = hiredis.pack_command
        self._reader = hiredis.Reader()
        self._socket = connection
        self._width = width

    def get_rows(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the rows `[n, width]` of keys that are all there."""
        values = self._call("MGET", *keys.tolist())
        return np.frombuffer(b"".join(values), np.float32).reshape(keys.size, self._width)

    def set_rows(self, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Writes the rows `[n, width]` of keys."""
        raw, size = rows.tobytes(), rows.itemsize * self._width
        command: list[Any] = ["MSET"]
        for place, key in enumerate(keys.tolist()):
            command += (key, raw[place * size : (place + 1) * size])
        self._call(*command)

    def load(self, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Writes many rows `[n, width]`, in blocks."""
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            self.set_rows(keys[block], rows[block])

    def _call(self, *command: Any) -> Any:
        self._socket.sendall(self._pack(command))
        # False: the reply is not whole yet.
        while (reply := self._reader.gets()) is False:
            received = self._socket.recv(_RECEIVE_BYTES)
            if not received:
                raise LaunchError("redis-server ended during a call; is there enough memory?")
            self._reader.feed(received)
        if isinstance(reply, Exception):
            raise reply
        return reply


@contextmanager
def redis_peer(*, width: int) -> Iterator[RedisPeer | None]:
    """Runs a Redis server that saves nothing; gives a client of it, or None: not installed."""
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("hiredis") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="carls-redis-") as directory:
        path = f"{directory}/redis.sock"
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                _connect(connection, path)
                yield RedisPeer(connection, width=width, pid=process.pid)
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


def _connect(connection: socket.socket, path: str) -> None:
    """Connects as soon as the server listens."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while connection.connect_ex(path):
        if time.monotonic() > deadline:
            raise LaunchError(f"redis-server does not answer at {path}")
        time.sleep(0.01)
