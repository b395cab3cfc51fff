"""Hooks on a bank behind a server, which may go away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from carls_jax import hooks
from carls_jax.bank import Bank, BankServer, LocalBank, connect
from carls_jax.errors import BankUnavailableError
from carls_jax.training import WhenAway, outlast

from .conftest import SPEC

DEADLINE_S = 60.0


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


class Step:
    """Is a training step that adds 1 to the biases of rows 1 and 2, and tells what they were."""

    def __init__(self, bank: Bank) -> None:
        table = bank.table(SPEC)
        keys = jnp.array([1, 2], jnp.int32)

        @jax.jit
        def step(handle: jax.Array, number: jax.Array) -> tuple[hooks.Rows, jax.Array]:
            def loss(handle: jax.Array) -> tuple[jax.Array, hooks.Rows]:
                rows = hooks.lookup(table, keys, handle=handle, step=number, create=True)
                return -2.0 * jnp.sum(rows["bias"]), rows

            gradient, rows = jax.grad(loss, has_aux=True)(handle)
            return rows, gradient

        self._step = step

    def __call__(self, number: int) -> hooks.Rows:
        rows, _ = self._step(hooks.new_handle(), jnp.int32(number))
        jax.effects_barrier()
        return rows


@contextmanager
def served(held: LocalBank, policy: str, address: str) -> Iterator[tuple[Bank, BankServer]]:
    """Gives a client with a policy, and the server, whose rows were written once."""
    server = BankServer(held, address)
    with connect(address, timeout_s=0.6) as bank:
        bank.wait_ready(DEADLINE_S)
        outlasting = outlast(bank, WhenAway(policy))
        yield outlasting, server
        outlasting.close()


def test_hooks_go_on_with_the_rows_seen_last_and_lose_no_push(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/bank.sock"
    with LocalBank() as held, served(held, "last_seen", address) as (bank, server):
        held.table(SPEC)
        step = Step(bank)
        assert step(0)["bias"].tolist() == [0.0, 0.0]
        assert step(1)["bias"].tolist() == [1.0, 1.0]
        server.stop(0)
        for number in (2, 3, 4):
            rows = step(number)
            assert rows.found.all()
            assert rows["bias"].tolist() == [1.0, 1.0]
            assert rows.step["bias"].tolist() == [0, 0]
        hooks.check(bank)
        with BankServer(held, address):
            bank.settle(be_back=True)
            rows = step(5)
            assert rows["bias"].tolist() == [5.0, 5.0]
            assert rows.step["bias"].tolist() == [4, 4]
        hooks.check(bank)


def test_hooks_wait_for_a_bank_that_is_away(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/bank.sock"
    with LocalBank() as held, served(held, "wait", address) as (bank, server):
        held.table(SPEC)
        step = Step(bank)
        step(0)
        server.stop(0)
        is_away, logger = threading.Event(), logging.getLogger("carls_jax.training.away.absence")
        note = lambda record: is_away.set() or True  # noqa: E731
        logger.addFilter(note)
        with ThreadPoolExecutor(1) as threads:
            stepped = threads.submit(step, 1)
            assert is_away.wait(DEADLINE_S)
            with BankServer(held, address):
                rows = stepped.result(DEADLINE_S)
                assert bank.table(SPEC).lookup([1, 2])["bias"].tolist() == [2.0, 2.0]
        logger.removeFilter(note)
        assert rows["bias"].tolist() == [1.0, 1.0]
        hooks.check(bank)


def test_hooks_fail_if_they_shall(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/bank.sock"
    with LocalBank() as held, served(held, "fail", address) as (bank, server):
        held.table(SPEC)
        step = Step(bank)
        step(0)
        server.stop(0)
        assert not step(1).found.any()
        with pytest.raises(BankUnavailableError, match="lookup of table 'nodes' failed"):
            hooks.check(bank)
