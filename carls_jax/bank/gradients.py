"""What an optimizer does not see of pushed gradients: repeated rows, large elements and norms.

In machine code, for one row at a time. The order of every sum is fixed by the order of its terms
alone, so that a row's gradient is the same, bit for bit, whatever the rows beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from carls_jax.bank.machine import inlined
from carls_jax.bank.vectors import vector_at


@inlined
def combined(gradients: Any, first: Any, following: Any, is_mean: Any, room: Any) -> Any:
    """Adds up the gradients of a row, in the order in which they came.

    Args:
      gradients: Address of `[n, W]`, of all rows.
      first: The place among n of the row's first gradient.
      following: int64, the place of the row's next gradient after each, or -1; see `repeats`.
      is_mean: Whether the sum is divided by the number of its terms.
      room: `[W]`, used if there are several.

    Returns:
      `[W]`, the sum in `room`, or the only gradient where it is.
    """
    row_bytes = room.size * room.itemsize
    gradient = vector_at(gradients + first * row_bytes, room.size, room[0])
    if following[first] < 0:
        return gradient
    for i in range(room.size):
        room[i] = gradient[i]
    count, place = 1, following[first]
    while place >= 0:
        term = vector_at(gradients + place * row_bytes, room.size, room[0])
        for i in range(room.size):
            room[i] = room[i] + term[i]
        count, place = count + 1, following[place]
    if is_mean:
        divisor = room.dtype.type(count)
        for i in range(room.size):
            room[i] = room[i] / divisor
    return room


@inlined
def clipped(gradient: Any, limit: Any, room: Any) -> Any:
    """Returns `[W]` with no absolute value above a limit, in `room` if there is a limit at all."""
    if not limit < np.inf:
        return gradient
    most = room.dtype.type(limit)
    for i in range(room.size):
        number = gradient[i]
        number = most if number > most else number  # NaN stays, and keeps the row as it was
        room[i] = -most if number < -most else number
    return room


@inlined
def norm_clipped(gradient: Any, max_norm: Any, room: Any) -> Any:
    """Returns `[W]` scaled down to a norm, in `room`, or as it is where its L2 norm is less."""
    if not max_norm < np.inf:
        return gradient
    norm = norm_of(gradient)
    if not norm > max_norm:
        return gradient
    scale = max_norm / norm
    for i in range(room.size):
        room[i] = gradient[i] * scale
    return room


@inlined
def norm_of(row: Any) -> Any:
    """Returns the L2 norm of `[W]`, computed in float64, where no float32 overflows.

    It adds in four lanes, whose order depends on the width alone: one would wait for each sum.
    """
    a = b = c = d = 0.0
    whole = row.size & ~3
    for i in range(0, whole, 4):
        a += np.float64(row[i]) * np.float64(row[i])
        b += np.float64(row[i + 1]) * np.float64(row[i + 1])
        c += np.float64(row[i + 2]) * np.float64(row[i + 2])
        d += np.float64(row[i + 3]) * np.float64(row[i + 3])
    for i in range(whole, row.size):
        a += np.float64(row[i]) * np.float64(row[i])
    return math.sqrt((a + b) + (c + d))
