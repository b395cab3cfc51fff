"""Calls hooks inside `jax.shard_map`, in one process or in several that are joined.

python -m tests.integration.hooks_on_devices ADDRESS OUT [COORDINATOR NUM_PROCESSES PROCESS]

Each scenario has a table of its own, which is there before. What the scenarios return goes to the
JSON file OUT; what they did is in the bank at ADDRESS.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from carls_jax import hooks
from carls_jax.bank import Bank, Table, connect
from carls_jax.errors import CarlsError
from carls_jax.nn import DynamicEmbedding
from tests.integration.hooks_programs import Loss, bank_loss, program, spec

NUM_KEYS = 256
MANY_KEYS = 16_000  # Rows of 64 floats, so 0.5 MB for each of 8 devices.
EVERY = ("row", "column")


@dataclass(frozen=True)
class Scenario:
    """Is a program in which the word "shard" stands for `jax.shard_map`.

    Attributes:
      words: See `hooks_programs`.
      calls: How often the bank is to be called each way.
      axes: Mesh axes over which the keys are sharded; along all others they are equal.
      check_vma: As in `jax.shard_map`.
      num_keys: How many rows there are.
    """

    words: str
    calls: int
    axes: tuple[str, ...] = EVERY
    check_vma: bool = True
    num_keys: int = NUM_KEYS

    @property
    def name(self) -> str:
        """Returns its name, and that of its table."""
        over = ["over", *self.axes] if self.axes else ["equal"]
        more = [] if self.check_vma else ["unchecked"]
        return "-".join([*self.words.split(), *over, *more, str(self.num_keys)])


def all_keys(num_keys: int = NUM_KEYS) -> np.ndarray:
    """Returns int32 `[16, num_keys / 32, 2]`: for scans, for `vmap`, and bags."""
    return np.arange(num_keys, dtype=np.int32).reshape(16, -1, 2)


def put(array: np.ndarray, mesh: Mesh, *axes: str) -> jax.Array:
    """Puts an array on all devices of all processes, its first dimension sharded over axes."""
    sharding = jax.NamedSharding(mesh, P(axes or None) if array.ndim else P())
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def sharded(mesh: Mesh, scenario: Scenario) -> Callable[[Loss], Loss]:
    """Returns the transformation "shard"; it adds the parts up, as far as keys are sharded."""

    def transform(function: Loss) -> Loss:
        def part(parameter: jax.Array, keys: jax.Array) -> Any:
            parts = function(parameter, keys)
            if scenario.axes:
                parts = lax.psum(parts, scenario.axes)
            equal = tuple(axis for axis in EVERY if axis not in scenario.axes)
            return parts if scenario.check_vma or not equal else lax.pmean(parts, equal)

        return jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(P(), P(scenario.axes or None)),
            out_specs=P(),
            check_vma=scenario.check_vma,
        )

    return transform


def run(scenario: Scenario, table: Table, mesh: Mesh) -> float:
    """Runs a scenario and returns the loss."""
    shard = sharded(mesh, scenario)
    call = jax.jit(program(scenario.words, bank_loss(table), shard=shard))
    value, _ = call(
        put(np.float32(0), mesh), put(all_keys(scenario.num_keys), mesh, *scenario.axes)
    )
    return float(value)


def write_and_read(table: Table, mesh: Mesh, axes: tuple[str, ...], check_vma: bool) -> Any:
    """Updates, pushes and reads the keys in this order; each device reads a part of its own."""

    def part(keys: jax.Array, own: jax.Array) -> Any:
        values = jnp.ones((*keys.shape, 64))
        updated = hooks.update(table, keys, {"score": keys.astype(jnp.float32)}, step=7)
        pushed = hooks.push(table, keys, {"embedding": values}, step=updated.step)
        rows = hooks.lookup(table, own, handle=None, step=pushed.step)
        ok = lax.pmin((updated.ok & pushed.ok).astype(jnp.int32), EVERY)
        total = lax.psum((rows["score"].sum(), rows["embedding"].sum()), EVERY)
        return ok, lax.pmax(pushed.step, EVERY), total

    call = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(P(axes or None), P(EVERY)),
        out_specs=P(),
        check_vma=check_vma,
    )
    ok, step, (scores, embeddings) = jax.jit(call)(
        put(all_keys(), mesh, *axes), put(all_keys(), mesh, *EVERY)
    )
    return [int(ok), int(step), float(scores), float(embeddings)]


class Model(nnx.Module):
    """Predicts a number from the mean of the embeddings of a bag."""

    def __init__(self, table: Table) -> None:
        self.embed = DynamicEmbedding(table, combiner="mean")
        self.readout = nnx.Linear(64, 1, rngs=nnx.Rngs(0))

    def __call__(self, keys: jax.Array) -> jax.Array:
        return jnp.tanh(self.readout(self.embed(keys)))[..., 0]


def model_loss(model: Model, keys: jax.Array) -> jax.Array:
    """Returns the mean loss of bags `[..., n]`."""
    return jnp.mean((model(keys) - 1.0) ** 2)


def train(table: Table, mesh: Mesh, check_vma: bool) -> Any:
    """Differentiates a model by all its parameters; returns the loss and the readout's gradient."""
    graph, state = nnx.split(Model(table))
    state = jax.tree.map(lambda leaf: put(np.asarray(leaf), mesh), state)

    def loss(state: Any, keys: jax.Array) -> jax.Array:
        return lax.pmean(model_loss(nnx.merge(graph, state), keys), EVERY)

    call = jax.shard_map(
        loss, mesh=mesh, in_specs=(P(), P(EVERY)), out_specs=P(), check_vma=check_vma
    )
    value, gradient = jax.jit(jax.value_and_grad(call))(state, put(all_keys(), mesh, *EVERY))
    return [float(value), np.asarray(gradient["readout"]["kernel"][...]).tolist()]


