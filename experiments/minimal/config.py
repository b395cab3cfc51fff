"""The shortest whole experiment: classify digits, pulled towards what a maker believes.

carls-jax launch --config experiments/minimal/config.py --workdir runs/minimal
"""

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import carls_jax as carls

DIGITS = carls.TableSpec("digits", {"belief": carls.Field((10,))})


def get_config():
    return ConfigDict({"num_steps": 300, "batch_size": 64, "learning_rate": 3e-3})


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def neighbors(data):
    return NearestNeighbors(n_neighbors=6).fit(data["x"]).kneighbors(return_distance=False)


@carls.maker(writes={"digits": "belief"})
def smooth(ctx):  # what the model believes of an image's neighbours, once per checkpoint
    belief = ctx.predict(ctx.data["x"])[ctx.cache(neighbors)].mean(axis=1)
    yield ctx.data["id"], {"belief": belief}


def make_experiment(config):
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    data = {
        "x": x[:1297],
        "id": np.arange(1297),
        "label": np.where(np.arange(1297) < 50, labels[:1297], -1),
    }
    graph, params = nnx.split(Model(nnx.Rngs(config.run.seed)))
    optimizer = optax.adam(config.learning_rate)

    def loss(params, batch, belief):
        logits = nnx.merge(graph, params)(batch["x"])
        labelled = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"].clip(0))
        believed = optax.softmax_cross_entropy(logits, belief["belief"]) * belief.mask
        return jax.numpy.where(batch["label"] >= 0, labelled, 0.3 * believed).mean()

    @jax.jit
    def train_step(state, batch, know):
        value, gradient = jax.value_and_grad(loss)(state["model"], batch, know["own"])
        updates, moments = optimizer.update(gradient, state["optimizer"])
        return {"model": optax.apply_updates(state["model"], updates), "optimizer": moments}, value

    def batches():
        rng = np.random.default_rng(config.run.seed)
        while True:
            chosen = np.append(
                rng.integers(0, 50, 16), rng.integers(0, 1297, config.batch_size - 16)
            )
            yield {name: column[chosen] for name, column in data.items()}

    def train(session):
        state = session.begin({"model": params, "optimizer": optimizer.init(params)})
        plan = {"own": carls.Lookup(DIGITS, "belief", keys="id")}
        for step, batch, know in session.look_ahead(batches(), plan, num_steps=config.num_steps):
            state, value = train_step(state, batch, know)
            session.log(step, {"loss": value})
            session.checkpoint(step, state)
        correct = nnx.merge(graph, state["model"])(x[1297:]).argmax(-1) == labels[1297:]
        return {"test_accuracy": float(correct.mean())}

    predict = carls.predictor(Model(nnx.Rngs(0)), lambda model, x: jax.nn.softmax(model(x)))
    return carls.Experiment(train, tables=(DIGITS,), makers=(smooth,), predict=predict, data=data)
