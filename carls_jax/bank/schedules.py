"""Learning-rate schedules: optax's, as plain float arithmetic.

Optax's own dispatch JAX, which a bank must not do inside a host callback. Names, arguments and
values are those of `optax.schedules` without the suffix `_schedule`; a step below 0 counts as 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from carls_jax.bank.hyperparameters import (
    Allowed,
    Hyperparameters,
    declared,
    flag,
    make,
    nearest,
    number_within,
    real,
    whole,
    whole_from,
)
from carls_jax.errors import ConfigError

_NON_NEGATIVE = "[0, inf)"
_POSITIVE = "(0, inf)"


@dataclass(frozen=True, kw_only=True)
class Schedule(Hyperparameters):
    """Gives a learning rate for each step; hashable, and equal by value."""

    kind = "schedule"

    @abstractmethod
    def at(self, step: int) -> float:
        """Returns the learning rate at a step."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Schedule:
        """Makes the schedule that `to_dict` described."""
        arguments = dict(data)
        return schedule(arguments.pop("name"), **arguments)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Stays at one value."""

    name = "constant"
    value: float = real(within=_NON_NEGATIVE)

    def at(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Goes from `init_value` to `end_value` in `transition_steps`, in a straight line."""

    name = "linear"
    init_value: float = real(within=_NON_NEGATIVE)
    end_value: float = real(within=_NON_NEGATIVE)
    transition_steps: int = whole(minimum=1)
    transition_begin: int = whole(0, minimum=0)

    def at(self, step: int) -> float:
        return (self.init_value - self.end_value) * self._remaining(step) + self.end_value

    def _remaining(self, step: int) -> float:
        elapsed = min(max(step - self.transition_begin, 0), self.transition_steps)
        return 1.0 - elapsed / self.transition_steps


@dataclass(frozen=True, kw_only=True)
class Polynomial(Linear):
    """Goes the way of `Linear`, along the remaining fraction raised to `power`."""

    name = "polynomial"
    power: float = real(within=_POSITIVE)

    def _remaining(self, step: int) -> float:
        return math.pow(super()._remaining(step), self.power)


@dataclass(frozen=True, kw_only=True)
class ExponentialDecay(Schedule):
    """Shrinks by `decay_rate` every `transition_steps`, never below `end_value`."""

    name = "exponential_decay"
    init_value: float = real(within=_NON_NEGATIVE)
    transition_steps: int = whole(minimum=1)
    decay_rate: float = real(within="(0, 1]")
    transition_begin: int = whole(0, minimum=0)
    staircase: bool = flag(False)
    end_value: float | None = real(None, within=_NON_NEGATIVE)

    def at(self, step: int) -> float:
        exponent = max(step - self.transition_begin, 0) / self.transition_steps
        if self.staircase:
            exponent = math.floor(exponent)
        return max(self.init_value * math.pow(self.decay_rate, exponent), self.end_value or 0.0)


@dataclass(frozen=True, kw_only=True)
class CosineDecay(Schedule):
    """Falls from `init_value` to `alpha * init_value` along half a cosine of `decay_steps`.

    Source: Loshchilov and Hutter (arXiv:1608.03983), equation 5.
    """

    name = "cosine_decay"
    init_value: float = real(within=_NON_NEGATIVE)
    decay_steps: int = whole(minimum=1)
    alpha: float = real(0.0, within="[0, 1]")
    exponent: float = real(1.0, within=_POSITIVE)

    def at(self, step: int) -> float:
        remaining = math.pow(_half_cosine(step, self.decay_steps), self.exponent)
        return self.init_value * ((1.0 - self.alpha) * remaining + self.alpha)


@dataclass(frozen=True, kw_only=True)
class WarmupCosineDecay(Schedule):
    """Rises in a straight line to `peak_value`, then falls along half a cosine to `end_value`.

    `decay_steps` counts the warm-up too.
    """

    name = "warmup_cosine_decay"
    init_value: float = real(within=_NON_NEGATIVE)
    peak_value: float = real(within=_POSITIVE)
    warmup_steps: int = whole(minimum=0)
    decay_steps: int = whole(minimum=1)
    end_value: float = real(0.0, within=_NON_NEGATIVE)
    exponent: float = real(1.0, within=_POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_steps <= self.warmup_steps:
            raise ConfigError(
                f"schedule('warmup_cosine_decay', decay_steps={self.decay_steps}): it counts the "
                f"warm-up too, so allowed is more than warmup_steps={self.warmup_steps}"
            )

    def at(self, step: int) -> float:
        step = max(step, 0)
        if step < self.warmup_steps:
            risen = step / self.warmup_steps
            return (self.peak_value - self.init_value) * risen + self.init_value
        cosine = _half_cosine(step - self.warmup_steps, self.decay_steps - self.warmup_steps)
        remaining = math.pow(cosine, self.exponent)
        return (self.peak_value - self.end_value) * remaining + self.end_value


def _read_boundaries(value: Any) -> tuple[tuple[int, float], ...]:
    """Reads `{step: scale}`, or pairs of them, which is what JSON can hold."""
    read_step, read_scale = whole_from(0).read, number_within(_NON_NEGATIVE).read
    try:
        pairs = list(value.items() if isinstance(value, Mapping) else value)
        scales = {read_step(step): read_scale(scale) for step, scale in pairs}
    except TypeError:  # not a sequence of pairs
        raise ValueError from None
    if len(scales) < len(pairs):
        raise ValueError
    return tuple(sorted(scales.items()))


@dataclass(frozen=True, kw_only=True)
class PiecewiseConstant(Schedule):
    """Starts at `init_value` and is multiplied by a scale from each boundary step on."""

    name = "piecewise_constant"
    init_value: float = real(within=_NON_NEGATIVE)
    boundaries_and_scales: tuple[tuple[int, float], ...] = declared(
        MISSING, Allowed("{step: scale, ...}, each step once and none negative", _read_boundaries)
    )

    def at(self, step: int) -> float:
        reached = [scale for boundary, scale in self.boundaries_and_scales if step >= boundary]
        return math.prod(reached, start=self.init_value)


SCHEDULES: dict[str, type[Schedule]] = {
    member.name: member
    for member in (
        Constant,
        Linear,
        Polynomial,
        ExponentialDecay,
        CosineDecay,
        WarmupCosineDecay,
        PiecewiseConstant,
    )
}


def schedule(name: str, **arguments: Any) -> Schedule:
    """Makes a learning-rate schedule, which is read at the step of each push.

    Args:
      name: One of `SCHEDULES`.
      **arguments: Those of the optax schedule of that name.

    Raises:
      ConfigError: The name or an argument is unknown, missing or cannot work.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"schedule({name!r}) is unknown{nearest(name, SCHEDULES)}")
    return make(SCHEDULES[name], arguments)


def _half_cosine(step: int, num_steps: int) -> float:
    """Falls from 1 at step 0 to 0 at `num_steps`."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(step, 0), num_steps) / num_steps))
