"""Hooks with more than one device: `conftest.py` gives the tests two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from carls_jax import hooks
from carls_jax.bank import Table
from carls_jax.errors import InvalidInputError

from .conftest import Calls

KEYS = jnp.arange(4, dtype=jnp.int32)
WEIGHTS = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
# The gradient of the mean over 8 numbers is WEIGHTS / 8, and rows move by minus half of it.
MOVED = (-WEIGHTS / 16).tolist()

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@pytest.fixture(params=[AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    assert jax.device_count() == 2
    return jax.make_mesh((2,), ("data",), axis_types=(request.param,))


def put(mesh: Mesh, spec: P) -> tuple[jax.Array, jax.Array]:
    sharding = jax.NamedSharding(mesh, spec)
    return jax.device_put(WEIGHTS, sharding), jax.device_put(KEYS, sharding)


def mean_loss(table: Table) -> Loss:
    def loss(handle: jax.Array, weights: jax.Array, keys: jax.Array) -> jax.Array:
        rows = hooks.lookup(table, keys, handle=handle, fields=("embedding",), create=True)
        return jnp.mean(rows["embedding"] * weights)

    return loss


def pushed(table: Table, step: Callable[..., Any], *arguments: Any) -> Any:
    jax.block_until_ready(jax.jit(step)(hooks.new_handle(), *arguments))
    jax.effects_barrier()
    return table.lookup(KEYS)["embedding"].tolist()


def test_replicated_arrays_are_one_call(table: Table, calls: Calls, mesh: Mesh) -> None:
    weights, keys = put(mesh, P())
    with jax.set_mesh(mesh):
        rows = pushed(table, jax.value_and_grad(mean_loss(table), (0, 1)), weights, keys)
        receipt = jax.jit(lambda: hooks.update(table, keys, {"score": jnp.ones(4)}))()

    assert rows == MOVED
    assert bool(receipt.ok)
    assert calls() == {"lookup": 2, "push": 1, "update": 1}  # one lookup is the test's own


def test_arrays_sharded_over_auto_axes_are_gathered_for_one_call(
    table: Table, calls: Calls
) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    weights, keys = put(mesh, P("data"))

    with jax.set_mesh(mesh):
        rows = pushed(table, jax.value_and_grad(mean_loss(table)), weights, keys)

    assert rows == MOVED
    assert calls() == {"lookup": 2, "push": 1}


def test_keys_sharded_over_explicit_axes_are_refused_with_the_way_out(table: Table) -> None:
    mesh = jax.make_mesh((2,), ("data",))
    _, keys = put(mesh, P("data"))

    with jax.set_mesh(mesh), pytest.raises(InvalidInputError, match=r"inside jax\.shard_map"):
        jax.jit(lambda keys: hooks.lookup(table, keys, handle=None))(keys)


@pytest.mark.parametrize("check_vma", [True, False])
def test_under_shard_map_each_device_asks_and_pushes_for_its_own_rows(
    table: Table, calls: Calls, mesh: Mesh, check_vma: bool
) -> None:
    weights, keys = put(mesh, P("data"))
    loss = mean_loss(table)

    sharded = jax.shard_map(
        lambda *arguments: jax.lax.pmean(loss(*arguments), "data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
        check_vma=check_vma,
    )
    with jax.set_mesh(mesh):
        rows = pushed(table, jax.value_and_grad(sharded), weights, keys)

    assert rows == MOVED
    assert calls() == {"lookup": 3, "push": 2}
