"""`Worker`: another process that does what it is asked, so that clients share no interpreter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

_STOP_TIMEOUT_S = 30.0


class Worker:
    """Calls a function in another process; made by `worker`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, *args: Any) -> None:
        """Begins a call."""
        self._connection.send(args)

    def is_done(self) -> bool:
        """Tells whether the call that was begun has a result."""
        return self._connection.poll()

    def result(self) -> Any:
        """Waits for the result of the call that was begun; raises EOFError if the process died."""
        return self._connection.recv()


@contextmanager
def worker(make: Callable[..., Callable[..., Any]], *args: Any) -> Iterator[Worker]:
    """Starts a process that calls what `make(*args)` returns there, once for each `begin`.

    The function and its arguments are pickled: `make` is one of a module.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, args), daemon=True)
    process.start()
    there.close()
    try:
        yield Worker(here)
    finally:
        here.close()
        process.join(_STOP_TIMEOUT_S)
        process.kill()


def _serve(connection: Connection, make: Callable[..., Callable[..., Any]], args: Any) -> None:
    function = make(*args)
    while True:
        try:
            asked = connection.recv()
        except EOFError:  # nobody will ask again
            return
        connection.send(function(*asked))