def fail(bank: Bank, mesh: Mesh) -> Any:
    """Looks up in a closed bank; returns how many rows were found and the error."""
    table = bank.table(spec("closed"))
    bank.close()

    def part(keys: jax.Array) -> jax.Array:
        found = hooks.lookup(table, keys, handle=None).found
        return lax.psum(found.sum(), EVERY)

    call = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=P(EVERY), out_specs=P()))
    found = int(call(put(all_keys(), mesh, *EVERY)))
    try:
        hooks.check(bank)
    except CarlsError as error:
        return [found, type(error).__name__, str(error)]
    return [found, "no error"]


SCENARIOS = [
    Scenario("grad shard", calls=8),
    Scenario("grad shard", calls=8, check_vma=False),
    Scenario("grad shard", calls=8, num_keys=MANY_KEYS),
    Scenario("grad shard", calls=4, axes=("row",)),
    Scenario("shard grad scan vmap", calls=16),
    Scenario("shard scan grad vmap", calls=16, check_vma=False),
    Scenario("grad scan shard", calls=128),
    Scenario("grad shard scan remat", calls=16, check_vma=False),
    Scenario("grad shard saved scan", calls=16),
    # From equal keys the first device calls for all, or, where JAX does not tell, each for itself.
    Scenario("grad shard", calls=1, axes=()),
    Scenario("shard grad vmap", calls=1, axes=()),
    Scenario("grad vmap shard", calls=1, axes=()),
    Scenario("grad shard saved scan", calls=16, axes=()),
    Scenario("grad shard", calls=8, axes=(), check_vma=False),
    # Outside of shard_map the first device calls with the whole array.
    Scenario("grad scan", calls=16, axes=()),
    Scenario("grad vmap", calls=1),
]
WRITES = {
    "written": (EVERY, True),
    "written-unchecked": (EVERY, False),
    "written-equal": ((), True),
}
MODELS = {"model": True, "model-unchecked": False}


def main(address: str, out: str, *joined: str) -> None:
    """Runs all scenarios."""
    process = 0
    if joined:
        process = int(joined[2])
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(joined[0], int(joined[1]), process)
    mesh = jax.make_mesh((jax.device_count() // 2, 2), EVERY, axis_types=(AxisType.Auto,) * 2)
    source = f"process-{process}"
    with connect(address, source=source) as bank, connect(address) as closed:
        told = {one.name: run(one, bank.table(spec(one.name)), mesh) for one in SCENARIOS}
        for name, how in WRITES.items():
            told[name] = write_and_read(bank.table(spec(name)), mesh, *how)
        for name, check_vma in MODELS.items():
            told[name] = train(bank.table(spec(name)), mesh, check_vma)
        jax.effects_barrier()
        hooks.check(bank)
        told["closed"] = fail(closed, mesh)
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
