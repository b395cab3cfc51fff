from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carls_jax import hooks
from carls_jax.bank import Field, LocalBank, Rows, Table, TableSpec
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.interface import Applied
from carls_jax.bank.kernels import KERNELS
from carls_jax.bank.optimizers import optimizer
from carls_jax.hooks.bodies import LookupBody, WriteBody

KEYS = jnp.array([1, 2], jnp.int32)


class WatchedBank(LocalBank):
    """Notes the files whose Python code runs while it works."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()

    def apply(self, change: Change) -> Applied:
        return self._watched(super().apply, change)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        return self._watched(super().lookup, request, keys)

    def _watched(self, work: Any, *arguments: Any) -> Any:
        def note(frame: FrameType, event: str, argument: object) -> None:
            self.files.add(frame.f_code.co_filename)

        before = sys.getprofile()
        gc.disable()  # JAX has a callback of its own in every collection
        sys.setprofile(note)
        try:
            return work(*arguments)
        finally:
            sys.setprofile(before)
            gc.enable()


@pytest.mark.parametrize("name", KERNELS)
def test_the_bank_runs_no_jax_inside_a_callback(name: str) -> None:
    jax_files = str(Path(jax.__file__).parent)
    with WatchedBank() as bank:
        kept = optimizer(name, learning_rate=0.1, clip=1.0, clip_row_norm=1.0)
        table = bank.table(TableSpec("nodes", {"z": Field((4,), optimizer=kept)}))

        @jax.jit
        def step(handle: jax.Array) -> jax.Array:
            def loss(handle: jax.Array) -> jax.Array:
                return jnp.sum(hooks.lookup(table, KEYS, handle=handle, create=True)["z"] + 1.0)

            return jax.grad(loss)(handle)

        jax.block_until_ready(step(hooks.new_handle()))
        jax.effects_barrier()
        hooks.check(bank)

        assert any(file.endswith("bank/kernels.py") for file in bank.files)
        assert not [file for file in bank.files if file.startswith(jax_files)]


def test_bodies_for_the_same_question_are_equal(table: Table) -> None:
    def body(**changes: Any) -> LookupBody:
        arguments = {"fields": ("score",), "create": False, "max_age_steps": None, "clock": "main"}
        return LookupBody(table, **(arguments | changes))

    assert body() == body()
    assert hash(body()) == hash(body())
    assert body() != body(create=True)
    assert WriteBody("push", table, ("bias",), "main") == WriteBody(
        "push", table, ("bias",), "main"
    )


def test_a_body_answers_all_rows_of_a_batch_and_reads_each_at_its_own_step(table: Table) -> None:
    table.update([1], {"score": [0.5]}, step=10)
    body = LookupBody(table, ("score",), create=False, max_age_steps=5, clock="main")
    words = np.array([[[1, 0, 12]], [[1, 0, 30]]], np.uint32)

    answer = body(words)

    half, missing = np.float32(0.5).view(np.uint32), 0
    assert answer.tolist() == [[[half, 1, 10]], [[missing, 0, 10]]]


def test_a_step_beyond_int32_arrives_as_the_largest(table: Table) -> None:
    table.update([1], {"score": [0.5]}, step=2**40)

    assert hooks.lookup(table, KEYS, handle=None).step["score"].tolist() == [2**31 - 1, -1]
