"""What a training loop does when its bank, or one server of it, is away.

    when_away.py      `WhenAway`: which of three policies, and its bounds
    outlasting.py     `outlast`: the bank of a training loop, by policy
    around.py         a bank that passes its calls on to another
    absence.py        tells once that a bank went away, and once that it is back
    waiting.py        "wait": calls are tried until the bank answers
    remembering.py    "last_seen": lookups are answered with the rows seen last
    last_seen.py      where these are kept
    keeping.py        "last_seen": changes are kept until their server is back
    kept_changes.py   where these are kept

Away is a bank that does not answer a call within the deadline that the bank object has for it.
"""

from carls_jax.training.away.outlasting import outlast
from carls_jax.training.away.when_away import WhenAway

__all__ = ["WhenAway", "outlast"]
