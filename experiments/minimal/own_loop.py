"""A training loop of one's own, one's own loader, and a maker beside it, in one process."""

import jax
import numpy as np
from sklearn.datasets import load_digits

import carls_jax as carls

x, y = (load_digits().data / 16).astype(np.float32), load_digits().target
digits = carls.TableSpec("digits", {"difficulty": carls.Field(init=carls.init.constant(1.0))})
picks = np.random.default_rng(0).integers(0, 1297, (500, 64))
loader = ({"id": i, "x": x[i], "y": y[i]} for i in picks)  # any iterable of dicts


def predict(variables, images):
    return jax.nn.softmax(images @ variables["w"])


@carls.maker(writes={"digits": "difficulty"})
def score(ctx):  # how wrong the model is on each training image, once per checkpoint
    yield np.arange(1297), {"difficulty": 1 - ctx.predict(x[:1297])[np.arange(1297), y[:1297]]}


@jax.jit
def train_step(w, batch, difficulty):  # difficult images count more
    def loss(w):
        log_p = jax.nn.log_softmax(batch["x"] @ w)
        return -(difficulty * log_p[jax.numpy.arange(len(log_p)), batch["y"]]).mean()

    return w - 0.5 * jax.grad(loss)(w)


plan = {"own": carls.Lookup(digits, "difficulty", keys="id", create=True)}
config = carls.SessionConfig(carls.lockstep(every_steps=50))
with carls.session(tables=[digits], makers=[score], predict=predict, config=config) as session:
    state = session.begin({"model": {"w": jax.numpy.zeros((64, 10))}})
    for step, batch, know in session.look_ahead(loader, plan):
        state = {"model": {"w": train_step(state["model"]["w"], batch, know["own"]["difficulty"])}}
        session.checkpoint(step, state)
print(f"test accuracy {(predict(state['model'], x[1297:]).argmax(-1) == y[1297:]).mean():.3f}")
