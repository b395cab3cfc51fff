"""The shared training loop: what it trains, what it pushes, and that it goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import carls_jax as carls
from carls_jax import metrics
from carls_jax.checkpoints import predictor
from carls_jax.data.batches import Batches
from carls_jax.errors import ConfigError, InvalidInputError
from carls_jax.training import Task, TrainerConfig, fit

WORDS = carls.TableSpec(
    "words",
    {
        "z": carls.Field(
            (2,),
            init=carls.init.uniform(-1.0, 1.0),
            optimizer=carls.optimizer("sgd", learning_rate=0.05),
        ),
        "loss": carls.Field(),
        "peers": carls.Field((2,), dtype="int64"),
    },
)
PLAN = {"word": carls.Lookup(WORDS, "z", keys="id", create=True)}
SGD = optax.sgd(0.05)
LOCKSTEP = carls.SessionConfig(carls.lockstep(every_steps=4), log_every_steps=2)
IDS = np.random.default_rng(0).integers(0, 6, (20, 3))
BATCHES = Batches({"id": IDS, "y": IDS.sum(axis=1).astype(np.float32) / 5}, batch_size=5)


class Sum(nnx.Module):
    """Adds up the projections of words: float32 `[B, L, 2]` to `[B]`."""

    def __init__(self, seed: int = 0) -> None:
        self.project = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(seed))

    def __call__(self, z: Any) -> jax.Array:
        return self.project(z).sum(axis=(1, 2))


class Noisy(nnx.Module):
    """Has batch statistics and a random key: float32 `[B, 2]` to `[B]`."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.normalize = nnx.BatchNorm(2, use_scale=False, use_bias=False, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2, 1, use_bias=False, rngs=rngs)])

    def __call__(self, x: Any) -> jax.Array:
        return self.layers[0](self.drop(self.normalize(x)))[:, 0]


