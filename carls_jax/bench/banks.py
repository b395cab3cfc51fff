"""Bank servers in processes of their own, and banks of every kind that hold the same table."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Table, TableSpec, connect
from carls_jax.bank.incarnation import JournalMode
from carls_jax.launch import securing
from carls_jax.launch.addresses import resolve
from carls_jax.launch.serving import address_name

LOCAL = "LocalBank"
UNIX = "RemoteBank, unix socket"
TCP = "RemoteBank, TCP loopback"

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Server:
    """Is a bank server in another process.

    Attributes:
      address: What clients give to `connect`, with `token_file`.
      pid: Its process.
      workdir: Where its snapshots are.
      token_file: Where its token is; None: it needs none.
    """

    address: str
    pid: int
    workdir: Path
    token_file: str | None = None


@contextmanager
def bank_server(address: str | None = None, *, journal: JournalMode = "off") -> Iterator[Server]:
    """Runs `carls-jax bank` in another process; without `address` on a unix socket."""
    with tempfile.TemporaryDirectory(prefix="carls-bench-") as directory:
        command = [sys.executable, "-m", "carls_jax.cli", "bank", "--workdir", directory]
        command += ["--journal", journal]
        command += ["--address", address] if address else []
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            place = resolve(directory, address_name(0), timeout_s=_START_TIMEOUT_S)
            yield Server(place, process.pid, Path(directory), securing.token_file(directory))
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


@contextmanager
def loaded(
    address: str,
    spec: TableSpec,
    values: Mapping[str, NDArray[Any]],
    *,
    token_file: str | None = None,
) -> Iterator[Table]:
    """Connects to a bank and loads rows 0, 1, … into a table of it."""
    num_rows = len(next(iter(values.values())))
    with connect(address, source="bench", token_file=token_file) as bank:
        bank.wait_ready()
        table = bank.table(spec)
        table.load(np.arange(num_rows), values)
        yield table


@contextmanager
def tables_everywhere(
    spec: TableSpec, values: Mapping[str, NDArray[Any]]
) -> Iterator[dict[str, Table]]:
    """Loads the same rows into a bank of each kind; gives the tables by kind."""
    with ExitStack() as held:
        tcp = held.enter_context(bank_server("127.0.0.1:0"))
        places: dict[str, tuple[str, str | None]] = {
            LOCAL: ("local:", None),
            UNIX: (held.enter_context(bank_server()).address, None),
            TCP: (tcp.address, tcp.token_file),
        }
        yield {
            kind: held.enter_context(loaded(address, spec, values, token_file=token_file))
            for kind, (address, token_file) in places.items()
        }
