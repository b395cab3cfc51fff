"""The update rules of the bank's optimizers, as NumPy kernels over blocks of rows.

B is the number of rows of a block, W the numbers in a row. A kernel turns the gradients of a
block into a direction and moves the rows' state on; `RowOptimizer` subtracts the direction, times
the learning rate. Every operation is element-wise and rounded as IEEE 754 says, so a row comes
out the same, bit for bit, whatever the rows beside it. No JAX: kernels run in host callbacks too.

Formulas, names and defaults are optax's (`optax/_src/transform.py`, `alias.py`), except that each
row keeps its own state and count, and does not change while it is not touched.

The state columns follow from the kernel alone and not from its hyper-parameters, so that those
can be altered while the table lives. Hence no rmsprop with `momentum` or `centered`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.hyperparameters import Hyperparameters, flag, real

Array = NDArray[Any]

_DECAY = "[0, 1)"
_POSITIVE = "(0, inf)"
_NON_NEGATIVE = "[0, inf)"
_MAX_COUNT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Block:
    """Holds the rows that a kernel works on at once, all views of the caller's arrays.

    Attributes:
      values: `[B, W]` the rows before the update; read only.
      gradients: `[B, W]` read only.
      state: `[B, W]` or, for a count, `[B, 1]`; moved on in place.
      direction: `[B, W]` room for the answer.
      scratch: `[B, W]` room for intermediate values.
    """

    values: Array
    gradients: Array
    state: Mapping[str, Array]
    direction: Array
    scratch: Array


@dataclass(frozen=True, kw_only=True)
class Kernel(Hyperparameters):
    """Is one update rule with its hyper-parameters; hashable, and equal by value."""

    kind = "optimizer"

    @property
    def fills(self) -> dict[str, float]:
        """The state columns shaped like the row, with the value that new rows have in them."""
        return {}

    @property
    def has_count(self) -> bool:
        """Whether a further column, int32 `count`, holds how often a row was updated."""
        return False

    @abstractmethod
    def direction(self, block: Block) -> Array:
        """Moves the block's state on; returns `[B, W]`, which is to be subtracted."""


@dataclass(frozen=True, kw_only=True)
class SGD(Kernel):
    """Follows the gradient; lazy and dense updates are the same."""

    name = "sgd"

    def direction(self, block: Block) -> Array:
        return block.gradients


@dataclass(frozen=True, kw_only=True)
class Momentum(Kernel):
    """Follows a decaying sum of the row's gradients.

    Source: `optax.trace`; Sutskever et al., 2013 (nesterov).
    """

    name = "momentum"
    momentum: float = real(0.9, within=_DECAY)
    nesterov: bool = flag(False)

    @property
    def fills(self) -> dict[str, float]:
        return {"trace": 0.0}

    def direction(self, block: Block) -> Array:
        trace = block.state["trace"]
        np.multiply(trace, self.momentum, out=trace)
        np.add(block.gradients, trace, out=trace)
        if not self.nesterov:
            return trace
        np.multiply(trace, self.momentum, out=block.direction)
        return np.add(block.gradients, block.direction, out=block.direction)


@dataclass(frozen=True, kw_only=True)
class AdaGrad(Kernel):
    """Divides by the root of the sum of squared gradients; lazy and dense updates are the same.

    Source: `optax.scale_by_rss`; Duchi et al., JMLR 2011.
    """

    name = "adagrad"
    initial_accumulator_value: float = real(0.1, within=_NON_NEGATIVE)
    eps: float = real(1e-7, within=_POSITIVE)

    @property
    def fills(self) -> dict[str, float]:
        return {"sum_of_squares": self.initial_accumulator_value}

    def direction(self, block: Block) -> Array:
        sum_of_squares, root = block.state["sum_of_squares"], block.scratch
        np.multiply(block.gradients, block.gradients, out=root)
        np.add(root, sum_of_squares, out=sum_of_squares)
        np.sqrt(np.add(sum_of_squares, self.eps, out=root), out=root)
        return np.divide(block.gradients, root, out=block.direction)


@dataclass(frozen=True, kw_only=True)
class RMSProp(Kernel):
    """Divides by the root of a moving average of squared gradients.

    Source: `optax.scale_by_rms`; Hinton, lecture 6 of "Neural networks for machine learning".
    """

    name = "rmsprop"
    decay: float = real(0.9, within=_DECAY)
    eps: float = real(1e-8, within=_POSITIVE)
    initial_scale: float = real(0.0, within=_NON_NEGATIVE)
    eps_in_sqrt: bool = flag(True)

    @property
    def fills(self) -> dict[str, float]:
        return {"nu": self.initial_scale}

    def direction(self, block: Block) -> Array:
        nu, root = block.state["nu"], block.scratch
        _average_of_squares(nu, block.gradients, decay=self.decay, scratch=root)
        if self.eps_in_sqrt:
            np.sqrt(np.add(nu, self.eps, out=root), out=root)
        else:
            np.add(np.sqrt(nu, out=root), self.eps, out=root)
        return np.divide(block.gradients, root, out=block.direction)


