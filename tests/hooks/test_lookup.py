from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carls_jax import hooks
from carls_jax.bank import Field, LocalBank, Table, TableSpec
from carls_jax.bank import initializers as init
from carls_jax.bank.optimizers import optimizer
from carls_jax.errors import FieldNotFoundError, InvalidInputError

from .conftest import Calls

KEYS = jnp.array([1, 2, -1], jnp.int32)
WEIGHTS = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def loss(
    handle: jax.Array, weights: jax.Array, table: Table, keys: jax.Array, step: Any = None
) -> jax.Array:
    """Has the gradients `weights` by the rows and, of rows that are zero, zero by the weights."""
    rows = hooks.lookup(table, keys, handle=handle, fields=("embedding",), step=step, create=True)
    return jnp.sum(rows["embedding"] * weights)


def embeddings(table: Table, *keys: int) -> list[list[float]]:
    jax.effects_barrier()
    return table.lookup(np.array(keys))["embedding"].tolist()


def test_rows_arrive_inside_jit_with_their_step_and_padding_is_not_found(table: Table) -> None:
    table.update([1, 2], {"score": [0.5, 0.25], "label": np.array([-3, 4], np.int8)}, step=9)

    rows = jax.jit(lambda keys: hooks.lookup(table, keys, handle=None))(KEYS)

    assert rows["score"].tolist() == [0.5, 0.25, 0.0]
    assert rows["label"].tolist() == [-3, 4, 0]
    assert rows["label"].dtype == jnp.int8
    assert rows["embedding"].shape == (3, 2)
    assert rows.found.tolist() == [True, True, False]
    assert rows.step["score"].tolist() == [9, 9, -1]
    assert rows.step["embedding"].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (2, 0)])
def test_keys_may_have_any_batch_shape(table: Table, shape: tuple[int, ...]) -> None:
    keys = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    table.update(np.arange(6), {"score": np.arange(6.0)})

    rows = jax.jit(lambda keys: hooks.lookup(table, keys, handle=None))(keys)

    assert rows["embedding"].shape == (*shape, 2)
    np.testing.assert_array_equal(rows["score"], keys)
    assert rows.found.shape == shape


def test_64_bit_keys_are_looked_up_as_pairs(table: Table) -> None:
    keys = np.array([2**40 + 1, -(2**63), -1])
    table.update(keys[:2], {"score": [0.5, 0.25]})

    rows = jax.jit(lambda pairs: hooks.lookup(table, pairs, handle=None))(hooks.split_keys(keys))

    assert rows["score"].tolist() == [0.5, 0.25, 0.0]


def test_an_int64_field_holds_keys_for_another_lookup(table: Table) -> None:
    table.update([1], {"neighbors": np.array([[2**40, 3, -1]])})
    table.update([2**40, 3], {"score": [0.5, 0.25]})

    @jax.jit
    def scores(keys: jax.Array) -> jax.Array:
        neighbors = hooks.lookup(table, keys, handle=None, fields=("neighbors",))["neighbors"]
        return hooks.lookup(table, neighbors, handle=None, fields=("score",))["score"]

    assert scores(jnp.array([1], jnp.int32)).tolist() == [[0.5, 0.25, 0.0]]


def test_a_missing_row_is_not_found_unless_it_is_created() -> None:
    field = Field((2,), init=init.uniform(1.0, 2.0))
    with LocalBank() as bank:
        table = bank.table(TableSpec("nodes", {"embedding": field}))
        keys = jnp.array([8, 9], jnp.int32)

        absent = hooks.lookup(table, keys, handle=None)
        created = hooks.lookup(table, keys, handle=None, create=True)

        assert absent["embedding"].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert absent.found.tolist() == [False, False]
        assert created.found.tolist() == [True, True]
        np.testing.assert_array_equal(created["embedding"], table.lookup(keys)["embedding"])
        assert float(created["embedding"].min()) >= 1.0


