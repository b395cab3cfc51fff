"""What a program is: roles, how many of each, and what happens when one of them dies.

A program is data. It names no process, port or machine, so the same one can be handed to any
launcher (`carls_jax.launch.local` runs it on this machine).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from carls_jax.errors import ConfigError

# No hyphen: `maker-0` is the name of the first replica of the role `maker`.
ROLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class RestartPolicy:
    """Says how often a replica that died is started again before the program gives up.

    Attributes:
      max_restarts: Restarts allowed within any `window_s`; 0 means never. The default forgives an
        occasional death and reports a crash loop within a few seconds.
      window_s: Seconds after which a restart is forgotten.
      first_delay_s: Seconds before the first restart; each further one within the window waits
        twice as long as the one before.
      max_delay_s: Longest wait, in seconds.

    Raises:
      ConfigError: A value is out of range, or the waits alone fill the window, so that a crash
        loop would never be noticed.
    """

    max_restarts: int = 3
    window_s: float = 600.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ConfigError(f"max_restarts is {self.max_restarts}; give 0 (never) or more")
        if not 0 <= self.first_delay_s <= self.max_delay_s:
            raise ConfigError(
                f"first_delay_s is {self.first_delay_s} and max_delay_s {self.max_delay_s}; "
                "give 0 <= first_delay_s <= max_delay_s"
            )
        waits_s = sum(self.delay_s(restart) for restart in range(self.max_restarts))
        if not self.window_s > waits_s:
            raise ConfigError(
                f"window_s is {self.window_s}, but {self.max_restarts} restarts wait {waits_s} s "
                "in all, so a crash loop would never be noticed; give a longer window_s"
            )

    def delay_s(self, recent_restarts: int) -> float:
        """Returns the seconds to wait after `recent_restarts` restarts within the window."""
        return min(self.max_delay_s, self.first_delay_s * 2.0**recent_restarts)


@dataclass(frozen=True)
class Role:
    """Describes one role of a program and the command that each of its replicas runs.

    `{index}` in an argument or in a value of `environment` becomes the replica's number.

    Attributes:
      name: Letters, digits and underscores; replicas are called `<name>-<index>`.
      argv: The command: a program that can be found, and its arguments.
      count: Number of replicas, at least 1.
      is_service: False: it has finished when it exits with code 0, and the program has finished
        when all such roles have. True: it serves the others until then; should it end
        before, with whatever exit code, it is started again.
      stop_order: Roles of a lower number are stopped first, and have ended before the next are
        told: makers before the bank that they write to.
      restarts: What happens when a replica dies.
      environment: Variables set on top of the launcher's own.

    Raises:
      ConfigError: A value is not of this kind.
    """

    name: str
    argv: tuple[str, ...]
    count: int = 1
    is_service: bool = False
    stop_order: int = 0
    restarts: RestartPolicy = RestartPolicy()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not ROLE_NAME.fullmatch(self.name):
            raise ConfigError(
                f"role name {self.name!r} must be a letter, then letters, digits or underscores"
            )
        is_command = isinstance(self.argv, tuple) and self.argv
        if not is_command or not all(isinstance(argument, str) for argument in self.argv):
            raise ConfigError(
                f"argv of role {self.name!r} is {self.argv!r}; give a tuple of strings such as "
                "('carls-jax', 'bank')"
            )
        if self.count < 1:
            raise ConfigError(
                f"count of role {self.name!r} is {self.count}; give 1 or more, or leave it out"
            )

    def replica_name(self, index: int) -> str:
        """Returns the name of a replica, as logs, metrics and errors use it."""
        return f"{self.name}-{index}"

    def replica_argv(self, index: int) -> tuple[str, ...]:
        """Returns the command of the replica with this number."""
        return tuple(argument.replace("{index}", str(index)) for argument in self.argv)

    def replica_environment(self, index: int) -> dict[str, str]:
        """Returns the variables to set for the replica with this number."""
        return {
            name: value.replace("{index}", str(index)) for name, value in self.environment.items()
        }


@dataclass(frozen=True)
class Program:
    """Lists the roles that run together, in the order in which they are started.

    Raises:
      ConfigError: Two roles share a name, or none of them ever finishes.
    """

    roles: tuple[Role, ...]

    def __post_init__(self) -> None:
        counts = Counter(role.name for role in self.roles)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated:
            raise ConfigError(
                f"role names must be unique, but {repeated} appear more than once; "
                "use `count` for several replicas of one role"
            )
        if all(role.is_service for role in self.roles):
            raise ConfigError(
                f"the roles {sorted(counts)} are all services, so the program would never finish; "
                "give one role is_service=False"
            )
