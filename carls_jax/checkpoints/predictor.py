"""`predictor`: from a checkpoint's variables back to a model that can be called.

It is here, and not beside the training loop, because makers need it too, and they know nothing of
the trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from carls_jax.checkpoints.leaves import into


def predictor(
    model: nnx.Module, call: Callable[[Any, Any], Any] | None = None
) -> Callable[[Any, Any], Any]:
    """Returns the function `predict(variables, inputs)` of a model, which makers call jitted.

    `variables` are those of a trained model of the same form, as a checkpoint holds them below
    "model": a nested dict, or an NNX state. The model predicts in evaluation mode: without dropout,
    with the batch statistics of training. Variables that do not fit raise InvalidInputError.

    Args:
      model: Says what the variables are; its own values are not kept.
      call: `call(model, inputs)` gives what is predicted, arrays `[n, ...]`. None: `model(inputs)`.
    """
    graph, state = nnx.split(model)
    like = jax.eval_shape(lambda: state)

    def predict(variables: Any, inputs: Any) -> Any:
        restored = nnx.merge(graph, into(like, variables))
        restored.eval()
        return restored(inputs) if call is None else call(restored, inputs)

    return predict
