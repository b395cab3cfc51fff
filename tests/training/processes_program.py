"""Is run by test_processes.py, in one process of 8 devices or in two of 4: a training loop.

processes_program.py ADDRESS WORKDIR COORDINATOR NUM_PROCESSES INDEX
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADDRESS, WORKDIR, COORDINATOR = sys.argv[1:4]
NUM_PROCESSES, INDEX = map(int, sys.argv[4:])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // NUM_PROCESSES}"

import jax  # noqa: E402 - it reads the environment
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

import carls_jax as carls  # noqa: E402
from carls_jax.training.placing import own_rows  # noqa: E402

if NUM_PROCESSES > 1:
    jax.distributed.initialize(COORDINATOR, NUM_PROCESSES, INDEX)

NODES = carls.TableSpec(
    "nodes",
    {
        "z": carls.Field((2,), optimizer=carls.optimizer("sgd", learning_rate=0.5)),
        "score": carls.Field(),
        "mean": carls.Field(),
        "next": carls.Field((2,), dtype="int64"),
    },
)
PLAN = {
    "own": carls.Lookup(NODES, "z", keys="id", create=True),
    "next": carls.Lookup(NODES, "next", keys="id").then("z"),
}
WRITES = {
    "gradient": carls.Push(NODES, "z", keys="id"),
    "score": carls.Update(NODES, "score", keys="id"),
    "mean": carls.Update(NODES, "mean", keys="id"),
}
CONFIG = carls.SessionConfig(carls.lockstep(every_steps=2), log_every_steps=1)
DEVICES = np.array(jax.devices())
assert DEVICES.size == 8


def sharding_of(shape: tuple[int, ...], names: tuple[str, ...]) -> NamedSharding:
    mesh = Mesh(DEVICES.reshape(shape), names, axis_types=(AxisType.Auto,) * len(names))
    return NamedSharding(mesh, PartitionSpec("data"))


def batches(sharding: NamedSharding) -> Iterator[dict[str, Any]]:
    """Yields this process's part of batches of 8 ids."""
    mine = sharding.addressable_devices_indices_map((8,)).values()
    places = sorted({place for one in mine for place in range(*one[0].indices(8))})
    for step in itertools.count(1):
        ids = (np.arange(8) * 3 + step) % 16  # each once in a batch
        yield {"id": ids[places], "x": (ids / 4).astype(np.float32)[places]}


def make_step(sharding: NamedSharding) -> Any:
    """Returns the step; of its outputs "mean" is equal everywhere, the others are sharded."""
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())

    @jax.jit
    def train_step(w: Any, x: Any, know: Any) -> tuple[Any, dict[str, Any]]:
        def loss(w: Any, z: Any) -> tuple[Any, Any]:
            wanted = x[:, None] + know["next"]["z"].mean(axis=1)
            scores = jnp.square(w[None] * z - wanted).sum(axis=1)
            return scores.mean(), scores

        gradients, scores = jax.grad(loss, argnums=(0, 1), has_aux=True)(w, know["own"]["z"])
        mean = jnp.broadcast_to(scores.mean(), scores.shape)
        outputs = {"gradient": gradients[1], "score": scores, "mean": mean}
        placed = {name: everywhere if name == "mean" else sharding for name in outputs}
        return w - 0.1 * gradients[0], jax.lax.with_sharding_constraint(outputs, placed)

    return train_step


def train(name: str, sharding: NamedSharding, *, stops: tuple[int, ...]) -> list[Any]:
    """Runs a loop that is stopped and resumed; returns its weights after each step."""
    train_step = make_step(sharding)
    seen = []
    for stop in stops:
        with carls.session(ADDRESS, workdir=Path(WORKDIR) / name, config=CONFIG) as session:
            everywhere = NamedSharding(sharding.mesh, PartitionSpec())
            w = jax.device_put(np.ones(2, np.float32), everywhere)
            state = session.begin({"model": {"w": w}})
            steps = session.look_ahead(
                batches(sharding),
                PLAN,
                depth=3,
                writes=WRITES,
                sharding=sharding,
            )
            for step, batch, know in steps:
                assert know["own"]["z"].shape == (8, 2)
                assert know["next"]["z"].shape == (8, 2, 2)
                assert know["own"].behind["z"].sharding == sharding
                w, outputs = train_step(state["model"]["w"], session.place(batch["x"]), know)
                state = {"model": {"w": w}}
                seen.append([step, np.asarray(w).tolist()])
                session.write(step, outputs)
                session.checkpoint(step, state)
                session.log(step)
                if step == stop:
                    break
    return seen


def refused(flat: NamedSharding, crossed: NamedSharding) -> list[str]:
    """Returns how outputs that no rows can be taken of are refused, and sharding out of step."""
    own = own_rows(flat, 4)
    assert own is not None
    columns = NamedSharding(flat.mesh, PartitionSpec(None, "data"))
    zeros = np.zeros((8, 8), np.float32)
    wrong = [
        jax.make_array_from_callback((8, 8), columns, lambda at: zeros[at]),
        np.zeros(8),
        jax.make_array_from_callback((16, 1), flat, lambda at: np.zeros((2, 1))),
    ]
    errors = []
    for output in wrong:
        try:
            own.of(output)
        except carls.errors.ShapeError as error:
            errors.append(str(error))
    workdir = Path(WORKDIR) / "asynchronous"
    with carls.session(ADDRESS, workdir=workdir) as session:
        session.begin({"model": {"w": np.ones(1)}})
        try:
            session.look_ahead(batches(crossed), PLAN, sharding=crossed)
        except carls.errors.InvalidInputError as error:
            errors.append(str(error))
    try:
        with carls.session("local:", workdir=workdir):
            pass
    except carls.errors.InvalidInputError as error:
        errors.append(str(error))
    return errors


flat, crossed = sharding_of((8,), ("data",)), sharding_of((2, 4), ("copy", "data"))
seen = {"flat": train("flat", flat, stops=(5, 8)), "crossed": train("crossed", crossed, stops=(4,))}
print(json.dumps({**seen, "errors": refused(flat, crossed) if NUM_PROCESSES > 1 else []}))
