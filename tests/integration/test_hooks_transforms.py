"""A push is counted for every pull, whatever JAX makes of a lookup."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carls_jax import hooks
from carls_jax.bank import LocalBank, Table

from .hooks_programs import bank_loss, expected, first_rows, program, spec

KEYS = np.arange(16, dtype=np.int32).reshape(4, 2, 2)

PROGRAMS = [
    "grad",
    "grad scan",
    "grad vmap",
    "grad scan vmap",
    "grad vmap scan",
    "grad scan cond vmap",
    "grad vmap jit scan",
    "scan grad",
    "vmap grad",
    "scan grad vmap",
    "vmap grad scan",
    "vmap scan grad",
    "cond grad",
    "grad remat",
    "grad vmap remat",
    "grad remat scan",
    "grad scan remat",
    "grad scan remat vmap",
    "scan grad remat",
    "grad scan saved vmap",
    "grad saved scan",
]


@pytest.fixture
def table() -> Iterator[Table]:
    with LocalBank() as bank:
        table = bank.table(spec("rows"))
        table.update(KEYS.reshape(-1), {"embedding": first_rows(KEYS)})
        yield table
        hooks.check(bank)


@pytest.mark.parametrize("words", PROGRAMS)
def test_rows_are_pushed_as_often_as_they_are_pulled(table: Table, words: str) -> None:
    run = jax.jit(program(words, bank_loss(table)))

    value, _ = run(hooks.new_handle(), jnp.asarray(KEYS))
    jax.effects_barrier()

    is_repeated = "remat" in words
    counters = table.stats().counters
    assert counters["rows_pushed"] == KEYS.size
    assert counters["rows_looked_up"] == KEYS.size * (2 if is_repeated else 1)
    expected_value, expected_rows = expected(KEYS.size)
    if not is_repeated:  # else JAX may make the first lookup after the pushes
        np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    moved = table.lookup(KEYS.reshape(-1))["embedding"]
    np.testing.assert_allclose(moved, expected_rows, rtol=1e-5, atol=1e-6)


def test_a_cond_under_vmap_runs_both_branches_so_it_pushes_for_both(table: Table) -> None:
    """JAX makes a select of it: those that did not take the branch push zeros."""
    loss = bank_loss(table)

    def odd(handle: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.cond(keys[0] % 4 == 2, lambda: loss(handle, keys), lambda: jnp.float32(0))

    jax.jit(program("grad vmap", odd))(hooks.new_handle(), jnp.asarray(KEYS.reshape(-1, 2)))
    jax.effects_barrier()

    assert table.stats().counters["rows_pushed"] == KEYS.size
    is_odd = KEYS.reshape(-1) % 4 >= 2
    rows = table.lookup(KEYS.reshape(-1))["embedding"]
    np.testing.assert_array_equal(rows[~is_odd], first_rows(KEYS)[~is_odd])
    np.testing.assert_allclose(rows[is_odd], expected(KEYS.size)[1][is_odd], rtol=1e-5, atol=1e-6)


def test_a_gradient_of_a_cond_under_vmap_is_refused_by_jax(table: Table) -> None:
    run = jax.jit(program("vmap grad cond", bank_loss(table)))

    with pytest.raises(NotImplementedError, match="IO effect not supported in vmap-of-cond"):
        run(hooks.new_handle(), jnp.asarray(KEYS))
    assert "push_calls" not in table.stats().counters
