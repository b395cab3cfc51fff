"""What it costs to keep every change before it is acknowledged, beside a bank that does not."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carls_jax.bank import Field, connect
from carls_jax.bank.incarnation import JournalMode
from carls_jax.bank.optimizers import optimizer
from carls_jax.bench.banks import Server, bank_server, loaded
from carls_jax.bench.harness import Milliseconds, lasting, until
from carls_jax.bench.machine import resident_bytes
from carls_jax.bench.report import Report, Samples
from carls_jax.bench.rows import TABLE, VALUE, draws, random_rows, table_of
from carls_jax.bench.worker import Worker, worker

DISK = "one file, written and synced"

_LOOK_EVERY_S = 0.05
_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Load:
    """Says who pushes what.

    Attributes:
      num_keys: Rows of one push.
      width: Numbers in a row, float32.
      num_processes: Client processes.
      num_threads: Threads that push, of each of them.
    """

    num_keys: int
    width: int
    num_processes: int
    num_threads: int = 1

    @property
    def in_words(self) -> str:
        """Who pushes what."""
        return f"{self.num_processes * self.num_threads} × {self.num_keys:,} × {self.width}"


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of each table.
      large: Loads for the journal that outlasts the process.
      small: Loads for the journal that outlasts a loss of power.
      num_rounds: How often each load is measured.
      round_s: Seconds of each measurement.
    """

    num_rows: int = 100_000
    large: tuple[Load, ...] = (Load(1024, 128, 1), Load(1024, 128, 4))
    small: tuple[Load, ...] = (Load(256, 64, 4, 16),)
    num_rounds: int = 6
    round_s: float = 10.0


QUICK = Scale(
    num_rows=2000,
    large=(Load(64, 8, 1),),
    small=(Load(64, 8, 1, 2),),
    num_rounds=2,
    round_s=0.1,
)


def run(scale: Scale) -> Report:
    """Measures pushes to servers with and without a journal, and the bare disk, in turns."""
    report = Report(
        "journal",
        "What do pushes with AdaGrad cost by a bank that keeps each before it is acknowledged?",
        notes=[
            "Works are the pushers at once, and rows × width float32 of a push: pushers are "
            f"threads of client processes, the tables have {scale.num_rows:,} rows.",
            f"Pushes are counted in rounds of {scale.round_s:.3g} s that the servers have in "
            "turns, each in a process of its own, on a unix socket.",
            "process: a change outlasts the end of the server's process; fsync: a loss of power.",
            "Bytes: of the records, and of a file to which as many are written at a time, synced "
            f"with each {_FILE_BYTES >> 20} MiB and deleted, for half as long in the same rounds.",
            "Memory and journal: the server's resident memory and the journal's files at the "
            "start, half-way, at the end and at their most, over all rounds of all loads.",
        ],
    )
    _measure(report, scale, scale.large, "process", has_disk=True)
    _measure(report, scale, scale.small, "fsync")
    return report


def _measure(
    report: Report,
    scale: Scale,
    loads: Sequence[Load],
    mode: JournalMode,
    *,
    has_disk: bool = False,
) -> None:
    """Adds what was found of a mode, beside no journal."""
    with ExitStack() as held:
        sides = {name: held.enter_context(_side(scale, name, loads)) for name in ("off", mode)}
        for load in loads:
            rates, took = defaultdict(list), defaultdict(list)
            for number in range(scale.num_rounds):
                names = [*sides, DISK] if has_disk else [*sides]
                for name in np.roll(names, number).tolist():
                    if name == DISK:
                        rates[DISK].append(_disk_rate(sides[mode].server.workdir, load, scale))
                        continue
                    began = time.perf_counter()
                    calls = sides[name].push(load, scale.round_s)
                    rates[name].append(calls.size / (time.perf_counter() - began))
                    took[name].append(calls)
            _add(report, load, mode, {name: np.array(one) for name, one in rates.items()})
            times = {name: np.concatenate(one) for name, one in took.items()}
            report.add(f"time of a push, {load.in_words}", times)
        sides[mode].add_sizes(report, mode)