def word_loss(model: Any, batch: Any, know: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    losses = jnp.square(model(know["word"]["z"]) - batch["y"])
    return losses.mean(), {"largest": losses.max()}


def noisy_loss(model: Any, batch: Any, know: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    return jnp.square(model(batch["x"]) - batch["y"]).mean(), {}


def config(num_steps: int = 12, *, depth: int = 1) -> TrainerConfig:
    return TrainerConfig(num_steps, optimizer=SGD, look_ahead_depth=depth)


def lines_of(session: carls.Session) -> list[dict[str, Any]]:
    return metrics.read(session.workdir / "metrics/trainer-0.jsonl")[0]


@pytest.fixture
def session() -> Iterator[carls.Session]:
    with carls.session(tables=[WORDS], config=LOCKSTEP) as session:
        yield session


def test_the_loss_falls() -> None:
    model, task = Sum(), Task(word_loss, PLAN, trainable=("word",))
    with carls.session(tables=[WORDS], config=carls.SessionConfig(log_every_steps=1)) as session:
        trained = fit(session, model, task, BATCHES, config(200, depth=2))
        losses = [line["loss"] for line in lines_of(session)]

    assert trained is model
    assert losses[-1] < 0.01 * losses[0]


def test_rows_are_trained_as_a_dense_embedding_is(session: carls.Session) -> None:
    table = session.bank.table("words")
    dense = {
        "z": jnp.asarray(table.lookup(np.arange(6), create=True)["z"]),
        "kernel": Sum().project.kernel[...],
    }

    @jax.jit
    def dense_step(parameters: Any, batch: Any) -> Any:
        def loss(parameters: Any) -> jax.Array:
            words = parameters["z"][batch["id"]]
            return jnp.square((words @ parameters["kernel"]).sum(axis=(1, 2)) - batch["y"]).mean()

        step = jax.grad(loss)(parameters)
        return jax.tree.map(lambda value, slope: value - 0.05 * slope, parameters, step)

    batches = iter(BATCHES)
    for _ in range(12):
        dense = dense_step(dense, next(batches))
    model = fit(session, Sum(), Task(word_loss, PLAN, trainable=("word",)), BATCHES, config())

    assert_allclose(table.lookup(np.arange(6))["z"], dense["z"], rtol=1e-5)
    assert_allclose(model.project.kernel[...], dense["kernel"], rtol=1e-5)
    assert_array_equal(np.unique(table.lookup(np.arange(6)).step["z"]), [11, 12])


def test_rows_that_were_not_found_get_no_gradient(session: carls.Session) -> None:
    table = session.bank.table("words")
    table.update([1, 2], {"peers": [[3, 9], [-1, 3]]})
    table.update([3], {"z": [[1.0, 1.0]]}, step=0)
    plan = {"peer": carls.Lookup(WORDS, "peers", keys="id").then("z")}

    def loss(model: Any, batch: Any, know: Any) -> Any:
        return (know["peer"]["z"] + 1.0).sum() + 0.0 * model.project.kernel.sum(), {}

    batches = [{"id": np.array([1, 2])}]
    fit(session, Sum(), Task(loss, plan, trainable=("peer",)), batches, config(1))

    assert_allclose(table.lookup([3])["z"], [[0.9, 0.9]], rtol=1e-6)  # 1 - 0.05 for each of two
    assert len(table) == 3


def test_what_is_not_trainable_is_left_alone(session: carls.Session) -> None:
    fit(session, Sum(), Task(word_loss, PLAN), BATCHES, config(3))
    assert session.bank.table("words").lookup(np.arange(6)).step["z"].max() == -1


def test_outputs_are_written_and_the_rest_are_metrics(session: carls.Session) -> None:
    def loss(model: Any, batch: Any, know: Any) -> Any:
        value, told = word_loss(model, batch, know)
        return value, {**told, "each": jnp.ones(batch["id"].shape)}

    writes = {"each": carls.Update(WORDS, "loss", keys="id")}
    fit(session, Sum(), Task(loss, PLAN, writes), BATCHES, config(3))

    rows = session.bank.table("words").lookup(np.arange(6))
    assert_array_equal(rows["loss"], np.ones(6))
    assert [line["step"] for line in lines_of(session)] == [2, 3]
    assert all({"loss", "largest"} <= line.keys() for line in lines_of(session))
    assert "each" not in lines_of(session)[0]


def test_entries_that_are_not_numbers_reach_the_plan_and_not_the_loss() -> None:
    spec = carls.TableSpec("named", {"z": WORDS.field("z")}, keys="str")

    def loss(model: Any, batch: Any, know: Any) -> Any:
        assert set(batch) == {"y"}
        return word_loss(model, batch, know)

    plan = {"word": carls.Lookup(spec, "z", keys="name", create=True)}
    batches = [{"name": np.array([["a", "b"]]), "y": np.ones(1, np.float32)}] * 2
    with carls.session(tables=[spec], config=LOCKSTEP) as session:
        fit(session, Sum(), Task(loss, plan, trainable=("word",)), batches, config(2))
        assert session.bank.table("named").lookup(["a", "b"]).step["z"].tolist() == [2, 2]


X = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
NOISY_BATCHES = Batches({"x": X, "y": X[:, 0]}, batch_size=4)


def leaves_of(model: nnx.Module) -> list[np.ndarray]:
    key_data = jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ),
        nnx.state(model),
    )
    return [np.array(leaf) for leaf in jax.tree.leaves(key_data)]


