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
from carls_jax.bank import LocalBank, Table
from carls_jax.errors import BankClosedError, InvalidInputError

from .conftest import SPEC, Calls

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


def on_each(
    mesh: Mesh, function: Callable[..., Any], given: P, made: P, *, check_vma: bool = True
) -> Callable[..., Any]:
    """Calls a function of keys on each device."""
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=made, check_vma=check_vma)
    )


def on_all_devices(array: jax.Array) -> list[Any]:
    return [shard.data.tolist() for shard in array.addressable_shards]


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


def test_equal_keys_are_asked_for_and_pushed_by_one_device(
    table: Table, calls: Calls, mesh: Mesh
) -> None:
    weights, keys = put(mesh, P())
    loss = jax.shard_map(mean_loss(table), mesh=mesh, in_specs=P(), out_specs=P())

    with jax.set_mesh(mesh):
        rows = pushed(table, jax.value_and_grad(loss), weights, keys)

    assert rows == MOVED
    assert calls() == {"lookup": 2, "push": 1}  # one lookup is the test's own


def test_the_gradients_of_all_devices_by_equal_rows_are_pushed_as_their_sum(
    table: Table, calls: Calls, mesh: Mesh
) -> None:
    weights = jax.device_put(jnp.array([1.0, 3.0]), jax.NamedSharding(mesh, P("data")))
    _, keys = put(mesh, P())

    def loss(handle: jax.Array, weight: jax.Array, keys: jax.Array) -> jax.Array:
        rows = hooks.lookup(table, keys, handle=handle, fields=("bias",), create=True)
        return jax.lax.psum(jnp.sum(rows["bias"] * weight), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
    with jax.set_mesh(mesh):
        jax.block_until_ready(jax.jit(jax.grad(sharded))(hooks.new_handle(), weights, keys))

    assert calls() == {"lookup": 1, "push": 1}
    assert table.lookup(KEYS)["bias"].tolist() == [-2.0] * 4


def test_without_check_vma_each_device_pushes_its_part_for_equal_keys(
    table: Table, calls: Calls, mesh: Mesh
) -> None:
    weights, keys = put(mesh, P())

    def loss(*arguments: jax.Array) -> jax.Array:
        return jax.lax.pmean(mean_loss(table)(*arguments), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    with jax.set_mesh(mesh):
        rows = pushed(table, jax.value_and_grad(sharded), weights, keys)

    assert rows == MOVED
    assert calls() == {"lookup": 3, "push": 2}


@pytest.mark.parametrize("write", [hooks.update, hooks.push])
@pytest.mark.parametrize(
    ("spec", "check_vma", "times"),
    [(P("data"), True, 2), (P("data"), False, 2), (P(), True, 1), (P(), False, 2)],
    ids=["parts", "parts, unchecked", "equal", "equal, unchecked"],
)
def test_a_write_is_made_once_for_each_part_that_jax_knows_to_differ(
    table: Table,
    calls: Calls,
    mesh: Mesh,
    write: Callable[..., Any],
    spec: P,
    check_vma: bool,
    times: int,
) -> None:
    _, keys = put(mesh, spec)

    def function(keys: jax.Array) -> Any:
        receipt = write(table, keys, {"bias": jnp.ones(keys.shape)}, step=6)
        return jax.tree.map(lambda leaf: leaf[None] if spec else leaf, receipt)

    with jax.set_mesh(mesh):
        receipt = on_each(mesh, function, spec, spec, check_vma=check_vma)(keys)

    assert calls() == {write.__name__: times}
    assert (receipt.ok.all(), (receipt.step == 6).all()) == (True, True)
    pushed = -0.5 if spec else -0.5 * times
    assert table.lookup(KEYS)["bias"].tolist() == [1.0 if write is hooks.update else pushed] * 4


def test_a_device_alone_calls_with_equal_keys_that_are_cast_to_varying(
    table: Table, calls: Calls, mesh: Mesh
) -> None:
    _, keys = put(mesh, P())

    def function(keys: jax.Array) -> jax.Array:
        own = jax.lax.pcast(keys, "data", to="varying")

        def write() -> jax.Array:
            return hooks.update(table, own, {"score": jnp.ones(4)}, step=6).step

        is_last = jax.lax.axis_index("data") == 1
        none = jax.lax.pcast(jnp.int32(0), "data", to="varying")
        return jax.lax.pmax(jax.lax.cond(is_last, write, lambda: none), "data")

    with jax.set_mesh(mesh):
        assert int(on_each(mesh, function, P(), P())(keys)) == 6

    assert calls() == {"update": 1}


def test_a_bank_that_fails_finds_nothing_on_all_devices(mesh: Mesh) -> None:
    table = LocalBank().table(SPEC)
    _, parts = put(mesh, P("data"))
    _, equal = put(mesh, P())

    def function(keys: jax.Array) -> jax.Array:
        receipt = hooks.update(table, keys, {"score": jnp.ones(keys.shape)})
        return hooks.lookup(table, keys, handle=None, create=True).found & receipt.ok

    with jax.set_mesh(mesh):
        for_parts, for_equal = (on_each(mesh, function, spec, spec) for spec in (P("data"), P()))
        assert for_parts(parts).all()
        assert on_all_devices(for_equal(equal)) == [[True] * 4] * 2
        table.bank.close()
        assert not for_parts(parts).any()
        with pytest.raises(BankClosedError, match="4 calls"):
            hooks.check(table.bank)
        found = for_equal(equal)

    assert on_all_devices(found) == [[False] * 4] * 2
    with pytest.raises(BankClosedError, match="2 calls"):
        hooks.check(table.bank)


def test_a_handle_may_differ_between_devices(table: Table, calls: Calls, mesh: Mesh) -> None:
    weights, keys = put(mesh, P("data"))
    handles = jax.device_put(jnp.zeros(2), jax.NamedSharding(mesh, P("data")))

    def loss(handle: jax.Array, weights: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.pmean(mean_loss(table)(handle[0], weights, keys), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=P("data"), out_specs=P())
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(sharded))(handles, weights, keys)

    assert gradient.tolist() == [0.0, 0.0]
    assert calls() == {"lookup": 2, "push": 2}
    assert table.lookup(KEYS)["embedding"].tolist() == MOVED


def test_a_large_operand_arrives_whole(table: Table) -> None:
    keys = jnp.arange(20_001, dtype=jnp.int32)
    values = jnp.stack([keys, -keys], axis=-1).astype(jnp.float32)

    jax.jit(lambda: hooks.update(table, keys, {"embedding": values}))()
    rows = jax.jit(lambda keys: hooks.lookup(table, keys, handle=None))(keys)

    assert (rows["embedding"] == values).all()


def test_a_shard_map_over_a_part_of_its_mesh_is_refused(table: Table) -> None:
    mesh = jax.make_mesh((2, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sharded = jax.shard_map(
        lambda keys: hooks.lookup(table, keys, handle=None).found,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        axis_names={"data"},
    )

    with pytest.raises(InvalidInputError, match="leaves model of its mesh to the compiler"):
        jax.jit(sharded)(KEYS)


def test_arrays_on_several_devices_are_refused_outside_jit(
    table: Table, calls: Calls, mesh: Mesh
) -> None:
    _, keys = put(mesh, P())

    with pytest.raises(InvalidInputError, match=r"arrays on 2 devices.*inside jax\.jit"):
        hooks.lookup(table, keys, handle=None)
    with pytest.raises(InvalidInputError, match=r"arrays on 2 devices.*inside jax\.jit"):
        hooks.update(table, keys, {"score": jnp.ones(4)})
    assert calls() == {}


def test_unequal_parts_are_refused_by_jax(table: Table) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    with pytest.raises(ValueError, match=r"int32\[3\].*2 does not evenly divide 3"):
        on_each(mesh, lambda keys: hooks.lookup(table, keys, handle=None), P("data"), P("data"))(
            KEYS[:3]
        )


def test_a_receipt_of_parts_is_not_taken_for_equal_on_all_devices(table: Table) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def function(keys: jax.Array) -> jax.Array:
        return hooks.update(table, keys, {"score": jnp.ones(keys.shape)}).ok

    with pytest.raises(ValueError, match="require replication"):
        on_each(mesh, function, P("data"), P())(KEYS)