def _add(report: Report, load: Load, mode: str, rates: dict[str, Samples]) -> None:
    disk = rates.pop(DISK, None)
    report.add(load.in_words, rates, unit="pushes/s")
    if disk is not None:
        megabytes = rates[mode] * _record_bytes(load) / 1e6
        report.add(f"bytes of {load.in_words}", {DISK: disk, mode: megabytes}, unit="MB/s")


def _record_bytes(load: Load) -> int:
    """Returns the bytes of a push: keys and gradients."""
    return load.num_keys * (8 + 4 * load.width)


def _disk_rate(directory: Path, load: Load, scale: Scale) -> float:
    """Returns how many MB a file takes each second, that the disk then has."""
    data = random_rows(1, _record_bytes(load) // 4).data
    is_over, written, began = lasting(scale.round_s / 2), 0, time.perf_counter()
    while not is_over():
        path = directory / "raw"
        with path.open("wb", buffering=0) as file:
            while file.tell() < _FILE_BYTES and not is_over():
                written += file.write(data)
            os.fsync(file.fileno())
        path.unlink()
    return written / 1e6 / (time.perf_counter() - began)


class _Side:
    """Is a server and the clients that push to it; made by `_side`.

    Attributes:
      server: The server.
    """

    def __init__(self, server: Server, clients: dict[Load, list[Worker]]) -> None:
        self.server = server
        self._clients = clients
        self._memory = [resident_bytes(server.pid)]
        self._journal = [_journal_bytes(server)]

    def push(self, load: Load, seconds: float) -> Milliseconds:
        """Has all clients of a load push; returns how long each push took."""
        clients = self._clients[load]
        for client in clients:
            client.begin(seconds)
        while not all(client.is_done() for client in clients):
            self._memory.append(resident_bytes(self.server.pid))
            self._journal.append(_journal_bytes(self.server))
            time.sleep(_LOOK_EVERY_S)
        return np.concatenate([client.result() for client in clients])

    def add_sizes(self, report: Report, mode: str) -> None:
        """Adds how large the server and its journal were."""
        for what, sizes in (("memory", self._memory), ("journal", self._journal)):
            middle = sizes[len(sizes) // 2]
            found = {"start": sizes[0], "middle": middle, "end": sizes[-1], "most": max(sizes)}
            of_what = {when: size / 1e6 for when, size in found.items()}
            report.add(f"{what} of {mode}", of_what, unit="MB")


@contextmanager
def _side(scale: Scale, mode: JournalMode, loads: Sequence[Load]) -> Iterator[_Side]:
    """Runs a server of a mode with a table, and the clients of all loads."""
    with ExitStack() as held:
        server = held.enter_context(bank_server(journal=mode))
        rows = random_rows(scale.num_rows, loads[0].width)
        field = Field((loads[0].width,), optimizer=optimizer("adagrad", learning_rate=0.01))
        held.enter_context(loaded(server.address, table_of(field), {VALUE: rows}))
        clients = {
            load: [
                held.enter_context(worker(_client, server.address, scale.num_rows, load, seed))
                for seed in range(load.num_processes)
            ]
            for load in loads
        }
        side = _Side(server, clients)
        for load in loads:
            side.push(load, scale.round_s / 10)  # warms up
        yield _Side(server, clients)


def _journal_bytes(server: Server) -> int:
    """Returns the bytes of a journal's files, those included that wait to be written over."""
    sizes = 0
    for path in server.workdir.glob("bank/journal/*"):
        try:
            sizes += path.stat().st_size
        except FileNotFoundError:  # it was cut
            continue
    return sizes


def _client(address: str, num_rows: int, load: Load, seed: int) -> Callable[[float], Milliseconds]:
    """Connects, and returns what pushes for some seconds and tells how long each push took."""
    table = connect(address).table(TABLE)
    draw = draws(num_rows, load.num_keys, seed=seed)
    gradients = {VALUE: random_rows(load.num_keys, load.width)}
    pool = ThreadPoolExecutor(load.num_threads)

    def push(number: int) -> None:
        table.push(draw(number), gradients)

    def measure(seconds: float) -> Milliseconds:
        is_over = lasting(seconds)
        took = [pool.submit(until, is_over, push) for _ in range(load.num_threads)]
        return np.concatenate([one.result() for one in took])

    return measure
