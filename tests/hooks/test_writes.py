from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carls_jax import hooks
from carls_jax.bank import Table
from carls_jax.errors import DtypeError, FieldNotFoundError, InvalidInputError, ShapeError

from .conftest import Calls

KEYS = jnp.array([1, 2, -1], jnp.int32)
SCORES = jnp.array([0.5, 0.25, 9.0])


def scores(table: Table, *keys: int) -> list[float]:
    jax.effects_barrier()
    return table.lookup(np.array(keys))["score"].tolist()


def test_update_writes_fields_of_any_dtype_with_their_step(table: Table) -> None:
    neighbors = np.array([[2**40, 3, -1], [4, 5, 6], [0, 0, 0]])

    @jax.jit
    def write(step: jax.Array) -> hooks.Receipt:
        values = {
            "score": SCORES,
            "label": jnp.array([-3, 4, 5], jnp.int8),
            "seen": jnp.array([True, False, True]),
            "neighbors": hooks.split_keys(neighbors),
        }
        return hooks.update(table, KEYS, values, step=step)

    receipt = write(jnp.uint32(12))

    assert (bool(receipt.ok), int(receipt.step)) == (True, 12)
    rows = table.lookup([1, 2])
    assert rows["score"].tolist() == [0.5, 0.25]
    assert rows["label"].tolist() == [-3, 4]
    assert rows["seen"].tolist() == [True, False]
    assert rows["neighbors"].tolist() == [[2**40, 3, -1], [4, 5, 6]]
    assert rows.step["score"].tolist() == [12, 12]
    assert len(table) == 2


def test_push_applies_the_fields_optimizers(table: Table) -> None:
    gradients = {"embedding": jnp.ones((3, 2)), "bias": jnp.array([2.0, 4.0, 6.0])}

    receipt = jax.jit(lambda: hooks.push(table, KEYS, gradients))()

    assert (bool(receipt.ok), int(receipt.step)) == (True, -1)
    assert table.lookup([1, 2])["embedding"].tolist() == [[-0.5, -0.5], [-0.5, -0.5]]
    assert table.lookup([1, 2])["bias"].tolist() == [-1.0, -2.0]


def test_a_write_happens_even_if_nobody_uses_its_receipt(table: Table) -> None:
    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        hooks.update(table, KEYS, {"score": SCORES})
        return x + 1

    step(jnp.float32(1))

    assert scores(table, 1) == [0.5]


def test_a_lookup_that_is_given_a_receipts_step_reads_what_was_written(table: Table) -> None:
    @jax.jit
    def there_and_back(step: jax.Array) -> jax.Array:
        receipt = hooks.update(table, KEYS, {"score": SCORES}, step=step)
        rows = hooks.lookup(table, KEYS, handle=None, fields=("score",), step=receipt.step)
        return rows["score"]

    for step in range(5):
        table.delete([1, 2])
        assert there_and_back(jnp.int32(step)).tolist() == [0.5, 0.25, 0.0]


def test_writes_chained_by_their_steps_happen_in_that_order(table: Table) -> None:
    @jax.jit
    def chain() -> None:
        step = jnp.int32(3)
        for score in range(5):
            step = hooks.update(table, KEYS, {"score": jnp.full(3, float(score))}, step=step).step

    chain()

    assert scores(table, 1, 2) == [4.0, 4.0]


def test_any_batch_shape_is_one_change(table: Table, calls: Calls) -> None:
    keys = jnp.array([[1, 2], [3, -1]], jnp.int32)
    hooks.update(table, keys, {"score": jnp.array([[1.0, 2.0], [3.0, 4.0]])})
    hooks.update(table, jnp.int32(4), {"score": jnp.float32(5)})
    hooks.update(table, jnp.zeros(0, jnp.int32), {"score": jnp.zeros(0)})

    assert calls() == {"update": 2}
    assert scores(table, 1, 2, 3, 4) == [1.0, 2.0, 3.0, 5.0]


def test_vmap_makes_one_change(table: Table, calls: Calls) -> None:
    keys = jnp.array([[1, 2], [3, -1]], jnp.int32)

    def write(k: jax.Array, x: jax.Array) -> hooks.Receipt:
        return hooks.update(table, k, {"score": x}, step=6)

    receipt = jax.jit(jax.vmap(write))(keys, jnp.array([[1.0, 2.0], [3.0, 4.0]]))

    assert calls() == {"update": 1}
    assert (receipt.ok.tolist(), receipt.step.tolist()) == ([True, True], [6, 6])
    assert scores(table, 1, 2, 3) == [1.0, 2.0, 3.0]


def test_vmap_over_steps_makes_one_change_for_each_oldest_first(table: Table, calls: Calls) -> None:
    def write(step: jax.Array) -> hooks.Receipt:
        return hooks.update(table, KEYS, {"score": jnp.full(3, step)}, step=step)

    jax.jit(jax.vmap(write))(jnp.array([8, 6, 7]))

    assert calls() == {"update": 3}
    assert scores(table, 1) == [8.0]


def test_values_are_constants_to_the_gradient(table: Table, calls: Calls) -> None:
    @jax.jit
    @jax.value_and_grad
    def loss(x: jax.Array) -> jax.Array:
        hooks.update(table, KEYS, {"score": x * 2})
        return jnp.sum(x**2)

    _, gradient = loss(SCORES)

    assert calls() == {"update": 1}
    assert gradient.tolist() == [1.0, 0.5, 18.0]
    assert scores(table, 1, 2) == [1.0, 0.5]


def test_a_loop_writes_in_every_turn(table: Table, calls: Calls) -> None:
    def turn(i: jax.Array, x: jax.Array) -> jax.Array:
        hooks.push(table, KEYS, {"bias": jnp.ones(3)})
        return x

    jax.jit(lambda: jax.lax.fori_loop(0, 4, turn, 0))()

    assert calls() == {"push": 4}
    assert table.lookup([1])["bias"].tolist() == [-2.0]


def test_arguments_that_cannot_work_are_named(table: Table, calls: Calls) -> None:
    with pytest.raises(InvalidInputError, match="name at least one of"):
        hooks.update(table, KEYS, {})
    with pytest.raises(FieldNotFoundError, match="no field 'color'"):
        hooks.update(table, KEYS, {"color": SCORES})
    with pytest.raises(ShapeError, match=r"'score' has shape \[2\], expected \[3\]"):
        hooks.update(table, KEYS, {"score": SCORES[:2]})
    with pytest.raises(DtypeError, match="'label' has dtype float32"):
        hooks.update(table, KEYS, {"label": SCORES})
    with pytest.raises(DtypeError, match="split_keys"):
        hooks.update(table, KEYS, {"neighbors": np.zeros((3, 3, 2), np.int64)})
    with pytest.raises(InvalidInputError, match="'score' of table 'nodes' has no optimizer"):
        hooks.push(table, KEYS, {"score": SCORES})
    assert calls() == {}
