"""Initializers: the values a row has before anyone wrote it.

They are a function of (seed, key, field name) alone, so a row made twice, on two shards, after a
crash or on another machine is the same row, bit for bit: random bits come from SplitMix64
counters, and values from integer operations and correctly rounded float operations.

n is the number of keys, size the number of values of one row.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import numbers
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from carls_jax.errors import ConfigError, DtypeError, InvalidInputError, NonFiniteError
from carls_jax.keys import GOLDEN_GAMMA, splitmix64, string_keys

_NUM_QUANTILES = 1 << 16
_UNIFORM_STEP = np.float32(2.0**-24)
# Coarse enough that a quantile rounds alike whatever the last bits of the platform's `log`.
_QUANTILE_STEP = 2.0**-20


@dataclasses.dataclass(frozen=True)
class Initializer(abc.ABC):
    """Gives new rows their values. Equal by value; `to_dict` is its form in a file."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Describes the initializer in plain JSON types."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Initializer:
        """Makes the initializer that `to_dict` described.

        Raises:
          ConfigError: The kind or one of its arguments is unknown or missing.
          InvalidInputError: An argument's value cannot work.
        """
        arguments = dict(description)
        kind = arguments.pop("kind", None)
        if kind not in _KINDS:
            raise ConfigError(
                f"an initializer's kind is one of {sorted(_KINDS)}, received {kind!r}"
            )
        names = {field.name for field in dataclasses.fields(_KINDS[kind])}
        if set(arguments) != names:
            raise ConfigError(
                f"initializer {kind!r} takes {sorted(names)}, received {sorted(arguments)}"
            )
        return _KINDS[kind](**arguments)

    @abc.abstractmethod
    def check_dtype(self, dtype: npt.DTypeLike) -> None:
        """Refuses a dtype that cannot hold the values.

        Raises:
          DtypeError: Random values for an integer dtype, or values outside the dtype's range.
        """

    def rows(
        self,
        keys: npt.NDArray[np.int64],
        *,
        seed: int,
        field: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> npt.NDArray[Any]:
        """Computes the initial values of one field: [n, *shape] of `dtype`.

        Args:
          keys: int64 [n]; they may repeat.
          seed: The table's seed; integers that agree modulo 2**64 are the same seed.
          field: Name of the field.
          shape: Shape of one row's value.
          dtype: Float, or any numeric dtype for `zeros` and `constant`.

        Raises:
          DtypeError: See `check_dtype`.
        """
        dtype = np.dtype(dtype)
        self.check_dtype(dtype)
        stream = splitmix64(np.array([int(seed) % 2**64], np.uint64))
        stream ^= string_keys([field]).view(np.uint64)
        states = splitmix64(keys.view(np.uint64) ^ stream)
        return self._values(states, math.prod(shape), dtype).reshape(len(keys), *shape)

    @abc.abstractmethod
    def _values(
        self, states: npt.NDArray[np.uint64], size: int, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Computes [n, size] values from each row's SplitMix64 state, uint64 [n]."""


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """Gives every new row the same value. See `constant`."""

    kind: ClassVar[str] = "constant"
    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite_number(self.value, name="value"))

    def check_dtype(self, dtype: npt.DTypeLike) -> None:
        dtype = np.dtype(dtype)
        if _is_float(dtype):
            _check_range(self.value, dtype)
            return
        if dtype.kind == "b":
            low, high = 0, 1
        elif dtype.kind in "iu":
            low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        else:
            raise DtypeError(f"an initial value needs a numeric dtype, received {dtype}")
        if self.value != int(self.value) or not low <= self.value <= high:
            raise DtypeError(
                f"{dtype} holds whole numbers from {low} to {high}, received {self.value}"
            )

    def _values(
        self, states: npt.NDArray[np.uint64], size: int, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        return np.full((len(states), size), self.value, dtype)


@dataclasses.dataclass(frozen=True)
class Uniform(Initializer):
    """Draws values evenly from [low, high). See `uniform`."""

    kind: ClassVar[str] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, float(_finite_number(getattr(self, name), name=name)))
        if not self.low < self.high:
            raise InvalidInputError(
                f"low must be below high, received low={self.low}, high={self.high}; "
                "for one value use constant(value)"
            )

    def check_dtype(self, dtype: npt.DTypeLike) -> None:
        dtype = np.dtype(dtype)
        _require_float(self, dtype)
        _check_range(self.low, dtype)
        _check_range(self.high, dtype)
        _check_range(self.high - self.low, _work_dtype(dtype))
        low, high = self._bounds(dtype)
        if low == high:
            raise DtypeError(f"{dtype} has no number from {self.low} up to {self.high}")

    def _values(
        self, states: npt.NDArray[np.uint64], size: int, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        bounds = self._bounds(dtype)
        work = _work_dtype(dtype)
        low, high = bounds.astype(work)
        # 24 bits are exact in float32, and so is their product with the step.
        values: npt.NDArray[Any] = (_random_bits(states, size, "<u4") >> np.uint32(8)).astype(work)
        values *= _UNIFORM_STEP
        values *= high - low
        values += low
        # The sum may round up to `high`, which is outside.
        below_high = np.nextafter(bounds[1], bounds[0])
        values = values.astype(dtype, copy=False)
        np.minimum(values, below_high, out=values)
        return values

    def _bounds(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return np.array([self.low, self.high]).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Normal(Initializer):
    """Draws values from a truncated normal distribution. See `normal`."""

    kind: ClassVar[str] = "normal"
    stddev: float
    mean: float

    def __post_init__(self) -> None:
        for name in ("stddev", "mean"):
            object.__setattr__(self, name, float(_finite_number(getattr(self, name), name=name)))
        if not self.stddev > 0:
            raise InvalidInputError(
                f"stddev must be above 0, received {self.stddev}; for one value use constant(value)"
            )

    def check_dtype(self, dtype: npt.DTypeLike) -> None:
        dtype = np.dtype(dtype)
        _require_float(self, dtype)
        _check_range(abs(self.mean) + self.stddev * -float(standard_quantiles()[0]), dtype)

    def _values(
        self, states: npt.NDArray[np.uint64], size: int, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        return _quantiles_of(self, dtype).take(_random_bits(states, size, "<u2"), mode="clip")


_KINDS: dict[str, type[Initializer]] = {kind.kind: kind for kind in (Constant, Uniform, Normal)}


def zeros() -> Initializer:
    """Makes the initializer that gives zeros: `constant(0)`."""
    return Constant(0)


def constant(value: float) -> Initializer:
    """Makes the initializer that gives `value`, for a field of any numeric dtype that holds it.

    Raises:
      InvalidInputError: `value` is not a finite number.
    """
    return Constant(value)


def uniform(low: float, high: float) -> Initializer:
    """Makes the initializer that draws from [low, high), both rounded to the field's dtype.

    A value is one of 2**24 evenly spaced ones, and never `high`.

    Raises:
      InvalidInputError: `low` is not below `high`, or one is not finite.
    """
    return Uniform(low, high)


def normal(stddev: float, mean: float = 0.0) -> Initializer:
    """Makes the initializer that draws from a normal distribution, truncated.

    A value is one of 65,536 equally likely ones, the quantiles at the mid-points
    (i + ½) / 65,536. None is further from `mean` than 4.325 `stddev`; their standard deviation is
    0.99999 `stddev`.

    Raises:
      InvalidInputError: `stddev` is not above 0, or an argument is not finite.
    """
    return Normal(stddev, mean)


@functools.cache
def standard_quantiles() -> npt.NDArray[np.float64]:
    """Computes the table behind `normal`: float64 [65536], rising, symmetric about 0.

    Each is rounded to a multiple of 2**-20. Source: Wichura, algorithm AS 241 (1988), as in
    `statistics.NormalDist`.
    """
    inverse = statistics.NormalDist().inv_cdf
    half = _NUM_QUANTILES // 2
    lower = np.array([inverse((i + 0.5) / _NUM_QUANTILES) for i in range(half)])
    lower = np.rint(lower / _QUANTILE_STEP) * _QUANTILE_STEP
    return np.concatenate([lower, -lower[::-1]])


@functools.lru_cache(maxsize=32)
def _quantiles_of(normal: Normal, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return (standard_quantiles() * normal.stddev + normal.mean).astype(dtype)


def _random_bits(states: npt.NDArray[np.uint64], size: int, dtype: str) -> npt.NDArray[Any]:
    """Draws [n, size] unsigned integers of `dtype`, the same on machines of any byte order."""
    num_words = -(-size * np.dtype(dtype).itemsize // 8)
    words = states[:, None] + np.arange(num_words, dtype=np.uint64) * GOLDEN_GAMMA
    words = splitmix64(words, out=words)
    return words.astype("<u8", copy=False).view(dtype)[:, :size]


def _finite_number(value: object, *, name: str) -> float:
    """Converts a number to Python's int or float, the types of JSON."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if not isinstance(value, numbers.Real):
        raise InvalidInputError(f"{name} must be a number, received {value!r}")
    if not math.isfinite(value):
        raise NonFiniteError(f"{name} must be finite, received {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_float(dtype: np.dtype[Any]) -> bool:
    # bfloat16 comes from ml_dtypes, whose kind NumPy does not know.
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Gives the dtype that uniform values are computed in: at least float32."""
    return np.result_type(dtype, np.float32)


def _require_float(initializer: Initializer, dtype: np.dtype[Any]) -> None:
    if not _is_float(dtype):
        raise DtypeError(
            f"{initializer} needs a float dtype, received {dtype}; use zeros() or constant(value)"
        )


def _check_range(value: float, dtype: np.dtype[Any]) -> None:
    with np.errstate(over="ignore"):
        held = float(np.float64(value).astype(dtype))
    if not math.isfinite(held):
        raise DtypeError(f"{dtype} cannot hold the initial value {value}")
