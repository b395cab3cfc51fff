"""From variables back to a model that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from carls_jax.checkpoints import Checkpointer, CheckpointWatcher, predictor
from carls_jax.errors import InvalidInputError

X = np.arange(12, dtype=np.float32).reshape(6, 2)


class Model(nnx.Module):
    """Has parameters in a list, batch statistics and a random key."""

    def __init__(self, seed: int, *, width: int = 3) -> None:
        rngs = nnx.Rngs(seed)
        self.normalize = nnx.BatchNorm(2, use_scale=False, use_bias=False, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2, width, use_bias=False, rngs=rngs)])

    def __call__(self, x: Any) -> jax.Array:
        return self.layers[0](self.drop(self.normalize(x)))


@pytest.fixture
def trained() -> Model:
    model = Model(0)
    model(X)  # moves the batch statistics and the random key's count
    return model


def test_a_checkpoint_predicts_as_the_model_that_was_saved(tmp_path: Path, trained: Model) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, {"model": nnx.state(trained)})
    variables = CheckpointWatcher(tmp_path).load(3).variables
    predict = jax.jit(predictor(Model(1)))
    trained.eval()

    assert_allclose(predict(variables, X), trained(X), rtol=1e-6)
    trained.normalize.mean[...] = jnp.ones(2)
    assert not np.allclose(predict(variables, X), trained(X))


def test_it_predicts_from_the_state_of_a_training_loop(trained: Model) -> None:
    found = predictor(Model(1))(nnx.state(trained), X)
    trained.eval()
    assert_array_equal(found, trained(X))


def test_a_call_of_ones_own_is_used(trained: Model) -> None:
    predict = predictor(trained, lambda model, x: {"norm": model.normalize(x["x"])})
    found = jax.jit(predict)(nnx.state(trained), {"x": X})
    trained.eval()
    assert_allclose(found["norm"], trained.normalize(X), rtol=1e-6)


def test_the_model_itself_stays_as_it_is(trained: Model) -> None:
    before = nnx.state(trained.normalize)
    predictor(trained)(nnx.state(Model(1)), X)

    assert not trained.drop.deterministic
    jax.tree.map(assert_array_equal, before, nnx.state(trained.normalize))


def test_variables_that_do_not_fit_are_refused(trained: Model) -> None:
    variables = nnx.state(trained)
    with pytest.raises(InvalidInputError, match=r"layers/0/kernel is float32\[2, 3\]"):
        jax.jit(predictor(Model(0, width=4)))(variables, X)
    parameters = nnx.state(trained, nnx.Param)
    with pytest.raises(InvalidInputError, match="missing: drop/rngs/count"):
        jax.jit(predictor(trained))(parameters, X)
