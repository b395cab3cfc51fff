"""How long calls pause while a snapshot is written, and how fast it is beside the bare disk."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carls_jax.bank import Field, Table
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import lasting, milliseconds, until
from carls_jax.bench.report import Report
from carls_jax.bench.rows import VALUE, Rows, draws, random_rows, table_of

LOOKUP = "lookup"
UPDATE = "update"
AT_REST = "at rest"
WRITING = "while a snapshot is written"
RAW = "one file"
SNAPSHOT = "snapshot"

UPDATE_EVERY_S = 0.01

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the table.
      width: Numbers in a row, float32.
      lookup_rows: Rows of one lookup.
      update_rows: Rows of one update.
      num_rounds: How many snapshots are written.
      round_s: Seconds of rest before each of them.
    """

    num_rows: int = 1_000_000
    width: int = 128
    lookup_rows: int = 1024
    update_rows: int = 256
    num_rounds: int = 5
    round_s: float = 2.0


QUICK = Scale(num_rows=2000, num_rounds=2, round_s=0.1)


def run(scale: Scale) -> Report:
    """Measures lookups and updates at rest and while a snapshot is written, in turns."""
    report = Report(
        "snapshot",
        f"How long do lookups of {scale.lookup_rows:,} rows and updates of "
        f"{scale.update_rows:,} take while a snapshot of {scale.num_rows:,} × {scale.width} "
        "float32 is written, and how fast is it written?",
        notes=[
            f"One thread looks up without a break, another updates every {UPDATE_EVERY_S} s.",
            "Rates count the rows' numbers alone; the file has as many bytes, is written in "
            "blocks of 64 MiB and ends with fsync.",
        ],
    )
    rows = random_rows(scale.num_rows, scale.width)
    spec = table_of(Field((scale.width,)))
    with ExitStack() as held:
        server = held.enter_context(bank_server())
        table = held.enter_context(loaded(server.address, spec, {VALUE: rows}))
        calls = _Calls(table, scale)
        calls.during(lasting(scale.round_s), AT_REST)  # warms up
        calls.took.clear()
        rates: dict[str, list[float]] = {RAW: [], SNAPSHOT: []}
        pool = held.enter_context(ThreadPoolExecutor(1))
        for _ in range(scale.num_rounds):
            calls.during(lasting(scale.round_s), AT_REST)
            writing = pool.submit(_rate, rows, lambda: table.bank.snapshot("measured"))
            calls.during(writing.done, WRITING)
            rates[SNAPSHOT].append(writing.result())
            rates[RAW].append(_rate(rows, lambda: _write_file(server.workdir / "raw", rows)))
    for kind in (LOOKUP, UPDATE):
        report.add(kind, {when: np.array(calls.took[kind, when]) for when in (AT_REST, WRITING)})
    report.add("rate", {what: np.array(one) for what, one in rates.items()}, unit="MB/s")
    return report


class _Calls:
    """Looks up without a break and updates now and then; not for several threads.

    Attributes:
      took: How long calls took, in ms, by kind and by what went on meanwhile.
    """

    def __init__(self, table: Table, scale: Scale) -> None:
        self.took: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._table = table
        self._draw_lookup = draws(scale.num_rows, scale.lookup_rows)
        self._draw_update = draws(scale.num_rows, scale.update_rows)
        self._values = {VALUE: random_rows(scale.update_rows, scale.width)}

    def during(self, is_over: Callable[[], bool], when: str) -> None:
        """Calls until something is over."""
        with ThreadPoolExecutor(1) as pool:
            updating = pool.submit(until, is_over, self._update, pause_s=UPDATE_EVERY_S)
            self.took[LOOKUP, when] += until(is_over, self._look_up).tolist()
            self.took[UPDATE, when] += updating.result().tolist()

    def _look_up(self, number: int) -> None:
        self._table.lookup(self._draw_lookup(number))

    def _update(self, number: int) -> None:
        self._table.update(self._draw_update(number), self._values)


def _rate(rows: Rows, write: Callable[[], object]) -> float:
    """Returns how many MB of rows are written in a second."""
    return rows.nbytes / 1e3 / milliseconds(lambda number: write())


def _write_file(path: Path, rows: Rows) -> None:
    """Writes the rows to a file and makes sure that the disk has them; removes it."""
    data = rows.reshape(-1).view(np.uint8)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), _BLOCK_BYTES):
            file.write(data[start : start + _BLOCK_BYTES].data)
        os.fsync(file.fileno())
    path.unlink()
