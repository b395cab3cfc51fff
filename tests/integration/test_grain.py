"""Grain's loaders feed a session, and a run that is resumed goes on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import LocalBank
from carls_jax.metrics import MetricsWriter

NUM_IDS = 10
NODES = carls.TableSpec(
    "nodes",
    {
        "z": carls.Field(
            (2,),
            init=carls.init.uniform(-1.0, 1.0),
            optimizer=carls.optimizer("adagrad", learning_rate=0.5),
        ),
        "next": carls.Field((), dtype="int64"),
    },
)
PLAN = {
    "own": carls.Lookup(NODES, "z", keys="id", create=True),
    "next": carls.Lookup(NODES, "next", keys="id").then("z", create=True),
}
WRITES = {
    "gradient": carls.Push(NODES, "z", keys="id"),
    "next": carls.Update(NODES, "next", keys="id"),
}
CONFIG = carls.SessionConfig(carls.lockstep(every_steps=3))


def example(number: Any) -> dict[str, Any]:
    return {"id": np.int64(number), "x": np.float32(number) / 10}


class Example(grain.transforms.Map):
    def map(self, element: Any) -> dict[str, Any]:
        return example(element)


def map_dataset() -> Iterable[Any]:
    numbers = grain.MapDataset.source(np.arange(NUM_IDS)).seed(1).shuffle()
    return numbers.map(example).repeat().batch(4)


def data_loader() -> Iterable[Any]:
    return grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, NUM_IDS, 1),
        sampler=grain.samplers.IndexSampler(
            num_records=NUM_IDS,
            shuffle=True,
            seed=3,
            shard_options=grain.sharding.NoSharding(),
        ),
        operations=[Example(), grain.transforms.Batch(batch_size=4)],
        worker_count=0,
    )


def run(workdir: Path, batches: Iterable[Any], *, num_steps: int) -> list[Any]:
    """Runs, or resumes, a loop and returns what each step got."""
    seen = []
    with (
        LocalBank(workdir / "bank", source="trainer") as bank,
        MetricsWriter(workdir, "trainer-0") as metrics,
        carls.Session(bank, workdir, CONFIG, metrics=metrics) as session,
    ):
        bank.table(NODES)
        state = session.begin({"model": {"w": jnp.zeros(2)}})
        steps = session.look_ahead(batches, PLAN, depth=3, writes=WRITES)
        for step, batch, know in steps:
            arrays = [batch["x"], know["own"]["z"], know["next"]["z"], know["next"].mask]
            seen.append((step, batch["id"].tolist(), [np.asarray(one).tolist() for one in arrays]))
            pull = np.asarray(know["own"]["z"]) - batch["x"][:, None]
            session.write(step, {"gradient": pull, "next": (batch["id"] + step) % NUM_IDS})
            session.checkpoint(step, state)
            if step == num_steps:
                break
    return seen


@pytest.mark.parametrize("make", [map_dataset, data_loader])
def test_a_resumed_run_gets_the_batches_and_knowledge_of_one_that_went_on(
    make: Callable[[], Iterable[Any]], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", make(), num_steps=7)
    # It stops two steps after its last checkpoint, with two more steps fetched.
    first = run(tmp_path / "killed", make(), num_steps=5)
    rest = run(tmp_path / "killed", make(), num_steps=7)

    assert [step for step, *_ in whole] == list(range(1, 8))
    assert first == whole[:5]
    assert rest == whole[3:]
    assert len({tuple(ids) for _, ids, _ in whole}) > 5  # shuffled anew in each epoch
