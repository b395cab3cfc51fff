"""What hooks rely on, or work around, in JAX. A test that fails here says that JAX has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

ROW = jax.ShapeDtypeStruct((3,), jnp.float32)
X = jnp.arange(3.0)


class Host:
    """Doubles an array on the host and remembers the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Any) -> np.ndarray:
        array = np.asarray(x)
        self.shapes.append(array.shape)
        return array * 2

    def read(self, x: jax.Array, vmap_method: str | None = "broadcast_all") -> jax.Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(self, shape, x, vmap_method=vmap_method)

    def write(self, x: jax.Array, *, ordered: bool = False) -> jax.Array:
        return io_callback(self, jax.ShapeDtypeStruct(x.shape, x.dtype), x, ordered=ordered)


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    result = jax.block_until_ready(jax.jit(function)(*arguments))
    jax.effects_barrier()
    return result


def reads_and_writes_back(host: Host, writer: Host) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes a lookup without any of our care: reads forward, writes the cotangent backward."""

    @jax.custom_vjp
    def lookup(x: jax.Array, handle: jax.Array) -> jax.Array:
        return host.read(x)

    def forward(x: jax.Array, handle: jax.Array) -> tuple[jax.Array, jax.Array]:
        return host.read(x), x

    def backward(x: jax.Array, cotangent: jax.Array) -> tuple[None, jax.Array]:
        writer.write(cotangent)
        return None, jnp.float32(0)

    lookup.defvjp(forward, backward)
    return lookup


def test_a_read_whose_result_is_unused_is_dropped_and_a_write_is_not() -> None:
    reader, writer = Host(), Host()

    def function(x: jax.Array) -> jax.Array:
        reader.read(x)
        writer.write(x)
        return x

    run(function, X)

    assert (len(reader.shapes), len(writer.shapes)) == (0, 1)


def test_two_equal_reads_may_be_two_calls() -> None:
    host = Host()
    run(lambda x: host.read(x) + host.read(x), X)
    assert len(host.shapes) == 2


def test_a_read_that_is_the_same_in_every_turn_may_be_made_once() -> None:
    host = Host()
    lookup = reads_and_writes_back(host, Host())

    def loop(handle: jax.Array) -> jax.Array:
        def turn(sum_: jax.Array, _: None) -> tuple[jax.Array, None]:
            return sum_ + lookup(X, handle).sum(), None

        return jax.lax.scan(turn, jnp.float32(0), length=4)[0]

    run(jax.value_and_grad(loop), jnp.float32(0))

    assert len(host.shapes) == 1


def test_the_backward_pass_is_left_out_without_a_differentiated_input() -> None:
    writer = Host()
    lookup = reads_and_writes_back(Host(), writer)

    def loss(weights: jax.Array, handle: jax.Array) -> jax.Array:
        return jnp.sum(lookup(X, handle) * weights)

    run(jax.grad(loss, 0), X, jnp.float32(0))
    assert writer.shapes == []
    run(jax.grad(loss, (0, 1)), X, jnp.float32(0))
    assert writer.shapes == [(3,)]


def test_vmap_of_a_read_needs_a_method_and_broadcast_all_is_one_call() -> None:
    host, rows = Host(), jnp.ones((4, 3))

    with pytest.raises(NotImplementedError, match="vmap_method"):
        run(jax.vmap(lambda x: host.read(x, vmap_method=None)), rows)
    run(jax.vmap(lambda x: host.read(x, vmap_method="sequential")), rows)
    assert host.shapes == [(3,)] * 4
    host.shapes.clear()
    run(jax.vmap(host.read), rows)
    assert host.shapes == [(4, 3)]


def test_vmap_of_a_write_is_one_call_for_each_row_unless_a_rule_joins_them() -> None:
    host, rows = Host(), jnp.ones((4, 3))

    @custom_vmap
    def joined(x: jax.Array) -> jax.Array:
        return host.write(x)

    @joined.def_vmap
    def rule(axis_size: int, in_batched: Any, x: jax.Array) -> tuple[jax.Array, bool]:
        return host.write(x), True

    run(jax.vmap(host.write), rows)
    assert host.shapes == [(3,)] * 4
    host.shapes.clear()
    run(jax.vmap(lambda x: (joined(x), x)[1]), rows)
    assert host.shapes == [(4, 3)]


def test_an_ordered_write_cannot_be_vmapped() -> None:
    host = Host()
    with pytest.raises(ValueError, match="Cannot `vmap` ordered IO callback"):
        run(jax.vmap(lambda x: host.write(x, ordered=True)), jnp.ones((4, 3)))


def test_checkpoint_refuses_writes_and_repeats_reads() -> None:
    host = Host()

    def checkpointed(call: Callable[[jax.Array], jax.Array]) -> Any:
        @jax.custom_vjp
        def constant(x: jax.Array) -> jax.Array:
            return call(x)

        constant.defvjp(lambda x: (call(x), None), lambda _, cotangent: (cotangent,))
        return jax.value_and_grad(jax.checkpoint(lambda x: jnp.sin(constant(x)).sum()))

    run(checkpointed(host.read), X)
    assert len(host.shapes) == 2
    with pytest.raises(NotImplementedError, match="Effects not supported"):
        run(checkpointed(host.write), X)


def test_an_exception_in_a_callback_loses_its_class() -> None:
    def fail(x: Any) -> np.ndarray:
        raise KeyError("why")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(lambda x: jax.pure_callback(fail, ROW, x), X)


def test_64_bit_integers_are_truncated_silently() -> None:
    assert jnp.asarray(np.array([2**40 + 1, 2**33, 5])).tolist() == [1, 0, 5]


def test_a_fresh_closure_is_compiled_in_every_call_and_an_equal_callable_is_not() -> None:
    compiled: list[str] = []

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    class Equal(Host):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

    Equal().read(X)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(3):
            Equal().read(X)
        assert len(compiled) == 0
        for _ in range(3):
            Host().read(X)
        assert len(compiled) == 3
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_dispatch_on_the_cpu_returns_after_the_callback() -> None:
    """So `hooks.checking` around a step raises what failed in that very step."""
    host = Host()
    function = jax.jit(host.read)
    function(X)
    for calls in range(2, 5):
        function(X)
        assert len(host.shapes) == calls


def test_a_mesh_has_explicit_axes_by_default() -> None:
    assert jax.make_mesh((2,), ("data",)).axis_types == (AxisType.Explicit,)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_an_array_under_jit_is_given_whole_to_one_call_and_under_shard_map_to_one_per_device(
    axis_type: AxisType,
) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
    host, rows = Host(), jax.device_put(jnp.ones((4, 3)), jax.NamedSharding(mesh, P("data")))

    run(host.read, rows)
    assert host.shapes == [(4, 3)]
    host.shapes.clear()
    run(jax.shard_map(host.read, mesh=mesh, in_specs=P("data"), out_specs=P("data")), rows)
    assert host.shapes == [(2, 3)] * 2


def test_the_answer_to_a_device_of_a_shard_map_is_typed_as_equal_on_all() -> None:
    """Its cotangent is then the sum over devices, which is why `callbacks.read` casts it."""
    mesh = jax.make_mesh((2,), ("data",))
    seen: dict[str, frozenset[str]] = {}

    def function(x: jax.Array) -> jax.Array:
        answer = Host().read(x)
        seen.update(asked=jax.typeof(x).mat.varying, answered=jax.typeof(answer).mat.varying)
        return x

    rows = jax.device_put(jnp.ones((4, 3)), jax.NamedSharding(mesh, P("data")))
    run(jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data")), rows)

    assert seen == {"asked": frozenset({"data"}), "answered": frozenset()}


@pytest.mark.parametrize(("check_vma", "gradient"), [(True, 1.0), (False, 2.0)])
def test_without_check_vma_the_gradient_of_a_sum_over_devices_is_as_often_too_large(
    check_vma: bool, gradient: float
) -> None:
    """It is right if the gradient is taken outside of `jax.shard_map`."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def total(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x.sum(), "data")

    def sharded(function: Callable[..., Any], out: P) -> Callable[..., Any]:
        return jax.shard_map(
            function, mesh=mesh, in_specs=P("data"), out_specs=out, check_vma=check_vma
        )

    x = jnp.ones(2)
    assert run(sharded(jax.grad(total), P("data")), x).tolist() == [gradient] * 2
    assert run(jax.grad(sharded(total, P())), x).tolist() == [1.0] * 2
