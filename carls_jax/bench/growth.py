"""How long lookups pause while a table grows, beside one at rest and one that is overwritten."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from carls_jax.bank import Field, Table, connect
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import Milliseconds, lasting, until
from carls_jax.bench.machine import free_bytes
from carls_jax.bench.report import Report
from carls_jax.bench.rows import TABLE, VALUE, draws, random_rows, table_of
from carls_jax.bench.worker import Worker, worker

AT_REST = "at rest"
OVERWRITING = "rows are overwritten"
GROWING = "rows are added"

_BLOCK_ROWS = 65_536
# About what a row takes beside its numbers: metadata, key, index.
_ROW_OVERHEAD_BYTES = 64


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the table at first.
      grown_rows: Rows at the end, or fewer where half the machine's free memory has no room.
      width: Numbers in a row, float32.
      lookup_rows: Rows of one lookup.
      num_rounds: Parts in which the table grows.
      round_s: Seconds of rest before each part.
    """

    num_rows: int = 1_000_000
    grown_rows: int = 10_000_000
    width: int = 16
    lookup_rows: int = 256
    num_rounds: int = 8
    round_s: float = 1.0


QUICK = Scale(num_rows=2000, grown_rows=4000, num_rounds=2, round_s=0.1)


def run(scale: Scale) -> Report:
    """Measures lookups of the first rows, while another client's writes take turns with rest."""
    room = free_bytes() // 2 // (4 * scale.width + _ROW_OVERHEAD_BYTES)
    part = max(min(scale.grown_rows, room) - scale.num_rows, 0) // scale.num_rounds
    report = Report(
        "growth",
        f"How long does a lookup of {scale.lookup_rows:,} rows of {scale.width} float32 take while "
        f"another client lets the table grow from {scale.num_rows:,} to "
        f"{scale.num_rows + scale.num_rounds * part:,} rows?",
        notes=["One client looks up without a break; the other writes 65,536 rows with each call."],
    )
    rows = random_rows(scale.num_rows, scale.width)
    spec = table_of(Field((scale.width,)))
    with ExitStack() as held:
        address = held.enter_context(bank_server()).address
        table = held.enter_context(loaded(address, spec, {VALUE: rows}))
        writer = held.enter_context(worker(_writer, address, scale.width))
        took, rates = _take_turns(scale, table, writer, part=part)
    report.add("lookup", {what: np.concatenate(parts) for what, parts in took.items()})
    report.add("writes", {what: np.array(one) for what, one in rates.items()}, unit="rows/s")
    return report


def _take_turns(
    scale: Scale, table: Table, writer: Worker, *, part: int
) -> tuple[dict[str, list[Milliseconds]], dict[str, list[float]]]:
    """Measures lookups, each round at rest, beside overwriting, and beside `part` new rows.

    Returns the times of the lookups, and the rates at which rows were written beside them.
    """
    draw = draws(scale.num_rows, scale.lookup_rows)

    def look_up(number: int) -> None:
        table.lookup(draw(number))

    took: dict[str, list[Milliseconds]] = {AT_REST: [], OVERWRITING: [], GROWING: []}
    rates: dict[str, list[float]] = {OVERWRITING: [], GROWING: []}
    until(lasting(scale.round_s), look_up)  # warms up
    for number in range(scale.num_rounds):
        took[AT_REST].append(until(lasting(scale.round_s), look_up))
        for what, first, num_rows in (
            (OVERWRITING, 0, scale.num_rows // 2),
            (GROWING, scale.num_rows + number * part, part),
        ):
            writer.begin(first, num_rows)
            took[what].append(until(writer.is_done, look_up))
            rates[what].append(writer.result())
    return took, rates


def _writer(address: str, width: int) -> Callable[[int, int], float]:
    """Connects, and returns what writes so many rows from a first key on and tells the rate."""
    table = connect(address).table(TABLE)
    values = random_rows(_BLOCK_ROWS, width)

    def write(first: int, num_rows: int) -> float:
        begun = time.perf_counter()
        for start in range(first, first + num_rows, _BLOCK_ROWS):
            keys = np.arange(start, min(start + _BLOCK_ROWS, first + num_rows))
            table.update(keys, {VALUE: values[: keys.size]})
        return num_rows / (time.perf_counter() - begun)

    return write
