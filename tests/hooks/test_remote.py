"""Hooks on a bank behind a server."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from carls_jax import hooks
from carls_jax.bank import BankServer, LocalBank, connect

from .conftest import SPEC


def test_a_jitted_step_reads_and_pushes_over_a_socket(tmp_path: Path) -> None:
    keys = jnp.array([1, 2, -1], jnp.int32)
    with (
        LocalBank() as served,
        BankServer(served, f"unix:{tmp_path}/bank.sock") as server,
        connect(server.address) as bank,
    ):
        table = bank.table(SPEC)

        @hooks.checking(bank)
        @jax.jit
        def step(handle: jax.Array, number: jax.Array) -> jax.Array:
            def loss(handle: jax.Array) -> jax.Array:
                rows = hooks.lookup(table, keys, handle=handle, step=number, create=True)
                return jnp.sum(rows["bias"] - 2.0 * rows["embedding"][:, 0])

            return jax.grad(loss)(handle)

        for number in range(3):
            step(hooks.new_handle(), jnp.int32(number))
        jax.effects_barrier()

        rows = table.lookup([1, 2])
        assert rows["bias"].tolist() == [-1.5, -1.5]
        assert rows["embedding"].tolist() == [[3.0, 0.0], [3.0, 0.0]]
        assert rows.step["bias"].tolist() == [2, 2]