def test_batch_statistics_and_random_keys_are_carried_along(session: carls.Session) -> None:
    before = leaves_of(Noisy())
    after = leaves_of(fit(session, Noisy(), Task(noisy_loss), NOISY_BATCHES, config(5)))
    changed = [not np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
    # The key stays, its count, the batch statistics and the kernel do not.
    assert changed.count(False) == 1
    assert 5 in [leaf.tolist() for leaf in after if leaf.shape == ()]


class Stop(Exception):
    """Ends a run in its middle."""


@pytest.mark.parametrize("stop_at", [4, 8])
def test_a_run_that_was_stopped_goes_on_to_the_same_model(tmp_path: Path, stop_at: int) -> None:
    def trained(workdir: Path, *, stop_at: int | None = None) -> tuple[list[np.ndarray], Any]:
        def evaluate(model: Any) -> Mapping[str, float]:
            if session.bank.stats().clocks["main"] == stop_at:
                raise Stop
            return {}

        def loss(model: Any, batch: Any, know: Any) -> Any:
            return jnp.square(model(batch["x"]) + know["word"]["z"].sum(1) - 1.0).mean(), {}

        batches = Batches({"x": X, "id": np.arange(20)}, batch_size=4)
        task = Task(loss, PLAN, trainable=("word",), evaluate=evaluate)
        with carls.session(workdir=workdir, tables=[WORDS], config=LOCKSTEP) as session:
            model = fit(session, Noisy(), task, batches, config(depth=3))
            return leaves_of(model), session.bank.table("words").to_numpy()["z"]

    with pytest.raises(Stop):
        trained(tmp_path / "stopped", stop_at=stop_at)
    stopped, whole = trained(tmp_path / "stopped"), trained(tmp_path / "whole")

    jax.tree.map(assert_array_equal, stopped, whole)


def test_a_model_is_evaluated_after_each_checkpoint(session: carls.Session) -> None:
    def evaluate(model: Any) -> Mapping[str, Any]:
        assert model.drop.deterministic
        assert model.normalize.use_running_average
        return {"kernel": model.layers[0].kernel[0, 0]}

    fit(session, Noisy(), Task(noisy_loss, evaluate=evaluate), NOISY_BATCHES, config(6))
    lines = [line for line in lines_of(session) if "kernel" in line]

    assert [line["step"] for line in lines] == [4, 6]
    assert lines[0]["kernel"] != lines[1]["kernel"]


def test_makers_predict_with_the_model_that_was_trained(tmp_path: Path) -> None:
    seen = []

    @carls.maker(writes={"words": "loss"})
    def predict_all(ctx: carls.Context) -> Iterator[Any]:
        seen.append(ctx.predict(X))
        yield np.arange(20), {"loss": seen[-1]}

    with carls.session(
        tables=[WORDS], makers=[predict_all], predict=predictor(Noisy(seed=9)), config=LOCKSTEP
    ) as session:
        model = fit(session, Noisy(), Task(noisy_loss), NOISY_BATCHES, config(4))
    model.eval()

    assert len(seen) == 2
    assert_allclose(seen[-1], model(X), rtol=1e-6)


def test_without_an_optimizer_adam_is_used(session: carls.Session) -> None:
    model = Sum()
    before = np.array(model.project.kernel[...])
    with jax.numpy_dtype_promotion("standard"):
        fit(session, model, Task(word_loss, PLAN), BATCHES, TrainerConfig(1, learning_rate=0.25))
    # The first step of Adam is the learning rate, whatever the gradient.
    assert_allclose(np.abs(model.project.kernel[...] - before), 0.25, rtol=1e-4)


def test_lookups_that_cannot_be_trained_are_refused(session: carls.Session) -> None:
    with pytest.raises(InvalidInputError, match="'words' is not in the plan, which has word"):
        Task(word_loss, PLAN, trainable=("words",))
    plan = {"loss": carls.Lookup(WORDS, "loss", keys="id")}
    with pytest.raises(InvalidInputError, match="reads loss, but table 'words' has no optimizer"):
        fit(session, Sum(), Task(word_loss, plan, trainable=("loss",)), BATCHES, config())
    spec = carls.TableSpec("opinions", {"z": WORDS.field("z")}, per_source=True)
    session.bank.table(spec)
    plan = {"all": carls.Lookup(spec, "z", keys="id")}
    with pytest.raises(InvalidInputError, match="table 'opinions' is per_source"):
        fit(session, Sum(), Task(word_loss, plan, trainable=("all",)), BATCHES, config())


@pytest.mark.parametrize(
    "values", [{"num_steps": 0}, {"look_ahead_depth": 0}, {"learning_rate": 0.0}]
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"{name}=0"):
        TrainerConfig(**{"num_steps": 1, **values})
