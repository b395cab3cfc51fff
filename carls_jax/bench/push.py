"""How long it takes to apply gradients in each kind of bank, beside NumPy and Redis."""

from __future__ import annotations

import numpy as np

from carls_jax.bank import Field, Table
from carls_jax.bank.optimizers import optimizer
from carls_jax.bench import redis_peer
from carls_jax.bench.harness import Work, in_turns
from carls_jax.bench.redis_peer import RedisPeer
from carls_jax.bench.report import Report
from carls_jax.bench.row_calls import QUICK, Contestants, Scale, check_agree, contestants
from carls_jax.bench.rows import VALUE, Draw, Keys, Rows, draws

__all__ = ["QUICK", "Scale", "run"]

LIMIT = "NumPy"

# The values are optax's own.
_LEARNING_RATE = 0.01
_INITIAL_ACCUMULATOR = 0.1
_EPS = 1e-7


def run(scale: Scale) -> Report:
    """Measures AdaGrad on rows that are there, one key in ten repeated."""
    report = Report(
        "push",
        f"How long does it take to apply gradients by AdaGrad to random rows of {scale.in_words}?",
        notes=[
            "NumPy: the same update in one process, on arrays of rows and accumulators.",
            "Redis: MGET of rows and accumulators, the same update in the client, MSET.",
            "The banks also check the gradients and keep version, step, time and author of each "
            "row.",
        ],
    )
    adagrad = optimizer(
        "adagrad",
        learning_rate=_LEARNING_RATE,
        initial_accumulator_value=_INITIAL_ACCUMULATOR,
        eps=_EPS,
    )
    field = Field((scale.width,), optimizer=adagrad)
    with contestants(scale, field, report, redis_width=2 * scale.width) as compared:
        accumulators = np.full_like(compared.rows, _INITIAL_ACCUMULATOR)
        if compared.redis:
            compared.redis.load(np.arange(scale.num_rows), np.hstack([compared.rows, accumulators]))
        rng = np.random.default_rng(1)
        for num_keys in scale.batches:
            draw = draws(scale.num_rows, num_keys, repeat_one_in=10)
            gradients = rng.standard_normal((num_keys, scale.width), np.float32)
            works = _works(compared, accumulators, draw, gradients)
            report.add(f"{num_keys:,} rows", in_turns(works, budget_s=scale.budget_s))
            check_agree(compared, draw(0))
    return report


def _works(
    compared: Contestants, accumulators: Rows, draw: Draw, gradients: Rows
) -> dict[str, Work]:
    """Returns what pushes to the rows of a round's keys, by contestant."""
    redis = compared.redis

    def push_in_process(number: int) -> None:
        keys, sums = combined(draw(number), gradients)
        moved = adagrad_step(compared.rows[keys], accumulators[keys], sums)
        compared.rows[keys], accumulators[keys] = moved

    works: dict[str, Work] = {LIMIT: push_in_process}
    works |= {kind: _push(table, draw, gradients) for kind, table in compared.tables.items()}
    if redis:
        works[redis_peer.NAME] = lambda number: _push_to_redis(redis, draw(number), gradients)
    return works


def _push(table: Table, draw: Draw, gradients: Rows) -> Work:
    return lambda number: table.push(draw(number), {VALUE: gradients}, step=number)


def _push_to_redis(redis: RedisPeer, keys: Keys, gradients: Rows) -> None:
    keys, sums = combined(keys, gradients)
    rows, accumulators = np.hsplit(redis.get_rows(keys), 2)
    redis.set_rows(keys, np.hstack(adagrad_step(rows, accumulators, sums)))


def combined(keys: Keys, gradients: Rows) -> tuple[Keys, Rows]:
    """Returns each key once, and the sum of its gradients."""
    different, first, places = np.unique(keys, return_index=True, return_inverse=True)
    sums = gradients[first]
    is_rest = np.ones(keys.size, np.bool_)
    is_rest[first] = False
    # `add.at` is slow: the first of each key needs none.
    np.add.at(sums, places[is_rest], gradients[is_rest])
    return different, sums


def adagrad_step(rows: Rows, accumulators: Rows, gradients: Rows) -> tuple[Rows, Rows]:
    """Returns rows and accumulators after one update.

    Source: `optax.adagrad`.
    """
    accumulators = accumulators + gradients * gradients
    return rows - _LEARNING_RATE * gradients / np.sqrt(accumulators + _EPS), accumulators