def test_old_fields_are_not_found_and_take_no_gradient(table: Table) -> None:
    table.update([1], {"embedding": [[1.0, 1.0]]}, step=10)
    table.update([2], {"embedding": [[1.0, 1.0]]}, step=90)

    def masked(handle: jax.Array, step: jax.Array) -> tuple[jax.Array, hooks.Rows]:
        rows = hooks.lookup(
            table, KEYS, handle=handle, fields=("embedding",), step=step, max_age_steps=20
        )
        return jnp.sum(rows["embedding"]), rows

    _, rows = jax.jit(jax.grad(masked, has_aux=True))(hooks.new_handle(), jnp.int32(100))

    assert rows.found.tolist() == [False, True, False]
    assert rows["embedding"].tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert embeddings(table, 1, 2) == [[1.0, 1.0], [0.5, 0.5]]


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_backward_pass_pushes_once_for_each_lookup(
    table: Table, calls: Calls, transform: Callable[..., Any]
) -> None:
    step = transform(lambda h, w: jax.value_and_grad(loss, (0, 1))(h, w, table, KEYS, 7))

    value, (handle_gradient, weight_gradient) = step(hooks.new_handle(), WEIGHTS)

    assert calls() == {"lookup": 1, "push": 1}
    assert (float(value), float(handle_gradient)) == (0.0, 0.0)
    assert not weight_gradient.any()
    assert embeddings(table, 1, 2) == [[-0.5, -1.0], [-1.5, -2.0]]
    assert table.lookup([1, 2]).step["embedding"].tolist() == [7, 7]


def test_the_gradients_of_a_repeated_key_are_added(table: Table) -> None:
    keys = jnp.array([4, 4, 4], jnp.int32)

    jax.grad(loss)(hooks.new_handle(), WEIGHTS, table, keys)

    assert embeddings(table, 4) == [[-4.5, -6.0]]


def test_nothing_is_pushed_without_differentiating_by_the_handle(
    table: Table, calls: Calls
) -> None:
    jax.jit(lambda h, w: jax.value_and_grad(loss, 1)(h, w, table, KEYS))(
        hooks.new_handle(), WEIGHTS
    )

    assert calls() == {"lookup": 1}


def test_a_field_that_the_loss_does_not_use_is_not_pushed(table: Table, calls: Calls) -> None:
    def uses_one(handle: jax.Array) -> jax.Array:
        rows = hooks.lookup(table, KEYS, handle=handle, create=True)
        return jnp.sum(rows["bias"]) + jnp.sum(jax.lax.stop_gradient(rows["embedding"]))

    jax.grad(uses_one)(hooks.new_handle())

    assert calls() == {"lookup": 1, "push": 1}
    rows = table.lookup([1], metadata=("version",))
    assert (rows.version["bias"].tolist(), rows.version["embedding"].tolist()) == ([1], [0])


def test_fields_without_an_optimizer_are_constants(table: Table, calls: Calls) -> None:
    table.update([1, 2], {"score": [3.0, 5.0]})

    def mixed(handle: jax.Array) -> jax.Array:
        rows = hooks.lookup(table, KEYS, handle=handle, fields=("bias", "score"))
        return jnp.sum(rows["bias"] * rows["score"])

    jax.grad(mixed)(hooks.new_handle())

    assert calls() == {"update": 1, "lookup": 1, "push": 1}
    assert table.lookup([1, 2])["bias"].tolist() == [-1.5, -2.5]


def test_rows_that_are_not_there_are_not_pushed_to(table: Table) -> None:
    def plain(handle: jax.Array) -> jax.Array:
        return jnp.sum(hooks.lookup(table, KEYS, handle=handle, fields=("bias",))["bias"])

    jax.grad(plain)(hooks.new_handle())

    assert len(table) == 0


