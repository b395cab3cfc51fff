"""`Context`: what a maker's function is given."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeVar

import jax
import numpy as np

from carls_jax.bank import Bank, Table
from carls_jax.errors import InvalidInputError

T = TypeVar("T")
Predict = Callable[[Any, Any], Any]


class Predictor:
    """Runs an experiment's `predict(variables, inputs)` in batches of one shape.

    It is compiled once, whatever number of checkpoints and inputs follow.
    """

    def __init__(self, predict: Predict | None) -> None:
        self._predict = None if predict is None else jax.jit(predict)

    def __call__(self, variables: Any, inputs: Any, *, batch_size: int) -> Any:
        """Predicts for inputs `[n, ...]`; returns NumPy outputs `[n, ...]`, any pytree of them."""
        if self._predict is None:
            raise InvalidInputError(
                "ctx.predict needs the experiment's predict(variables, inputs): give predict=..."
            )
        arrays = jax.tree.map(np.asarray, inputs)
        num_inputs = _num_inputs(arrays, batch_size)
        variables = jax.device_put(variables)  # once, not at each batch
        outputs = [
            self._predict(variables, _batch(arrays, start, batch_size))
            for start in range(0, max(num_inputs, 1), batch_size)
        ]
        _check_outputs(outputs[0], batch_size)
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_inputs], *outputs)


def _num_inputs(inputs: Any, batch_size: int) -> int:
    if batch_size < 1:
        raise InvalidInputError(f"batch_size={batch_size}: allowed is 1 and more")
    shapes = [array.shape for array in jax.tree.leaves(inputs)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise InvalidInputError(f"inputs have shapes {shapes}: give arrays [n, ...] of one n")
    return int(shapes[0][0])


def _batch(inputs: Any, start: int, size: int) -> Any:
    """Returns the inputs from `start` on, padded with zeros to `size`."""

    def padded(array: np.ndarray) -> np.ndarray:
        part = array[start : start + size]
        return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

    return jax.tree.map(padded, inputs)


def _check_outputs(outputs: Any, batch_size: int) -> None:
    for output in jax.tree.leaves(outputs):
        if output.shape[:1] != (batch_size,):
            raise InvalidInputError(
                f"predict(variables, inputs) returned shape {output.shape} for {batch_size} "
                "inputs: return arrays [n, ...], a row for each input"
            )


@dataclass(frozen=True, repr=False)
class Context:
    """Gives a maker's function the checkpoint, the data and the bank.

    A function uses it like this:

        belief = ctx.predict(ctx.data["x"])               # the model of this checkpoint
        graph = ctx.cache(build_graph)                    # build_graph(ctx.data), the first time
        rows = ctx.table("nodes").lookup(keys, fields=("embedding",))
        ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
        ctx.log({"entropy": entropy(belief)})             # beside rows_written, lag_steps, ...

    Attributes:
      step: Step of the checkpoint; the rows are written with it.
      variables: Nested dict of NumPy arrays: the "model" of the trainer's state.
      data: What the experiment loaded.
      bank: The bank.
      key: A random key, of the seed, the maker, the worker and the step.
      state: A dict of NumPy arrays and numbers that is kept from one refresh to the next, also over
        restarts; empty at first. A run that is put back finds the state of then.
      worker: Which worker this is, from 0.
      num_workers: How many workers share the maker's keys.
    """

    step: int
    variables: Any
    data: Any
    bank: Bank
    key: jax.Array
    state: dict[str, Any]
    worker: int
    num_workers: int
    _predictor: Predictor
    _cached: dict[Any, Any]
    metrics: dict[str, float] = field(default_factory=dict)

    def predict(self, inputs: Any, *, batch_size: int = 1024) -> Any:
        """Runs the model of this checkpoint on inputs.

        Args:
          inputs: An array `[n, ...]` or a pytree of such; n may be 0.
          batch_size: Inputs per call of the compiled function. The last batch is padded with zeros,
            so the experiment's `predict` must treat each input by itself. Another size or dtype
            is compiled anew.

        Returns:
          NumPy arrays `[n, ...]`, in the structure that the experiment's `predict` returns.

        Raises:
          InvalidInputError: The experiment has no `predict`, or a shape cannot be.
        """
        return self._predictor(self.variables, inputs, batch_size=batch_size)

    def table(self, name: str) -> Table:
        """Returns a table of the bank."""
        return self.bank.table(name)

    def cache(self, compute: Callable[[Any], T]) -> T:
        """Returns `compute(data)`, computed once in the life of this worker.

        A lambda that uses nothing but its argument may be written in place. What else is made anew
        at each call, such as a function that uses local names, is computed each time and kept.
        """
        key = _cache_key(compute)
        if key not in self._cached:
            self._cached[key] = compute(self.data)
        value: T = self._cached[key]
        return value

    def log(self, metrics: Mapping[str, float]) -> None:
        """Adds numbers to the line of metrics that is written for this refresh."""
        self.metrics.update(metrics)

    def __repr__(self) -> str:
        # The generated one would print all arrays.
        return (
            f"<Context step={self.step} worker={self.worker}/{self.num_workers} "
            f"variables={sorted(self.variables)} data={type(self.data).__name__} "
            f"bank={type(self.bank).__name__} state={sorted(self.state)}>"
        )


def random_key(seed: int, name: str, worker: int, step: int) -> jax.Array:
    """Returns the random key of one refresh."""
    key = jax.random.key(seed)
    for number in (zlib.crc32(name.encode()), worker, step):
        key = jax.random.fold_in(key, number)
    return key


def _cache_key(compute: Callable[[Any], Any]) -> Any:
    """Returns what stays the same when a lambda's line is run again."""
    if not isinstance(compute, FunctionType) or compute.__closure__ or compute.__defaults__:
        return compute
    return compute.__module__, compute.__code__
