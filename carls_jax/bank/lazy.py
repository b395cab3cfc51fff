"""`Lazy`: a field gathers pushed gradients and applies them together, when its rows are read.

Source: CARLS (arXiv:2105.12849), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from carls_jax.bank.hyperparameters import Allowed, number_within


def _read_combine(value: Any) -> str:
    if value not in ("mean", "sum"):
        raise ValueError
    return str(value)


_ALLOWED = {
    "max_wait_s": number_within("(0, inf)"),
    "combine": Allowed("'mean' or 'sum'", _read_combine),
    "clip_row_norm": number_within("(0, inf)"),
    "reject_above": number_within("[1, inf)"),
}
_OPTIONAL = ("clip_row_norm", "reject_above")


@dataclass(frozen=True, kw_only=True)
class Lazy:
    """Says how a field gathers gradients.

    What was gathered for a row is applied, as one gradient, before anything else reads or
    overwrites the field in that row, and after `max_wait_s` in any case. So a reader finds all that
    was pushed before. Among the gradients of trainers that do not wait for one another, some are
    made with old parameters: the mean, the clip and the rejection are against these.

    Attributes:
      max_wait_s: Seconds after which gradients are applied though nobody reads the row; the bank
        looks every quarter of it, so they may have waited a quarter longer.
      combine: "mean": a row moves as by one push of the usual size, however many there were; "sum":
        as by all of them.
      clip_row_norm: Largest L2 norm of a gathered gradient; larger ones are scaled down to it. The
        optimizer's own clips are for what they are combined to. None: no limit.
      reject_above: A gradient is left out if its L2 norm, before the clip, is more than so many
        times the row's usual norm: the moving average of the norms pushed to the row, each with a
        weight of 0.1, at most so many times the average, and zeros left out. The first gradient of
        a row makes the average. None: none is left out.
    """

    max_wait_s: float = 10.0
    combine: Literal["mean", "sum"] = "mean"
    clip_row_norm: float | None = None
    reject_above: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                value = allowed.check(value, argument=f"Lazy: {name}")
                object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Lazy:
        """Makes what `to_dict` described."""
        return Lazy(**data)