def test_vmap_makes_one_call_each_way(table: Table, calls: Calls) -> None:
    keys = jnp.array([[1, 2, -1], [3, 1, 4]], jnp.int32)

    def batch_loss(handle: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.vmap(lambda k: loss(handle, weights, table, k))(keys).sum()

    jax.jit(jax.value_and_grad(batch_loss, (0, 1)))(hooks.new_handle(), WEIGHTS)

    assert calls() == {"lookup": 1, "push": 1}
    # Key 1 is in the first example of weights [1, 2] and in the second of [3, 4].
    assert embeddings(table, 1, 2, 3, 4) == [[-2, -3], [-1.5, -2], [-0.5, -1], [-2.5, -3]]


def test_vmap_of_grad_makes_one_call_each_way(table: Table, calls: Calls) -> None:
    keys = jnp.array([[[1, 2, -1]], [[3, 1, 4]]], jnp.int32)
    one = jax.grad(lambda h, k: loss(h, WEIGHTS, table, k))

    jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (None, 0)))(hooks.new_handle(), keys)

    assert calls() == {"lookup": 1, "push": 1}
    assert embeddings(table, 1, 2) == [[-2.0, -3.0], [-1.5, -2.0]]


def test_a_scan_looks_up_and_pushes_in_every_turn(table: Table, calls: Calls) -> None:
    """Each turn sees the rows that the one before left: they move by -WEIGHTS / 2 a turn."""

    def turn(handle: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        value, gradient = jax.value_and_grad(loss)(handle, WEIGHTS, table, KEYS, step)
        return handle - gradient, (value, step)

    _, (losses, _) = jax.jit(lambda h: jax.lax.scan(turn, h, jnp.arange(4)))(hooks.new_handle())
    assert calls() == {"lookup": 4, "push": 4}
    assert embeddings(table, 1) == [[-2.0, -4.0]]
    assert losses.shape == (4,)


def test_the_gradient_of_a_scan_pushes_in_every_turn(table: Table, calls: Calls) -> None:
    keys = jnp.array([[1, 2, -1], [3, 1, 4]], jnp.int32)

    def total(handle: jax.Array) -> jax.Array:
        def turn(sum_: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
            return sum_ + loss(handle, WEIGHTS, table, k), None

        return jax.lax.scan(turn, jnp.float32(0), keys)[0]

    jax.jit(jax.value_and_grad(total))(hooks.new_handle())

    assert calls() == {"lookup": 2, "push": 2}
    assert embeddings(table, 1) == [[-2.0, -3.0]]


@pytest.mark.parametrize("handle", [None, jnp.float32(0)], ids=["read", "trained"])
def test_a_loop_that_gives_its_step_looks_up_the_same_keys_in_every_turn(
    table: Table, calls: Calls, handle: jax.Array | None
) -> None:
    def turn(sum_: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        rows = hooks.lookup(table, KEYS, handle=handle, fields=("bias",), step=step)
        return sum_ + rows["bias"].sum(), None

    jax.jit(lambda: jax.lax.scan(turn, jnp.float32(0), jnp.arange(4)))()

    assert calls() == {"lookup": 4}


@pytest.mark.parametrize(("policy", "lookups"), [(None, 2), (hooks.save_lookups, 1)])
def test_checkpoint_looks_up_again_unless_the_policy_saves_lookups(
    table: Table, calls: Calls, policy: Any, lookups: int
) -> None:
    def deep(handle: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sin(loss(handle, weights, table, KEYS))

    step = jax.jit(jax.value_and_grad(jax.checkpoint(deep, policy=policy), (0, 1)))
    step(hooks.new_handle(), WEIGHTS)

    assert calls() == {"lookup": lookups, "push": 1}
    assert embeddings(table, 1) == [[-0.5, -1.0]]


def test_the_branch_of_a_cond_that_is_not_taken_calls_nothing(table: Table, calls: Calls) -> None:
    def maybe(handle: jax.Array, is_on: jax.Array) -> jax.Array:
        return jax.lax.cond(
            is_on, lambda: loss(handle, WEIGHTS, table, KEYS), lambda: jnp.float32(0)
        )

    step = jax.jit(jax.value_and_grad(maybe))
    step(hooks.new_handle(), jnp.bool(False))
    assert calls() == {}
    step(hooks.new_handle(), jnp.bool(True))
    assert calls() == {"lookup": 1, "push": 1}


def test_the_same_lookup_is_traced_and_compiled_once(table: Table) -> None:
    traces = []

    def traced(keys: jax.Array) -> jax.Array:
        traces.append(None)
        rows = hooks.lookup(table, keys, handle=None, fields=("embedding",))
        return rows["embedding"]

    step = jax.jit(traced)
    for _ in range(5):
        step(KEYS)
    assert len(traces) == 1

    compiled: list[str] = []

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    eager = jax.value_and_grad(loss, (0, 1))
    eager(hooks.new_handle(), WEIGHTS, table, KEYS)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        eager(hooks.new_handle(), WEIGHTS, table, KEYS)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_a_second_derivative_raises_instead_of_pushing_twice(table: Table, calls: Calls) -> None:
    def first(weights: jax.Array) -> jax.Array:
        return jax.grad(loss)(hooks.new_handle(), weights, table, KEYS)

    with pytest.raises(InvalidInputError, match="differentiated twice"):
        jax.grad(first)(WEIGHTS)
    assert calls()["push"] == 0


def test_forward_mode_raises(table: Table) -> None:
    handle = hooks.new_handle()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda h: loss(h, WEIGHTS, table, KEYS), (handle,), (handle,))


def test_a_lookup_without_a_word_about_the_handle_is_an_error(table: Table) -> None:
    with pytest.raises(TypeError, match="handle"):
        hooks.lookup(table, KEYS)  # type: ignore[call-arg]


def test_a_handle_that_no_gradient_can_follow_is_an_error(table: Table) -> None:
    with pytest.raises(InvalidInputError, match="none of the fields score has an optimizer"):
        hooks.lookup(table, KEYS, handle=hooks.new_handle(), fields=("score",))


@pytest.mark.parametrize("handle", [jnp.zeros(1), jnp.int32(0), jnp.bfloat16(0)])
def test_another_handle_than_a_float32_scalar_is_an_error(table: Table, handle: jax.Array) -> None:
    with pytest.raises(InvalidInputError, match=r"hooks\.new_handle\(\)"):
        hooks.lookup(table, KEYS, handle=handle)


def test_arguments_that_cannot_work_are_named(table: Table) -> None:
    with pytest.raises(InvalidInputError, match="fields='score'"):
        hooks.lookup(table, KEYS, handle=None, fields="score")
    with pytest.raises(InvalidInputError, match=r"fields=\(\)"):
        hooks.lookup(table, KEYS, handle=None, fields=())
    with pytest.raises(FieldNotFoundError, match="no field 'color'"):
        hooks.lookup(table, KEYS, handle=None, fields=("color",))
    with pytest.raises(InvalidInputError, match="max_age_steps=-1"):
        hooks.lookup(table, KEYS, handle=None, max_age_steps=-1)


def test_a_per_source_table_is_refused() -> None:
    with LocalBank(source="me") as bank:
        table = bank.table(TableSpec("messages", {"text": Field((2,))}, per_source=True))
        with pytest.raises(InvalidInputError, match="per_source"):
            hooks.lookup(table, KEYS, handle=None)


def test_rows_name_the_fields_that_were_asked_for(table: Table) -> None:
    rows = hooks.lookup(table, KEYS, handle=None, fields=("score", "bias"))

    assert list(rows.values) == ["score", "bias"]
    with pytest.raises(FieldNotFoundError, match="only score, bias"):
        rows["embedding"]


def test_ages_are_counted_on_the_named_clock() -> None:
    with LocalBank() as bank:
        table = bank.table(
            TableSpec("nodes", {"z": Field(optimizer=optimizer("sgd", learning_rate=1.0))})
        )
        table.update([1], {"z": [1.0]}, step=5, clock="student")

        def found(step: int) -> list[bool]:
            rows = hooks.lookup(
                table, KEYS, handle=None, step=step, max_age_steps=2, clock="student"
            )
            return rows.found.tolist()

        assert found(7) == [True, False, False]
        assert found(8) == [False, False, False]
