"""`WhenAway`: what a training loop does when its bank is away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from carls_jax.errors import ConfigError

LEAST_SEEN_BYTES = 1 << 20


@dataclass(frozen=True)
class WhenAway:
    """Says what a training loop does when its bank, or one server of it, is away.

    Attributes:
      policy: "wait": calls are tried again until the bank answers, so that nothing is lost; in
        lockstep the run ends as if the bank had never been away. "last_seen": the loop goes on with
        the rows that it saw last, and what it writes is kept and sent when the bank is back. Rows
        of servers that answer stay fresh. "fail": the call raises BankUnavailableError.
      patience_s: Seconds that a call may go unanswered before the bank counts as away. It holds for
        the bank that `carls_jax.session` connects to; another bank object has its own deadline.
      wait_s: For how many seconds a call then waits for the bank, before it raises
        BankUnavailableError. An hour outlasts the restart of a machine. With "last_seen" it holds
        where there is no way but to wait: at the end of a run.
      max_seen_bytes: With "last_seen": of the rows that are remembered, in memory. The oldest are
        forgotten; rows that are not remembered come back as not found. At least 1 MiB, or 0: none.
      max_kept_bytes: With "last_seen": of the writes that are kept, in memory. The oldest are
        dropped, counted and told.

    Raises:
      ConfigError: A value is out of range.
    """

    policy: Literal["wait", "last_seen", "fail"] = "wait"
    patience_s: float = 30.0
    wait_s: float = 3600.0
    max_seen_bytes: int = 256 << 20
    max_kept_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.policy not in ("wait", "last_seen", "fail"):
            raise ConfigError(f"policy={self.policy!r}: allowed are 'wait', 'last_seen' and 'fail'")
        for name in ("patience_s", "wait_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: give a positive time")
        if self.max_kept_bytes < 0:
            raise ConfigError(f"max_kept_bytes={self.max_kept_bytes}: allowed is 0 and more")
        if self.max_seen_bytes and self.max_seen_bytes < LEAST_SEEN_BYTES:
            raise ConfigError(
                f"max_seen_bytes={self.max_seen_bytes}: allowed are 0 and from {LEAST_SEEN_BYTES}"
            )
