"""A row's update does not depend, bit for bit, on the batch that its gradient came in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.optimizers import BLOCK_BYTES, RowOptimizer, optimizer, row_optimizer
from carls_jax.bank.schedules import schedule

RATE = schedule("linear", init_value=0.3, end_value=0.1, transition_steps=5)
SPECS = [
    optimizer(name, learning_rate=RATE, **clips)
    for name in KERNELS
    for clips in ({}, {"clip": 0.7}, {"clip_row_norm": 1.3}, {"clip": 1.5, "clip_row_norm": 2.0})
] + [
    optimizer("momentum", learning_rate=0.1, nesterov=True),
    optimizer("rmsprop", learning_rate=0.1, eps_in_sqrt=False),
    optimizer("adam", learning_rate=0.1, eps_root=1e-6),
]


class Rows:
    """Holds n rows, some of them with a past, and applies pushes to parts of them."""

    def __init__(self, rows: RowOptimizer, num_rows: int, shape: tuple[int, ...], seed: int):
        generator = np.random.default_rng(seed)
        self.rows = rows
        self.values = generator.normal(size=(num_rows, *shape)).astype(rows.dtype)
        self.gradients = generator.normal(size=(num_rows, *shape)).astype(rows.dtype)
        self.state = {}
        for name, column in rows.state_fields.items():
            past = 10 * generator.random(size=(num_rows, *column.shape))
            self.state[name] = past.astype(column.dtype)

    def push(self, chosen: np.ndarray, *, num_padding: int = 0) -> None:
        """Gathers the chosen rows, with zero rows behind them, updates and scatters."""

        def gathered(column):
            return np.concatenate(
                [column[chosen], np.zeros_like(column, shape=(num_padding, *column.shape[1:]))]
            )

        values, gradients = gathered(self.values), gathered(self.gradients)
        state = {name: gathered(column) for name, column in self.state.items()}
        self.rows.update(values, gradients, state, step=2)
        self.values[chosen] = values[: len(chosen)]
        for name, column in self.state.items():
            column[chosen] = state[name][: len(chosen)]

    def check_equal(self, other: Rows) -> None:
        np.testing.assert_array_equal(self.values, other.values, strict=True)
        for name, column in self.state.items():
            np.testing.assert_array_equal(column, other.state[name], strict=True)


@settings(max_examples=200)
@given(
    spec=st.sampled_from(SPECS),
    shape=st.sampled_from([(), (1,), (3,), (17,), (4, 4), (200,)]),
    dtype=st.sampled_from(["float32", "float64"]),
    num_rows=st.integers(1, 40),
    data=st.data(),
)
def test_any_split_padding_or_order_of_a_batch_gives_the_same_rows(
    spec, shape, dtype, num_rows, data
):
    rows, seed = row_optimizer(spec, shape, dtype), data.draw(st.integers(0, 999))
    alone, together, in_parts = (Rows(rows, num_rows, shape, seed) for _ in range(3))
    for row in range(num_rows):
        alone.push(np.array([row]))
    together.push(np.arange(num_rows), num_padding=data.draw(st.integers(0, 9)))
    order = np.array(data.draw(st.permutations(range(num_rows))))
    for part in np.split(order, sorted(data.draw(st.lists(st.integers(0, num_rows), max_size=3)))):
        in_parts.push(part)
    together.check_equal(alone)
    in_parts.check_equal(alone)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_of_one_batch_that_fill_several_blocks_come_out_as_they_do_alone(spec):
    shape = (2000,)
    rows = row_optimizer(spec, shape, "float32")
    num_rows = 2 * BLOCK_BYTES // (4 * 2000) + 1
    alone, together = (Rows(rows, num_rows, shape, seed=0) for _ in range(2))
    for row in range(num_rows):
        alone.push(np.array([row]))
    together.push(np.arange(num_rows))
    together.check_equal(alone)
