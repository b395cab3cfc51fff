"""A row's update does not depend, bit for bit, on the batch that its gradient came in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.optimizers import OptimizerSpec, optimizer
from carls_jax.bank.schedules import schedule
from carls_jax.bank.table_shard import SLICE_BYTES
from tests.bank.pushed_rows import PushedRows

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


class Rows(PushedRows):
    """Holds n rows, some of them with a past, and a gradient for each."""

    def __init__(
        self, spec: OptimizerSpec, num_rows: int, shape: tuple[int, ...], dtype: str, seed: int
    ) -> None:
        generator = np.random.default_rng(seed)
        super().__init__(spec, generator.normal(size=(num_rows, *shape)).astype(dtype))
        self.gradients = generator.normal(size=(num_rows, *shape)).astype(dtype)
        self.put_state(
            {name: 10 * generator.random(size=one.shape) for name, one in self.state.items()}
        )

    def push_to(self, chosen: NDArray[np.int64], *, num_padding: int = 0) -> None:
        """Pushes to the chosen rows, with padding behind them."""
        keys = np.concatenate([chosen, np.full(num_padding, -1)])
        padding = np.zeros((num_padding, *self.gradients.shape[1:]))
        self.push(np.concatenate([self.gradients[chosen], padding]), keys=keys, step=2)

    def check_equal(self, other: Rows) -> None:
        np.testing.assert_array_equal(self.values, other.values, strict=True)
        for name, column in self.state.items():
            np.testing.assert_array_equal(column, other.state[name], strict=True)


@settings(max_examples=200, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    shape=st.sampled_from([(), (1,), (3,), (17,), (4, 4), (200,)]),
    dtype=st.sampled_from(["float32", "float64"]),
    num_rows=st.integers(1, 40),
    data=st.data(),
)
def test_any_split_padding_or_order_of_a_batch_gives_the_same_rows(
    spec: OptimizerSpec, shape: tuple[int, ...], dtype: str, num_rows: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 999))
    alone, together, in_parts = (Rows(spec, num_rows, shape, dtype, seed) for _ in range(3))
    for row in range(num_rows):
        alone.push_to(np.array([row]))
    together.push_to(np.arange(num_rows), num_padding=data.draw(st.integers(0, 9)))
    order = np.array(data.draw(st.permutations(range(num_rows))))
    for part in np.split(order, sorted(data.draw(st.lists(st.integers(0, num_rows), max_size=3)))):
        if part.size:
            in_parts.push_to(part)
    together.check_equal(alone)
    in_parts.check_equal(alone)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_of_one_batch_that_fill_several_slices_come_out_as_they_do_alone(
    spec: OptimizerSpec,
) -> None:
    width = 20_000
    num_rows = 2 * SLICE_BYTES // (4 * width) + 1
    alone, together = (Rows(spec, num_rows, (width,), "float32", seed=0) for _ in range(2))
    for row in range(num_rows):
        alone.push_to(np.array([row]))
    together.push_to(np.arange(num_rows))
    together.check_equal(alone)
