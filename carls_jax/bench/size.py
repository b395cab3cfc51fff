"""How much longer a lookup takes in a larger table, beside NumPy's own gather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carls_jax.bank import Field, Table
from carls_jax.bench.banks import UNIX, bank_server, loaded
from carls_jax.bench.harness import Work, in_turns
from carls_jax.bench.report import Report
from carls_jax.bench.rows import VALUE, Rows, draws, random_rows, table_of

LIMIT = "np.take"


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      sizes: Rows of the tables.
      width: Numbers in a row, float32.
      lookup_rows: Rows of one lookup.
      budget_s: Seconds of measuring for each of the tables.
    """

    sizes: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    width: int = 64
    lookup_rows: int = 8192
    budget_s: float = 5.0


QUICK = Scale(sizes=(1000, 2000), lookup_rows=64, budget_s=0.1)


def run(scale: Scale) -> Report:
    """Measures lookups of random keys that are all there, in tables of several sizes."""
    report = Report(
        "size",
        f"How does the time of a lookup of {scale.lookup_rows:,} rows of {scale.width} float32 "
        "grow with the table?",
        notes=["Each table was read whole before, so its memory is mapped."],
    )
    for num_rows in scale.sizes:
        rows = random_rows(num_rows, scale.width)
        with (
            bank_server() as server,
            loaded(server.address, table_of(Field((scale.width,))), {VALUE: rows}) as table,
        ):
            for start in range(0, num_rows, scale.lookup_rows):
                table.lookup(np.arange(start, min(start + scale.lookup_rows, num_rows)))
            report.add(
                f"of {num_rows:,}",
                in_turns(_works(scale, rows, table), budget_s=scale.budget_s),
            )
    return report


def _works(scale: Scale, rows: Rows, table: Table) -> dict[str, Work]:
    """Returns what reads the rows of a round's keys, by contestant."""
    draw = draws(len(rows), scale.lookup_rows)
    out = np.empty((scale.lookup_rows, scale.width), np.float32)
    return {
        LIMIT: lambda number: np.take(rows, draw(number), axis=0, out=out, mode="clip"),
        UNIX: lambda number: table.lookup(draw(number), metadata=())[VALUE],
    }
