from __future__ import annotations

import gc
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carls_jax import errors, hooks
from carls_jax.bank import Bank, LocalBank, Table
from carls_jax.errors import BankClosedError, BankError, CarlsError, NonFiniteError
from carls_jax.hooks import failures

from .conftest import SPEC

KEYS = jnp.array([1, 2], jnp.int32)


@pytest.fixture
def closing() -> Table:
    """A table whose bank the test closes."""
    return LocalBank().table(SPEC)


def train_step(table: Table, handle: jax.Array) -> tuple[jax.Array, jax.Array]:
    def loss(handle: jax.Array) -> jax.Array:
        rows = hooks.lookup(table, KEYS, handle=handle, fields=("embedding",), create=True)
        return jnp.sum((rows["embedding"] - 1.0) ** 2)

    return jax.value_and_grad(loss)(handle)


def test_a_bank_closed_in_the_middle_of_a_loop_stops_it_with_its_own_error(closing: Table) -> None:
    step = hooks.checking(closing.bank)(jax.jit(lambda handle: train_step(closing, handle)))
    handle = hooks.new_handle()
    for _ in range(3):
        step(handle)
    closing.bank.close()

    with pytest.raises(BankClosedError, match=r"hooks\.lookup of table 'nodes'") as caught:
        jax.block_until_ready(step(handle))
    assert isinstance(caught.value.__cause__, BankClosedError)
    assert str(caught.value.__cause__) == "this bank was closed; connect again"


def test_a_bank_closed_inside_a_scan_does_not_hang_it(closing: Table) -> None:
    bank = closing.bank

    def close_at_3(step: np.ndarray) -> np.ndarray:
        if int(step) == 3:
            bank.close()
        return np.asarray(step)

    def turn(handle: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = jax.pure_callback(close_at_3, jax.ShapeDtypeStruct((), jnp.int32), step)
        rows = hooks.lookup(closing, KEYS, handle=None, step=step, create=True)
        return handle, rows.found.all()

    _, found = jax.jit(lambda h: jax.lax.scan(turn, h, jnp.arange(6)))(hooks.new_handle())

    assert found.tolist() == [True, True, True, False, False, False]
    with pytest.raises(BankClosedError, match="3 calls"):
        hooks.check(bank)


def test_what_fails_gives_zeros_not_found_and_a_receipt_that_says_so(closing: Table) -> None:
    closing.update([1, 2], {"score": [1.0, 2.0]})
    read = jax.jit(lambda: hooks.lookup(closing, KEYS, handle=None))
    write = jax.jit(lambda: hooks.update(closing, KEYS, {"score": jnp.ones(2)}, step=4))
    read(), write()
    closing.bank.close()

    rows, receipt = read(), write()

    assert rows["score"].tolist() == [0.0, 0.0]
    assert rows.found.tolist() == [False, False]
    assert (bool(receipt.ok), int(receipt.step)) == (False, 4)


def test_an_error_that_nobody_asked_for_is_raised_by_the_next_hook(closing: Table) -> None:
    step = jax.jit(lambda: hooks.lookup(closing, KEYS, handle=None))
    step()
    closing.bank.close()
    step()

    with pytest.raises(BankClosedError):
        jax.jit(lambda k: hooks.lookup(closing, k, handle=None))(KEYS)


def test_an_error_is_raised_once_and_the_first_comes_first(closing: Table) -> None:
    bad = jax.jit(lambda: hooks.update(closing, KEYS, {"score": jnp.full(2, jnp.nan)}))
    good = jax.jit(lambda: hooks.lookup(closing, KEYS, handle=None))
    good(), bad()
    closing.bank.close()
    good()

    with pytest.raises(NonFiniteError, match=r"hooks\.update of table 'nodes' .*2 calls"):
        hooks.check(closing.bank)
    hooks.check(closing.bank)


def test_a_check_of_one_bank_leaves_others_alone(closing: Table, bank: Bank) -> None:
    step = jax.jit(lambda: hooks.lookup(closing, KEYS, handle=None))
    step()
    closing.bank.close()
    step()

    hooks.check(bank)
    with pytest.raises(BankClosedError):
        hooks.check(closing.bank)


def test_checking_raises_before_its_block_what_failed_earlier(closing: Table) -> None:
    failures.keep(closing.bank, hook="hooks.push", error=BankClosedError("closed"))
    entered = False

    with pytest.raises(BankClosedError), hooks.checking(closing.bank):
        entered = True
    assert not entered


def test_the_first_failure_is_logged(closing: Table, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="carls_jax.hooks.failures"):
        for _ in range(3):
            failures.keep(closing.bank, hook="hooks.push", error=BankClosedError("closed"))

    assert len(caplog.records) == 1
    assert "hooks.check(bank)" in caplog.text
    assert "BankClosedError: closed" in caplog.text


def test_an_error_of_another_class_becomes_a_bank_error(bank: Bank) -> None:
    cause = OSError("broken pipe")
    failures.keep(bank, hook="hooks.push", error=cause)

    with pytest.raises(BankError, match="broken pipe") as caught:
        hooks.check(bank)
    assert caught.value.__cause__ is cause


def test_every_error_of_ours_keeps_its_class(bank: Bank) -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, CarlsError)
    ]
    assert len(kinds) > 20
    for kind in kinds:
        failures.keep(bank, hook="hooks.push", error=kind("why"))
        with pytest.raises(CarlsError, match="why") as caught:
            hooks.check(bank)
        assert type(caught.value) is kind


def test_kept_errors_do_not_keep_a_bank() -> None:
    bank = LocalBank()
    failures.keep(bank, hook="hooks.push", error=BankClosedError("closed"))
    gone = weakref.ref(bank)

    del bank
    gc.collect()

    assert gone() is None
