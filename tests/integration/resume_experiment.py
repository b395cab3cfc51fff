"""A small experiment with all that a resumed run must put back; used by test_resume.py.

Rows are trained in the bank (AdaGrad, so that they have an optimizer state there), steps write
scores, and a maker with a state and random numbers writes targets from model and scores.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import carls_jax as carls
from carls_jax.data.batches import Batches
from carls_jax.launch import read_processes

IDS = np.arange(8)
ITEMS = carls.TableSpec(
    "items",
    {
        "z": carls.Field(
            (2,),
            init=carls.init.uniform(-1.0, 1.0),
            optimizer=carls.optimizer("adagrad", learning_rate=0.5),
        ),
        "score": carls.Field(),
        "target": carls.Field((2,)),
        "peer": carls.Field((), dtype="int64"),
    },
)
PLAN = {
    "own": carls.Lookup(ITEMS, ("z", "target"), keys="id", create=True),
    "peer": carls.Lookup(ITEMS, "peer", keys="id").then("z"),
}
WRITES = {
    "gradient": carls.Push(ITEMS, "z", keys="id"),
    "score": carls.Update(ITEMS, "score", keys="id"),
}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "num_steps": 12,
            "depth": 3,
            "kill": {"trainer": -1, "bank": -1, "aim": -1, "pause": -1},
            "run": {"session": {"schedule": {"every_steps": 3, "delay": 1}}},
        }
    )


def predict(variables: Any, inputs: Any) -> Any:
    return inputs * variables["w"][None]


@carls.maker(reads="items", writes={"items": ("target", "peer")})
def aim(ctx: carls.Context) -> Iterator[Any]:
    count = int(ctx.state.get("count", 0)) + 1
    ctx.state["count"] = count
    scores = ctx.table("items").lookup(IDS, fields=("score",))["score"]
    noise = np.array(jax.random.normal(ctx.key, (8, 2)))
    target = ctx.predict(noise) + scores[:, None] + np.float32(count)
    for part in (slice(0, 4), slice(4, 8)):
        # The peers show the maker's state, which nobody else can read.
        yield IDS[part], {"target": target[part], "peer": (IDS[part] + count) % 8}
        if ctx.data is not None:
            ctx.data("in a maker")


@jax.jit
def train_step(state: Any, batch: Any, know: Any) -> tuple[Any, dict[str, jax.Array]]:
    key, used = jax.random.split(state["key"])
    noise = 0.1 * jax.random.normal(used, (4, 2))

    def loss(w: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        wanted = know["own"]["target"] + 0.1 * know["peer"]["z"]
        scores = jnp.square(w[None] * z + noise - wanted).sum(axis=1)
        return scores.mean(), scores

    (_, scores), (for_w, for_z) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        state["model"]["w"], know["own"]["z"]
    )
    updates, moments = OPTIMIZER.update(for_w, state["optimizer"])
    place = jnp.arange(1, 5, dtype=jnp.uint32)
    seen = state["seen"] * jnp.uint32(31) + (batch["id"].astype(jnp.uint32) * place).sum()
    model = {"w": optax.apply_updates(state["model"]["w"], updates)}
    state = {"model": model, "optimizer": moments, "key": key, "seen": seen}
    return state, {"gradient": for_z, "score": scores}


def train(session: carls.Session, config: Any) -> Mapping[str, Any]:
    w = jnp.ones(2)
    state = {
        "model": {"w": w},
        "optimizer": OPTIMIZER.init(w),
        "key": jax.random.key(3),
        "seen": jnp.uint32(0),  # a trace of all batches in their order
    }
    state = session.begin(state)
    batches = Batches({"id": IDS}, batch_size=4, seed=1)
    for step, batch, know in session.look_ahead(
        batches, PLAN, num_steps=config.num_steps, depth=config.depth, writes=WRITES
    ):
        state, outputs = train_step(state, batch, know)
        session.write(step, outputs)
        harm(session.workdir, config.kill, step)
        session.checkpoint(step, state)
    return outcome(session, state)


def harm(workdir: Path, kill: Any, step: int) -> None:
    """Kills what the config names for this step, once in the life of the workdir."""
    for role, at_step in kill.items():
        mark = workdir / f"killed-{role}"
        if step != at_step or mark.exists():
            continue
        mark.touch()
        if role == "pause":
            signal.pause()  # until the test kills the whole program
        (pid,) = {one.pid for one in read_processes(workdir) if one.role == role}
        os.kill(pid, signal.SIGKILL)


def outcome(session: carls.Session, state: Any) -> dict[str, Any]:
    """Returns all that must be the same, as JSON; not the times, which differ by nature."""
    table = session.bank.table("items")
    kinds = ("version", "step", "source", "clock")
    rows = table.lookup(IDS, metadata=kinds)
    table.push(IDS, {"z": np.ones((8, 2))})  # shows the optimizer's state in the bank
    key = jax.random.key_data(state["key"])
    return {
        "state": [np.array(leaf).tolist() for leaf in jax.tree.leaves({**state, "key": key})],
        "values": {name: value.tolist() for name, value in rows.values.items()},
        **{
            kind: {name: value.tolist() for name, value in rows.metadata[kind].items()}
            for kind in kinds
        },
        "z_after_push": table.lookup(IDS)["z"].tolist(),
    }


def make_experiment(config: ConfigDict) -> carls.Experiment:
    return carls.Experiment(
        lambda session: train(session, config), tables=(ITEMS,), makers=(aim,), predict=predict
    )
