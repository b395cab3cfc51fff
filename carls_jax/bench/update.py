"""How long it takes to overwrite rows in each kind of bank, beside NumPy and Redis."""

from __future__ import annotations

import numpy as np

from carls_jax.bank import Field, Table
from carls_jax.bench import redis_peer
from carls_jax.bench.harness import Work, in_turns
from carls_jax.bench.report import Report
from carls_jax.bench.row_calls import QUICK, Contestants, Scale, check_agree, contestants
from carls_jax.bench.rows import VALUE, Draw, Rows, draws

__all__ = ["QUICK", "Scale", "run"]

LIMIT = "NumPy"


def run(scale: Scale) -> Report:
    """Measures updates of rows that are there, one key in ten repeated."""
    report = Report(
        "update",
        f"How long does it take to overwrite random rows of {scale.in_words}?",
        notes=[
            "NumPy: `rows[keys] = values` in one process.",
            "Redis: one MSET.",
            "The banks also check the values and keep version, step, time and author of each row.",
        ],
    )
    field = Field((scale.width,))
    with contestants(scale, field, report, redis_width=scale.width) as compared:
        if compared.redis:
            compared.redis.load(np.arange(scale.num_rows), compared.rows)
        rng = np.random.default_rng(1)
        for num_keys in scale.batches:
            draw = draws(scale.num_rows, num_keys, repeat_one_in=10)
            values = rng.standard_normal((num_keys, scale.width), np.float32)
            works = _works(compared, draw, values)
            report.add(f"{num_keys:,} rows", in_turns(works, budget_s=scale.budget_s))
            check_agree(compared, draw(0))
    return report


def _works(compared: Contestants, draw: Draw, values: Rows) -> dict[str, Work]:
    """Returns what overwrites the rows of a round's keys, by contestant."""
    redis = compared.redis

    def assign(number: int) -> None:
        compared.rows[draw(number)] = values

    works: dict[str, Work] = {LIMIT: assign}
    works |= {kind: _update(table, draw, values) for kind, table in compared.tables.items()}
    if redis:
        works[redis_peer.NAME] = lambda number: redis.set_rows(draw(number), values)
    return works


def _update(table: Table, draw: Draw, values: Rows) -> Work:
    return lambda number: table.update(draw(number), {VALUE: values}, step=number)
