"""How much memory a row takes in the bank's server, beside its bare numbers and Redis.

And how much more the server takes while it writes a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from carls_jax.bank import Field, Table, connect
from carls_jax.bank.optimizers import optimizer
from carls_jax.bench import redis_peer
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import until
from carls_jax.bench.machine import resident_bytes
from carls_jax.bench.report import Report
from carls_jax.bench.rows import VALUE, Keys, Rows, draws, random_rows, table_of

LIMIT = "the numbers alone"
SERVER = "bank server"
UNCHANGED = "no row changes"
CHANGING = "rows change all the time"

_CHANGED_ROWS = 8192
_LOOK_EVERY_S = 0.002


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows that are added to a server that has some already.
      num_warm_rows: Rows that it has: its buffers are as large then as they will be.
      width: Numbers in a row, float32.
    """

    num_rows: int = 1_000_000
    num_warm_rows: int = 100_000
    width: int = 128


QUICK = Scale(num_rows=5000, num_warm_rows=1000)


def run(scale: Scale) -> Report:
    """Measures how much the resident memory of a server grows, for each row that it gets."""
    report = Report(
        "memory",
        f"How much memory does a row of {scale.width} float32 take, of {scale.num_rows:,}?",
        notes=[
            "Growth of the server's resident memory over the rows added; it was warm before.",
            "AdaGrad keeps one more number for each; Redis gets them in the row's value.",
            "Of a snapshot: the most that the server took, without optimizer, above what it took "
            f"before its first snapshot; {CHANGING}: another client writes {_CHANGED_ROWS:,} with "
            "each call, without a break.",
        ],
    )
    adagrad = Field((scale.width,), optimizer=optimizer("adagrad", learning_rate=0.1))
    fields = {"without optimizer": Field((scale.width,)), "with AdaGrad": adagrad}
    for columns, (work, field) in enumerate(fields.items(), start=1):
        took = {LIMIT: 4.0 * columns * scale.width, SERVER: _in_bank(scale, field)}
        with redis_peer.redis_peer(width=columns * scale.width) as redis:
            if redis:
                took[redis_peer.NAME] = _per_row(
                    scale, redis.pid, redis.load, width=columns * scale.width
                )
            elif redis_peer.MISSING not in report.notes:
                report.notes.append(redis_peer.MISSING)
        report.add(work, took, unit="bytes")
    peaks = {UNCHANGED: _peak(scale), CHANGING: _peak(scale, num_changed_rows=_CHANGED_ROWS)}
    report.add("peak of a snapshot", peaks, unit="MB")
    return report


def _in_bank(scale: Scale, field: Field) -> float:
    with bank_server() as server, connect(server.address) as bank:
        table = bank.table(table_of(field))

        def load(keys: Keys, rows: Rows) -> None:
            table.load(keys, {VALUE: rows})

        return _per_row(scale, server.pid, load, width=scale.width)


def _per_row(scale: Scale, pid: int, load: Callable[[Keys, Rows], None], *, width: int) -> float:
    """Returns by how many bytes a process grows for each row that is loaded into it."""
    keys = np.arange(scale.num_warm_rows + scale.num_rows)
    load(keys[: scale.num_warm_rows], random_rows(scale.num_warm_rows, width))
    before = resident_bytes(pid)
    load(keys[scale.num_warm_rows :], random_rows(scale.num_rows, width))
    return (resident_bytes(pid) - before) / scale.num_rows


def _peak(scale: Scale, *, num_changed_rows: int = 0) -> float:
    """Returns how many MB a server takes at most while it writes a snapshot, above those before."""
    rows = random_rows(scale.num_rows, scale.width)
    draw = draws(scale.num_rows, min(num_changed_rows, scale.num_rows) or 1)
    with (
        bank_server() as server,
        loaded(server.address, table_of(Field((scale.width,))), {VALUE: rows}) as table,
        ThreadPoolExecutor(2) as pool,
    ):
        sizes = [resident_bytes(server.pid)]
        writing = pool.submit(table.bank.snapshot, "measured")
        if num_changed_rows:
            pool.submit(until, writing.done, lambda number: _overwrite(table, draw(number), rows))
        until(
            writing.done,
            lambda number: sizes.append(resident_bytes(server.pid)),
            pause_s=_LOOK_EVERY_S,
        )
        writing.result()
    return (max(sizes) - sizes[0]) / 1e6


def _overwrite(table: Table, keys: Keys, rows: Rows) -> None:
    table.update(keys, {VALUE: rows[keys]})
