"""How many rows one server gives to several client processes at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from carls_jax.bank import Field, connect
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import lasting, until
from carls_jax.bench.report import Report
from carls_jax.bench.rows import TABLE, VALUE, draws, random_rows, table_of
from carls_jax.bench.worker import worker


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the table.
      width: Numbers in a row, float32.
      lookup_rows: Rows of one lookup.
      num_clients: Client processes that look up at once.
      num_rounds: How often each number of clients is measured.
      round_s: Seconds of each measurement.
    """

    num_rows: int = 1_000_000
    width: int = 128
    lookup_rows: int = 1024
    num_clients: tuple[int, ...] = (1, 2, 4)
    num_rounds: int = 7
    round_s: float = 1.0


QUICK = Scale(num_rows=2000, num_clients=(1, 2), num_rounds=2, round_s=0.1)


def run(scale: Scale) -> Report:
    """Measures the throughput of all clients together, numbers of clients taking turns."""
    report = Report(
        "concurrency",
        f"How many rows do clients get each second by lookups of {scale.lookup_rows:,} rows, of "
        f"{scale.num_rows:,} × {scale.width} float32, from one server on a unix socket?",
    )
    rows = random_rows(scale.num_rows, scale.width)
    spec = table_of(Field((scale.width,)))
    with ExitStack() as held:
        address = held.enter_context(bank_server()).address
        held.enter_context(loaded(address, spec, {VALUE: rows}))
        clients = [
            held.enter_context(worker(_client, address, scale, seed))
            for seed in range(max(scale.num_clients))
        ]
        rates = defaultdict(list)
        for number in range(scale.num_rounds + 1):
            for count in scale.num_clients:
                for client in clients[:count]:
                    client.begin(scale.round_s)
                rate = sum(client.result() for client in clients[:count])
                if number:  # the first round warms up
                    rates[f"{count} at once"].append(rate)
    measured = {count: np.array(of_count) for count, of_count in rates.items()}
    report.add("clients", measured, unit="rows/s")
    return report


def _client(address: str, scale: Scale, seed: int) -> Callable[[float], float]:
    """Connects, and returns what looks up for some seconds and tells the rows per second."""
    table = connect(address).table(TABLE)
    draw = draws(scale.num_rows, scale.lookup_rows, seed=seed)

    def look_up(number: int) -> None:
        table.lookup(draw(number))

    def measure(seconds: float) -> float:
        took_ms = until(lasting(seconds), look_up)
        return float(1e3 * scale.lookup_rows * took_ms.size / took_ms.sum())

    return measure
