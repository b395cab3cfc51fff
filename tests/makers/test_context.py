"""What a maker's function is given does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from carls_jax.bank import LocalBank
from carls_jax.checkpoints import Checkpointer, CheckpointWatcher
from carls_jax.errors import InvalidInputError
from carls_jax.makers import MakerRunner, maker
from carls_jax.makers.context import Predictor, random_key


@maker(writes={"nodes": "label"})
def idle(ctx):
    yield from ()


class Classifier(nnx.Module):
    """Is a network whose predictions need its batch statistics."""

    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers[1](self.norm(self.layers[0](x)))


def predict(variables: Any, x: jax.Array) -> jax.Array:
    model = Classifier(seed=0)
    model.eval()
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, variables)
    return nnx.merge(graph, state)(x)


def trained(seed: int) -> Classifier:
    model = Classifier(seed)
    for shift in range(3):
        model(jnp.linspace(shift, shift + 5, 24).reshape(8, 3))
    return model


class TestPredict:
    def test_a_model_with_batch_statistics_predicts_as_its_trainer_would(
        self, tmp_path: Path, bank: LocalBank, checkpointer: Checkpointer
    ) -> None:
        runner = MakerRunner(idle, bank, predict=predict)
        x = np.linspace(0, 1, 21, dtype=np.float32).reshape(7, 3)
        for step, seed in ((10, 1), (20, 2)):
            model = trained(seed)
            checkpointer.save(step, {"model": nnx.state(model)})
            found = CheckpointWatcher(checkpointer.directory).load(step)
            ours = runner.context(found).predict(x, batch_size=4)
            model.eval()
            np.testing.assert_allclose(ours, model(x), rtol=1e-5, atol=1e-6)
            model.norm.mean[...] = jnp.zeros(4)
            assert not np.allclose(ours, model(x), atol=1e-3)

    def test_it_is_traced_once_for_all_checkpoints_and_numbers_of_inputs(self) -> None:
        traced = []

        def scaled(variables, x):
            traced.append(x.shape)
            return x * variables["weight"]

        predictor = Predictor(scaled)
        for step in (1, 2):
            variables = {"weight": np.float32(step)}
            for num_inputs in (0, 1, 4, 5, 11):
                x = np.arange(3 * num_inputs, dtype=np.float32).reshape(num_inputs, 3)
                found = predictor(variables, x, batch_size=4)
                np.testing.assert_array_equal(found, x * step)
        assert traced == [(4, 3)]

    def test_inputs_and_outputs_may_be_trees(self) -> None:
        def add(variables, inputs):
            return {"sum": inputs["a"] + inputs["b"][:, 0], "a": [inputs["a"]]}

        inputs = {"a": np.arange(3.0, dtype=np.float32), "b": jnp.ones((3, 2))}
        found = Predictor(add)({}, inputs, batch_size=2)
        np.testing.assert_array_equal(found["sum"], [1, 2, 3])
        np.testing.assert_array_equal(found["a"][0], [0, 1, 2])

    def test_the_outputs_are_the_callers_own(self) -> None:
        found = Predictor(lambda variables, x: x)({}, np.ones(4, np.float32), batch_size=4)
        found += 1
        np.testing.assert_array_equal(found, [2, 2, 2, 2])

    @pytest.mark.parametrize("inputs", [{"a": np.ones(3), "b": np.ones(2)}, np.float32(1), [], [1]])
    def test_inputs_without_one_length_are_refused(self, inputs) -> None:
        with pytest.raises(InvalidInputError, match=r"inputs have shapes .*: give arrays \[n, "):
            Predictor(lambda variables, x: x)({}, inputs, batch_size=4)

    def test_outputs_need_a_row_for_each_input(self) -> None:
        with pytest.raises(InvalidInputError, match=r"returned shape \(\) for 4 inputs"):
            Predictor(lambda variables, x: x.sum())({}, np.ones(3), batch_size=4)

    def test_a_batch_has_at_least_one_input(self) -> None:
        with pytest.raises(InvalidInputError, match="batch_size=0"):
            Predictor(lambda variables, x: x)({}, np.ones(3), batch_size=0)

    def test_an_experiment_without_predict_is_told_what_is_missing(self, bank, checkpoint) -> None:
        context = MakerRunner(idle, bank).context(checkpoint(0))
        with pytest.raises(InvalidInputError, match=r"give predict=\.\.\."):
            context.predict(np.ones(3))


class TestCache:
    def test_what_is_computed_once_stays_over_refreshes(self, bank, checkpoint) -> None:
        calls = []

        def build(data):
            calls.append(data)
            return [data]

        runner = MakerRunner(idle, bank, data=7)
        found = [runner.context(checkpoint(step)).cache(build) for step in (0, 10, 20)]
        assert calls == [7]
        assert found[0] is found[2]

    def test_a_lambda_may_be_written_in_place(self, bank, checkpoint) -> None:
        runner = MakerRunner(idle, bank, data=[7])
        found = [runner.context(checkpoint(step)).cache(lambda data: [*data]) for step in (0, 10)]
        assert found[0] is found[1]
        assert runner.context(checkpoint(0)).cache(lambda data: [*data, 1]) == [7, 1]

    def test_functions_that_hold_different_values_are_not_taken_for_each_other(
        self, bank, checkpoint
    ) -> None:
        class Scaled:
            def __init__(self, factor):
                self.factor = factor

            def build(self, data):
                return self.factor * data

        context = MakerRunner(idle, bank, data=7).context(checkpoint(0))
        assert [context.cache(Scaled(factor).build) for factor in (2, 3)] == [14, 21]
        assert [context.cache(lambda data, by=by: by * data) for by in (2, 3)] == [14, 21]
        assert [context.cache(lambda data: by * data) for by in (2, 3)] == [14, 21]  # noqa: B023


class TestKey:
    def test_it_depends_on_seed_maker_worker_and_step_only(self, bank, checkpoint) -> None:
        make = maker(writes={"nodes": "label"}, name="idle")(lambda ctx, keys: None)
        runner = MakerRunner(make, bank, worker=1, num_workers=2, seed=3)
        for _ in range(2):
            key = runner.context(checkpoint(40)).key
            assert jnp.array_equal(
                jax.random.key_data(key), jax.random.key_data(random_key(3, "idle", 1, 40))
            )

    def test_no_two_refreshes_have_the_same(self) -> None:
        keys = {
            tuple(jax.random.key_data(random_key(seed, name, worker, step)).tolist())
            for seed in (0, 1)
            for name in ("a", "b", "x" * 60)
            for worker in (0, 1)
            for step in (0, 1, 10)
        }
        assert len(keys) == 36


class TestDescription:
    def test_it_names_what_there_is_and_prints_no_arrays(self, bank, checkpoint) -> None:
        context = MakerRunner(idle, bank, data=np.zeros(10**6)).context(checkpoint(40))
        context.state["rounds"] = 3
        assert repr(context) == (
            "<Context step=40 worker=0/1 variables=['weight'] data=ndarray bank=LocalBank "
            "state=['rounds']>"
        )
