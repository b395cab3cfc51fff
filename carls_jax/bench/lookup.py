"""How long a lookup takes through each kind of bank, beside NumPy's own gather and Redis."""

from __future__ import annotations

import numpy as np

from carls_jax.bank import Field, Table
from carls_jax.bench import redis_peer
from carls_jax.bench.harness import Work, in_turns
from carls_jax.bench.report import Report
from carls_jax.bench.row_calls import QUICK, Contestants, Scale, contestants
from carls_jax.bench.rows import VALUE, Draw, Rows, draws

__all__ = ["QUICK", "Scale", "run"]

LIMIT = "np.take"
_BLOCK_ROWS = 8192


def run(scale: Scale) -> Report:
    """Measures lookups of random keys that are all there."""
    report = Report(
        "lookup",
        f"How long does a lookup of random rows take, of {scale.in_words}?",
        notes=[
            "np.take: NumPy's gather in one process, into the same array each time.",
            "Redis: one MGET, and its values joined into one array.",
        ],
    )
    field = Field((scale.width,))
    with contestants(scale, field, report, redis_width=scale.width) as compared:
        if compared.redis:
            compared.redis.load(np.arange(scale.num_rows), compared.rows)
        for table in compared.tables.values():
            _read_all(table, scale.num_rows)
        for num_keys in scale.batches:
            draw = draws(scale.num_rows, num_keys)
            works = _works(compared, draw, num_keys)
            for work in works.values():
                np.testing.assert_array_equal(work(0), compared.rows[draw(0)])
            report.add(f"{num_keys:,} rows", in_turns(works, budget_s=scale.budget_s))
    return report


def _read_all(table: Table, num_rows: int) -> None:
    """Has every page of the rows mapped into this process, as those that `np.take` reads are."""
    for start in range(0, num_rows, _BLOCK_ROWS):
        table.lookup(np.arange(start, min(start + _BLOCK_ROWS, num_rows)), metadata=())


def _works(compared: Contestants, draw: Draw, num_keys: int) -> dict[str, Work]:
    """Returns what reads the rows of a round's keys, by contestant."""
    rows, redis = compared.rows, compared.redis
    out = np.empty((num_keys, rows.shape[1]), np.float32)

    def take(number: int) -> Rows:
        # "clip" spares a buffer, half the time; all keys are there.
        return np.take(rows, draw(number), axis=0, out=out, mode="clip")

    works: dict[str, Work] = {LIMIT: take}
    works |= {kind: _lookup(table, draw) for kind, table in compared.tables.items()}
    if redis:
        works[redis_peer.NAME] = lambda number: redis.get_rows(draw(number))
    return works


def _lookup(table: Table, draw: Draw) -> Work:
    return lambda number: table.lookup(draw(number), metadata=())[VALUE]
