"""`Limit`: how many rows a table keeps, for how long, and which it lets in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from carls_jax.bank.hyperparameters import Allowed, number_within, whole_from
from carls_jax.errors import ConfigError

POLICIES = ("least_recent", "lowest_count", "oldest_step")
# Sightings are counted in a byte.
MAX_ADMIT_AFTER = 255


def _read_policy(value: Any) -> str:
    if value not in POLICIES:
        raise ValueError
    return str(value)


def _read_admit_after(value: Any) -> int:
    number: int = whole_from(1).read(value)
    if number > MAX_ADMIT_AFTER:
        raise ValueError
    return number


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


_ALLOWED = {
    "max_rows": whole_from(1),
    "max_bytes": whole_from(1),
    "evict": Allowed(" or ".join(map(repr, POLICIES)), _read_policy),
    "ttl_s": number_within("(0, inf)"),
    "admit_after": Allowed(f"a whole number from 1 to {MAX_ADMIT_AFTER}", _read_admit_after),
    "log": Allowed("True or False", _read_flag),
}
_OPTIONAL = ("max_rows", "max_bytes", "ttl_s")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Says how many rows a table keeps, for how long, and which it lets in.

    Each shard of a bank keeps to it by itself: a bank of four shards holds up to four times
    `max_rows`. An eviction is a change of its own, goes before the change that needs the room, and
    takes about 1 % of the limit at once. What lazy fields gathered for a row goes with it. A change
    that needs more rows than the limit is refused with BankFullError; it evicts no row that it
    writes itself.

    Attributes:
      max_rows: Rows that a shard holds at most; at most the table's own `max_rows`, beyond which
        nothing is evicted and changes are refused. None: those alone are the limit.
      max_bytes: Bytes that the columns of a shard's rows take at most: values, metadata, optimizer
        state, history. The key index takes 8 to 12 bytes a row beside them. None: no such limit.
      evict: Which rows go first. "least_recent": those looked up, created, updated and pushed to
        longest ago; scans and histories do not count. Such a table is not read by other processes
        in its own memory: all lookups ask the server. "lowest_count": those with the fewest
        updates and pushes of their fields. "oldest_step": those whose newest field has fallen
        behind its clock the furthest; rows never written go first. Among equals the one that was
        written longest ago. Of more than 32,768 rows a part is looked at, each in its turn and at
        least sixteen times what goes, so those that go are of the first few in a hundred.
      ttl_s: Seconds after which a row goes that was not created, updated or pushed to; the bank
        looks every quarter of it, but at least every hour. The seconds are those that the server
        runs, so a change of the computer's clock makes no row older, nor does a restart; after a
        restart rows count as older than the last written by what the clock said when they were
        written, so one that went wrong before shows then. None: rows stay.
      admit_after: A key without a row gets one by the n-th change that would create it. The changes
        before leave it out, and tell how many they left out; a lookup does not find it. It is
        counted roughly, in memory of a fixed size: about one key in 400 at most is let in early,
        and after a million sightings, or as many as the rows of the limit where these are more,
        each counts half. 1: all are let in.
      log: Logs the keys of all rows that go.

    Raises:
      ConfigError: A value is not allowed, or nothing is limited.
    """

    max_rows: int | None = None
    max_bytes: int | None = None
    evict: Literal["least_recent", "lowest_count", "oldest_step"] = "least_recent"
    ttl_s: float | None = None
    admit_after: int = 1
    log: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                value = allowed.check(value, argument=f"Limit: {name}")
                object.__setattr__(self, name, value)
        if self.admit_after == 1 and all(getattr(self, name) is None for name in _OPTIONAL):
            raise ConfigError(
                "Limit() limits nothing: give max_rows, max_bytes, ttl_s or admit_after"
            )

    def num_rows(self, row_bytes: int) -> int | None:
        """Returns how many rows of so many bytes there may be; None: as many as fit.

        Raises:
          ConfigError: `max_bytes` is less than one row takes.
        """
        if self.max_bytes is not None and self.max_bytes < row_bytes:
            raise ConfigError(
                f"Limit: max_bytes={self.max_bytes}; a row takes {row_bytes} bytes, so allowed is "
                f"{row_bytes} and more"
            )
        by_bytes = math.inf if self.max_bytes is None else self.max_bytes // row_bytes
        least = min(by_bytes, math.inf if self.max_rows is None else self.max_rows)
        return None if least == math.inf else int(least)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Limit:
        """Makes what `to_dict` described."""
        return Limit(**data)
