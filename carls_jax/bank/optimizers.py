"""The optimizers that a field may name: what they are called, and how they reach the rows.

A pushed gradient moves only the rows that it names. For sgd and adagrad that is exactly what the
dense optimizer would do with zero gradients elsewhere. The others differ, on purpose: in a row
that is not touched, momentum and moving averages stand still, weights do not decay and Adam's
count does not advance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from carls_jax.bank.hyperparameters import make, nearest, number_within
from carls_jax.bank.kernels import KERNELS, Kernel
from carls_jax.bank.rules import NUMBERS_SIZE
from carls_jax.bank.schedules import Schedule
from carls_jax.errors import DtypeError, OptimizerNotAllowedError

_MIXES_ROWS = {
    "adafactor": "it factors its moments over rows and columns",
    "adaptive_grad_clip": "it takes norms over several rows",
    "clip_by_block_rms": "it takes a mean square over all rows",
    "clip_by_global_norm": "it takes one norm over all rows",
    "fromage": "it scales by a norm over all rows",
    "lamb": "it scales by a norm over all rows",
    "lars": "it scales by a norm over all rows",
    "lbfgs": "it uses inner products over all rows",
    "muon": "it orthogonalizes all rows together",
    "noisy_sgd": "its noise depends on which rows are in the batch",
    "novograd": "it averages a norm over all rows",
    "polyak_sgd": "its step length uses a norm over all rows",
    "sm3": "it takes maxima over rows and columns",
}


@dataclass(frozen=True)
class OptimizerSpec:
    """Describes a field's optimizer; hashable, and equal by value. `optimizer` makes one.

    Attributes:
      kernel: The update rule with its hyper-parameters.
      learning_rate: A number, or a schedule of the push's step.
      clip: Largest absolute value of a gradient's element; None: no limit.
      clip_row_norm: Largest L2 norm of a row's gradient, after `clip`; None: no limit.
    """

    kernel: Kernel
    learning_rate: float | Schedule
    clip: float | None = None
    clip_row_norm: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.learning_rate, Schedule):
            self._check("learning_rate", "[0, inf)")
        for limit in ("clip", "clip_row_norm"):
            if getattr(self, limit) is not None:
                self._check(limit, "(0, inf)")

    def _check(self, name: str, interval: str) -> None:
        argument = f"optimizer({self.name!r}): {name}"
        value = number_within(interval).check(getattr(self, name), argument=argument)
        object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """Name of the update rule."""
        return self.kernel.name

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a push at a step."""
        rate = self.learning_rate
        return rate.at(step) if isinstance(rate, Schedule) else rate

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as plain JSON types."""
        rate = self.learning_rate
        return self.kernel.to_dict() | {
            "learning_rate": rate.to_dict() if isinstance(rate, Schedule) else rate,
            "clip": self.clip,
            "clip_row_norm": self.clip_row_norm,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> OptimizerSpec:
        """Makes the spec that `to_dict` described."""
        arguments = dict(data)
        if isinstance(arguments["learning_rate"], Mapping):
            arguments["learning_rate"] = Schedule.from_dict(arguments["learning_rate"])
        return optimizer(arguments.pop("name"), **arguments)


def optimizer(
    name: str,
    *,
    learning_rate: float | Schedule,
    clip: float | None = None,
    clip_row_norm: float | None = None,
    **hyperparameters: Any,
) -> OptimizerSpec:
    """Describes an optimizer that the bank applies to pushed gradients, row by row.

    Args:
      name: One of `KERNELS`: sgd, momentum, adagrad, rmsprop, adam, adamw, lion.
      learning_rate: At least 0, or a `schedule`, which is read at the push's step.
      clip: Largest absolute value of a gradient's element.
      clip_row_norm: Largest L2 norm of a row's gradient, after `clip`.
      **hyperparameters: Optax's of that optimizer, with optax's defaults.

    Raises:
      OptimizerNotAllowedError: The optimizer is unknown, or would mix rows.
      ConfigError: A hyper-parameter is unknown or cannot work.
    """
    for mixer in (name, *hyperparameters):
        if mixer in _MIXES_ROWS:
            raise OptimizerNotAllowedError(
                f"{mixer!r} mixes rows ({_MIXES_ROWS[mixer]}), so a row's update would depend on "
                f"the batch that it came in. Allowed are {', '.join(KERNELS)}, each with clip=... "
                "and clip_row_norm=..."
            )
    if not isinstance(name, str):
        raise OptimizerNotAllowedError(
            f"optimizer({name!r}): give a name, one of {', '.join(sorted(KERNELS))}"
        )
    if name not in KERNELS:
        raise OptimizerNotAllowedError(f"optimizer({name!r}) is unknown{nearest(name, KERNELS)}")
    own = ("learning_rate", "clip", "clip_row_norm")
    kernel = make(KERNELS[name], hyperparameters, also=own)
    return OptimizerSpec(kernel, learning_rate, clip, clip_row_norm)


@dataclass(frozen=True)
class StateField:
    """Describes a column of optimizer state.

    Attributes:
      shape: Shape of one row's state.
      dtype: Element type.
      fill: Value in every element of a new row.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float


class RowOptimizer:
    """Is a field's optimizer for rows of a shape and dtype; see `row_pusher` for what applies it.

    Holds nothing that changes, so threads may share it.

    Attributes:
      spec: What it was made from.
      width: Elements of a row.
      dtype: Their type.
      state_fields: The columns of state that each row has.
      rule: Where the machine code of the update rule is.
    """

    def __init__(self, spec: OptimizerSpec, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.spec = spec
        self.dtype = np.dtype(dtype)
        self.width = math.prod(shape)
        if self.dtype not in (np.float32, np.float64):
            raise DtypeError(
                f"optimizer({spec.name!r}) of a field of dtype {self.dtype}: allowed are float32 "
                "and float64"
            )
        self.state_fields = {
            name: StateField(shape, self.dtype, fill) for name, fill in spec.kernel.fills.items()
        }
        if spec.kernel.has_count:
            self.state_fields["count"] = StateField((), np.dtype(np.int32), 0)
        self.rule = spec.kernel.rule.address(self.dtype)

    def numbers(self, step: int) -> list[float]:
        """Returns what the rule reads in a push at a step; see `rules`."""
        clip, norm = (
            math.inf if limit is None else limit
            for limit in (self.spec.clip, self.spec.clip_row_norm)
        )
        known = [self.spec.learning_rate_at(step), clip, norm, *self.spec.kernel.numbers]
        return known + [0.0] * (NUMBERS_SIZE - len(known))


def row_optimizer(spec: OptimizerSpec, shape: tuple[int, ...], dtype: DTypeLike) -> RowOptimizer:
    """Returns what applies `spec` to rows of a shape and dtype.

    Raises:
      DtypeError: The dtype is not float32 or float64.
    """
    return RowOptimizer(spec, shape, dtype)
