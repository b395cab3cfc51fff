"""The bank's optimizers by name, each with its hyper-parameters, state and rule.

Names and defaults are optax's (`optax/_src/alias.py`); what they do is in `rules.py`.

The state columns follow from the kernel alone and not from its hyper-parameters, so that those
can be altered while the table lives. Hence no rmsprop with `momentum` or `centered`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from carls_jax.bank import rules
from carls_jax.bank.hyperparameters import Hyperparameters, flag, real
from carls_jax.bank.row_function import RowFunction

_DECAY = "[0, 1)"
_POSITIVE = "(0, inf)"
_NON_NEGATIVE = "[0, inf)"


@dataclass(frozen=True, kw_only=True)
class Kernel(Hyperparameters):
    """Is one update rule with its hyper-parameters; hashable, and equal by value.

    Attributes:
      rule: Machine code.
    """

    kind = "optimizer"
    rule: ClassVar[RowFunction]

    @property
    def fills(self) -> dict[str, float]:
        """The state columns shaped like the row, with the value that new rows have in them."""
        return {}

    @property
    def has_count(self) -> bool:
        """Whether a further column, int32 `count`, holds how often a row was updated."""
        return False

    @property
    @abstractmethod
    def numbers(self) -> tuple[float, ...]:
        """The hyper-parameters, in the order in which the rule reads them."""


@dataclass(frozen=True, kw_only=True)
class SGD(Kernel):
    """Follows the gradient; lazy and dense updates are the same."""

    name = "sgd"
    rule = rules.SGD

    @property
    def numbers(self) -> tuple[float, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Momentum(Kernel):
    """Follows a decaying sum of the row's gradients.

    Source: `optax.trace`; Sutskever et al., 2013 (nesterov).
    """

    name = "momentum"
    rule = rules.MOMENTUM
    momentum: float = real(0.9, within=_DECAY)
    nesterov: bool = flag(False)

    @property
    def fills(self) -> dict[str, float]:
        return {"trace": 0.0}

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.momentum, self.nesterov)


@dataclass(frozen=True, kw_only=True)
class AdaGrad(Kernel):
    """Divides by the root of the sum of squared gradients; lazy and dense updates are the same.

    Source: `optax.scale_by_rss`; Duchi et al., JMLR 2011.
    """

    name = "adagrad"
    rule = rules.ADAGRAD
    initial_accumulator_value: float = real(0.1, within=_NON_NEGATIVE)
    eps: float = real(1e-7, within=_POSITIVE)

    @property
    def fills(self) -> dict[str, float]:
        return {"sum_of_squares": self.initial_accumulator_value}

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.eps,)


@dataclass(frozen=True, kw_only=True)
class RMSProp(Kernel):
    """Divides by the root of a moving average of squared gradients.

    Source: `optax.scale_by_rms`; Hinton, lecture 6 of "Neural networks for machine learning".
    """

    name = "rmsprop"
    rule = rules.RMSPROP
    decay: float = real(0.9, within=_DECAY)
    eps: float = real(1e-8, within=_POSITIVE)
    initial_scale: float = real(0.0, within=_NON_NEGATIVE)
    eps_in_sqrt: bool = flag(True)

    @property
    def fills(self) -> dict[str, float]:
        return {"nu": self.initial_scale}

    @property
    def numbers(self) -> tuple[float, ...]:
        inside, outside = (self.eps, 0.0) if self.eps_in_sqrt else (0.0, self.eps)
        return (self.decay, inside, outside)


@dataclass(frozen=True, kw_only=True)
class Adam(Kernel):
    """Divides a moving average of gradients by the root of one of their squares.

    The bias correction counts the updates of the row itself. It is computed in float64; optax's
    is float32, so that its first updates are off by 6e-6 of themselves.

    Source: `optax.scale_by_adam`; Kingma and Ba (arXiv:1412.6980), algorithm 1.
    """

    name = "adam"
    rule = rules.ADAM
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

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.b1, self.b2, self.eps, self.eps_root, 0.0)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adds the row itself, times `weight_decay`, to Adam's direction; untouched rows do not decay.

    Source: `optax.adamw`; Loshchilov and Hutter (arXiv:1711.05101).
    """

    name = "adamw"
    weight_decay: float = real(1e-4, within=_NON_NEGATIVE)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (*super().numbers[:-1], self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Lion(Kernel):
    """Follows the sign of a moving average of gradients, plus weight decay.

    Source: `optax.lion`; Chen et al. (arXiv:2302.06675), algorithm 2.
    """

    name = "lion"
    rule = rules.LION
    b1: float = real(0.9, within=_DECAY)
    b2: float = real(0.99, within=_DECAY)
    weight_decay: float = real(1e-3, within=_NON_NEGATIVE)

    @property
    def fills(self) -> dict[str, float]:
        return {"mu": 0.0}

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.b1, self.b2, self.weight_decay)


KERNELS: dict[str, type[Kernel]] = {
    kernel.name: kernel for kernel in (SGD, Momentum, AdaGrad, RMSProp, Adam, AdamW, Lion)
}
