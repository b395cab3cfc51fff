"""`SessionConfig`: how a training loop works together with the makers."""

from __future__ import annotations

from dataclasses import dataclass, field

from carls_jax.errors import ConfigError
from carls_jax.makers import Schedule, asynchronous
from carls_jax.training.away import WhenAway


@dataclass(frozen=True)
class SessionConfig:
    """Says how a training loop works together with the makers.

    Attributes:
      schedule: When makers refresh, and which rows a step may see.
      checkpoint_every_steps: Steps between checkpoints; in lockstep the schedule's own period.
      checkpoints_kept: Newest checkpoints that are kept, at least 5, and more than the delay of a
        lockstep schedule.
      log_every_steps: Steps between lines of metrics.
      max_pending_writes: Steps whose writes may be under way before a step waits for the oldest.
      lockstep_timeout_s: How long a step in lockstep waits for the makers, in seconds.
      when_away: What the training loop does when the bank is away; in lockstep it waits or fails.
    """

    schedule: Schedule = field(default_factory=asynchronous)
    checkpoint_every_steps: int = 100
    checkpoints_kept: int = 5
    log_every_steps: int = 50
    max_pending_writes: int = 4
    lockstep_timeout_s: float = 600.0
    when_away: WhenAway = field(default_factory=WhenAway)

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "log_every_steps", "max_pending_writes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: allowed is 1 and more")
        if self.checkpoints_kept < 5:
            raise ConfigError(f"checkpoints_kept={self.checkpoints_kept}: allowed is 5 and more")
        if self.lockstep_timeout_s <= 0:
            raise ConfigError(f"lockstep_timeout_s={self.lockstep_timeout_s}: give a positive time")
        if self.schedule.is_lockstep and self.when_away.policy == "last_seen":
            raise ConfigError(
                "when_away.policy='last_seen': in lockstep a step sees the rows of its checkpoint "
                "and no others; allowed are 'wait' and 'fail'"
            )
        delay = self.schedule.delay
        if isinstance(delay, int) and delay >= self.checkpoints_kept:
            raise ConfigError(
                f"checkpoints_kept={self.checkpoints_kept}: with delay={delay} makers still use "
                f"checkpoint {delay} before the newest; keep at least {delay + 1}"
            )

    @property
    def period_steps(self) -> int:
        """Steps from one checkpoint to the next."""
        if self.schedule.is_lockstep:
            return self.schedule.every_steps
        return self.checkpoint_every_steps
