"""When makers refresh, and which rows a training step may see: `Schedule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from carls_jax.errors import ConfigError

Delay = int | Literal["once", "never"]


@dataclass(frozen=True)
class Schedule:
    """Says how makers keep step with the trainer; made by `asynchronous` or `lockstep`.

    Attributes:
      every_steps: In lockstep, steps between checkpoints. 0: not in lockstep.
      delay: In lockstep, how many checkpoints the makers are behind. "once": they run on the first
        checkpoint only. "never": they do not run. Asynchronous makers have 0, "once" or "never".
    """

    every_steps: int = 0
    delay: Delay = 0

    def __post_init__(self) -> None:
        if not _is_count(self.every_steps):
            raise ConfigError(f"every_steps={self.every_steps!r}: allowed are integers from 1")
        if not (_is_count(self.delay) or self.delay in ("once", "never")):
            raise ConfigError(
                f"delay={self.delay!r}: allowed are integers from 0, 'once' and 'never'"
            )
        if not self.is_lockstep and self.delay not in (0, "once", "never"):
            raise ConfigError(
                f"delay={self.delay}: only makers in lockstep have a fixed delay; give lockstep("
                "every_steps=..., delay=...)"
            )

    @property
    def is_lockstep(self) -> bool:
        """Whether the trainer waits for the makers at each checkpoint."""
        return self.every_steps > 0

    def used_checkpoint(self, step: int) -> int | None:
        """Returns the checkpoint that makers refresh from once checkpoint `step` is there.

        None: they leave the rows as they are.
        """
        if self.delay == "never":
            return None
        if self.delay == "once":
            return 0 if step == 0 else None
        if self.delay and step % self.every_steps:
            return None  # the last one of a run, between two others: nothing new is old enough
        used = step - int(self.delay) * self.every_steps
        return used if used >= 0 else None


def asynchronous(*, delay: Literal["once", "never"] | None = None) -> Schedule:
    """Lets makers refresh from the newest checkpoint whenever they are ready.

    With `delay` "once" they refresh from the first checkpoint only, with "never" not at all.
    """
    return Schedule(delay=0 if delay is None else delay)


def lockstep(every_steps: int, *, delay: Delay = 0) -> Schedule:
    """Makes runs repeatable: at step s the trainer sees the rows of checkpoint s - delay * K.

    K is `every_steps`, the period of the checkpoints. The trainer waits at each checkpoint until
    the makers are done, makers run one after another in the program's order, and each lookup waits
    for the pushes before it.

    Args:
      every_steps: Steps between checkpoints, at least 1.
      delay: How many checkpoints the makers are behind, or "once" or "never".

    Raises:
      ConfigError: An argument is out of range.
    """
    if every_steps == 0:  # what `Schedule` takes for asynchronous
        raise ConfigError("every_steps=0: allowed are integers from 1")
    return Schedule(every_steps=every_steps, delay=delay)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
