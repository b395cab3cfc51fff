"""What is left of a change that failed: which parts were not applied, or perhaps were.

A part that a server may have applied has the number under which it was sent, so it can be sent
again: the server then answers it and does not apply it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from carls_jax.bank.changes import Change
from carls_jax.bank.interface import Applied
from carls_jax.errors import CarlsError, InvalidInputError


@dataclass(frozen=True)
class Unfinished:
    """Tells how far a change came.

    Attributes:
      left: Parts that are still to be applied, by shard, with arrays of their own.
      applied: What the other shards answered.
    """

    left: Mapping[int, Change]
    applied: Mapping[int, Applied]


def mark(error: CarlsError, unfinished: Unfinished) -> CarlsError:
    """Lets an error, which is returned, tell what is left."""
    vars(error)["unfinished"] = unfinished
    return error


def is_marked(error: BaseException) -> bool:
    """Whether an error tells what is left."""
    return "unfinished" in vars(error)


def unfinished(error: BaseException) -> Unfinished:
    """Returns what an error tells that is left.

    Raises:
      InvalidInputError: It tells nothing: the change was refused whole, or it is no change's error.
    """
    left = vars(error).get("unfinished")
    if not isinstance(left, Unfinished):
        raise InvalidInputError(
            f"error={error!r:.200}: nothing is left of it to resume; it is no error of a change, "
            "or the change was refused whole, so make it again"
        )
    return left


def own(change: Change) -> Change:
    """Returns a change whose arrays the caller may alter no more."""
    return change.copy(updated_at=0.0)