@dataclass(frozen=True, kw_only=True)
class Adam(Kernel):
    """Divides a moving average of gradients by the root of one of their squares.

    The bias correction counts the updates of the row itself. It is computed in float64; optax's
    is float32, so that its first updates are off by 6e-6 of themselves.

    Source: `optax.scale_by_adam`; Kingma and Ba (arXiv:1412.6980), algorithm 1.
    """

    name = "adam"
    b1: float = real(0.9, within=_DECAY)
    b2: float = real(0.999, within=_DECAY)
    eps: float = real(1e-8, within=_POSITIVE)
    eps_root: float = real(0.0, within=_NON_NEGATIVE)

    @property
    def fills(self) -> dict[str, float]:
        return {"mu": 0.0, "nu": 0.0}

    @property
    def has_count(self) -> bool:
        return True

    def direction(self, block: Block) -> Array:
        mu, nu, count = block.state["mu"], block.state["nu"], block.state["count"]
        direction, root = block.direction, block.scratch
        _average(mu, block.gradients, decay=self.b1, scratch=root)
        _average_of_squares(nu, block.gradients, decay=self.b2, scratch=root)
        np.add(count, count < _MAX_COUNT, out=count)
        np.divide(nu, _bias_correction(self.b2, count, mu.dtype), out=root)
        if self.eps_root:
            np.add(root, self.eps_root, out=root)
        np.add(np.sqrt(root, out=root), self.eps, out=root)
        np.divide(mu, _bias_correction(self.b1, count, mu.dtype), out=direction)
        return np.divide(direction, root, out=direction)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adds the row itself, times `weight_decay`, to Adam's direction; untouched rows do not decay.

    Source: `optax.adamw`; Loshchilov and Hutter (arXiv:1711.05101).
    """

    name = "adamw"
    weight_decay: float = real(1e-4, within=_NON_NEGATIVE)

    def direction(self, block: Block) -> Array:
        direction = super().direction(block)
        return _add_decay(direction, block.values, self.weight_decay, scratch=block.scratch)


@dataclass(frozen=True, kw_only=True)
class Lion(Kernel):
    """Follows the sign of a moving average of gradients, plus weight decay.

    Source: `optax.lion`; Chen et al. (arXiv:2302.06675), algorithm 2.
    """

    name = "lion"
    b1: float = real(0.9, within=_DECAY)
    b2: float = real(0.99, within=_DECAY)
    weight_decay: float = real(1e-3, within=_NON_NEGATIVE)

    @property
    def fills(self) -> dict[str, float]:
        return {"mu": 0.0}

    def direction(self, block: Block) -> Array:
        mu, average, scratch = block.state["mu"], block.direction, block.scratch
        np.copyto(average, mu)
        _average(average, block.gradients, decay=self.b1, scratch=scratch)
        _average(mu, block.gradients, decay=self.b2, scratch=scratch)
        sign = np.sign(average, out=scratch)  # in place it takes six times as long
        return _add_decay(sign, block.values, self.weight_decay, scratch=average)


KERNELS: dict[str, type[Kernel]] = {
    kernel.name: kernel for kernel in (SGD, Momentum, AdaGrad, RMSProp, Adam, AdamW, Lion)
}


def _average(average: Array, new: Array, *, decay: float, scratch: Array) -> None:
    """Moves `average` to decay * average + (1 - decay) * new."""
    np.multiply(average, decay, out=average)
    np.add(np.multiply(new, 1.0 - decay, out=scratch), average, out=average)


def _average_of_squares(average: Array, new: Array, *, decay: float, scratch: Array) -> None:
    """Moves `average` to decay * average + (1 - decay) * new**2."""
    _average(average, np.multiply(new, new, out=scratch), decay=decay, scratch=scratch)


def _bias_correction(decay: float, count: Array, dtype: np.dtype[Any]) -> Array:
    """Returns 1 - decay**count, rounded to the rows' dtype."""
    return (1.0 - np.power(decay, count)).astype(dtype)


def _add_decay(direction: Array, values: Array, weight_decay: float, *, scratch: Array) -> Array:
    """Returns direction + weight_decay * values, in `scratch`."""
    np.multiply(values, weight_decay, out=scratch)
    return np.add(direction, scratch, out=scratch)
