"""An experiment that runs in a second: makers write numbers, the trainer adds them up."""

from __future__ import annotations

import os
import signal

import numpy as np
from ml_collections import ConfigDict

import carls_jax as carls
from carls_jax.launch import read_processes

NUM_KEYS = 8
NUMBERS = carls.TableSpec(
    "numbers", {"double": carls.Field((2,), history=3), "triple": carls.Field()}
)
WORDS = carls.TableSpec("words", {"length": carls.Field(dtype="int64")}, keys="str")


def get_config():
    # `kills` names a replica that step 3 kills.
    return ConfigDict({"num_steps": 6, "rate": 0.5, "sizes": (1, 2), "kills": ""})


@carls.maker(reads="numbers", writes={"numbers": "double", "words": "length"})
def whole(ctx):
    """Refreshes all rows at once."""
    yield "numbers", ctx.data, {"double": np.stack([ctx.data, ctx.data + ctx.variables["w"]], -1)}
    yield "words", ["one", "three"], {"length": [3, 5]}


@carls.maker(writes={"numbers": "triple"}, keys=lambda data: data, batch_size=3)
def each(ctx, keys):
    """Makes the rows of some keys."""
    return {"triple": 3.0 * keys}


def kill(workdir, name):
    (pid,) = (replica.pid for replica in read_processes(workdir) if replica.name == name)
    os.kill(pid, signal.SIGKILL)


def make_experiment(config):
    def train(session):
        state = session.begin({"model": {"w": np.zeros((), np.float32)}})
        batches = ({"id": np.arange(step, step + 3) % NUM_KEYS} for step in range(config.num_steps))
        plan = {"row": carls.Lookup(NUMBERS, ("double", "triple"), keys="id")}
        for step, _, know in session.look_ahead(batches, plan, num_steps=config.num_steps):
            values = know["row"].values
            w = state["model"]["w"] + config.rate * np.float32(np.sum(values["double"]))
            state = {"model": {"w": w + np.float32(np.sum(values["triple"]))}}
            session.log(step, {"w": state["model"]["w"]})
            session.checkpoint(step, state)
            if step == 3 and config.kills:
                kill(session.workdir, config.kills)
        return {"w": float(state["model"]["w"]), "note": "not a number"}

    return carls.Experiment(
        train, tables=(NUMBERS, WORDS), makers=(whole, each), data=np.arange(NUM_KEYS)
    )
