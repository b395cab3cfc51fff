"""Families of frozen dataclasses whose fields say which values they allow.

    @dataclass(frozen=True, kw_only=True)
    class Adagrad(Kernel):
        name = "adagrad"
        eps: float = real(1e-7, within="(0, inf)")

Optimizer kernels and learning-rate schedules are such families. Their values are plain JSON
types, so that specs can be hashed, compared, stored and sent.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from carls_jax.errors import ConfigError

FamilyMember = TypeVar("FamilyMember", bound="Hyperparameters")


@dataclass(frozen=True)
class Allowed:
    """Says which values a hyper-parameter takes.

    Attributes:
      text: The allowed values in words, for error messages.
      read: Returns a value in its plain type, or raises ValueError.
    """

    text: str
    read: Callable[[Any], Any]

    def check(self, value: object, *, argument: str) -> Any:
        """Returns the value in its plain type; raises ConfigError if it is not allowed."""
        try:
            return self.read(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{argument}={value!r}; allowed is {self.text}") from None


def number_within(interval: str) -> Allowed:
    """Returns what allows the numbers of an interval such as "[0, 1)", rounded to float32.

    Rows are float32: an eps of 1e-60 is zero there and a decay of 1 - 1e-12 is one.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    with_low, with_high = interval[0] == "[", interval[-1] == "]"

    def read(value: Any) -> float:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise ValueError
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.float32(value))
        above = rounded > low or (with_low and rounded == low)
        below = rounded < high or (with_high and rounded == high)
        if not (above and below and np.isfinite(rounded)):
            raise ValueError
        return float(value)

    return Allowed(f"a finite float32 number in {interval}", read)


def whole_from(minimum: int) -> Allowed:
    """Returns what allows whole numbers of at least `minimum`."""

    def read(value: Any) -> int:
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
            raise ValueError
        return int(value)

    return Allowed(f"a whole number of at least {minimum}", read)


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError
    return bool(value)


def real(default: object = MISSING, *, within: str) -> Any:
    """Declares a float within an interval; a default of None makes None a value too."""
    return declared(default, number_within(within))


def whole(default: object = MISSING, *, minimum: int) -> Any:
    """Declares an int of at least `minimum`."""
    return declared(default, whole_from(minimum))


def flag(default: bool) -> Any:
    """Declares a bool."""
    return declared(default, Allowed("True or False", _read_flag))


def declared(default: object, allowed: Allowed) -> Any:
    """Declares a dataclass field of which `Hyperparameters` checks the values."""
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Is the root of such a family; checks every value when one is made.

    Raises:
      ConfigError: A value is not allowed; the message says what is.
    """

    kind: ClassVar[str]  # the function that makes one: "optimizer" or "schedule"
    name: ClassVar[str]

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.default is None:
                continue
            argument = f"{self.kind}({self.name!r}): {one.name}"
            value = one.metadata["allowed"].check(value, argument=argument)
            object.__setattr__(self, one.name, value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the name and every value, the defaults too, as plain JSON types."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"name": self.name} | {name: _plain(value) for name, value in values.items()}


def make(
    member: type[FamilyMember], arguments: Mapping[str, Any], *, also: Iterable[str] = ()
) -> FamilyMember:
    """Makes a member of a family from named arguments.

    `also` names further arguments that the caller takes itself, for the messages.

    Raises:
      ConfigError: An argument is unknown, missing or not allowed.
    """
    call = f"{member.kind}({member.name!r})"
    allowed = [one.name for one in fields(member)]
    for name in arguments:
        if name not in allowed:
            raise ConfigError(f"{call} takes no {name!r}{nearest(name, [*allowed, *also])}")
    missing = [one.name for one in fields(member) if one.default is MISSING]
    missing = [name for name in missing if name not in arguments]
    if missing:
        raise ConfigError(f"{call} needs {', '.join(missing)}; it takes {', '.join(allowed)}")
    return member(**arguments)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns the end of an error message: the allowed names, and the one that was meant."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{meant} Allowed are {', '.join(allowed)}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
