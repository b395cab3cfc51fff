"""What an optimizer does not see of pushed gradients: repeated rows and large norms.

The order of every sum is fixed by the order of its terms alone, so that a row's gradient is the
same, bit for bit, whatever the rows beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.errors import ConfigError

Array = NDArray[Any]


def combine_gradients(
    slots: NDArray[np.int64], gradients: Array, how: str = "sum"
) -> tuple[NDArray[np.int64], Array]:
    """Combines the gradients of each slot into one.

    The gradients of a slot are added in pairs, in their order: (1 + 2) + (3 + 4), and so on. Only
    those of repeated slots are copied and added.

    Args:
      slots: int `[N]`, the row (or the key) that each gradient is for.
      gradients: float `[N, ...]`.
      how: "sum" or "mean".

    Returns:
      The M different slots and their gradients `[M, ...]`: the arguments themselves where nothing
      repeats, otherwise new arrays in the order of the slots.

    Raises:
      ConfigError: `how` is neither.
    """
    if how not in ("sum", "mean"):
        raise ConfigError(f"combine_gradients(how={how!r}): allowed are 'sum' and 'mean'")
    in_order = np.sort(slots)
    is_repeat = in_order[1:] == in_order[:-1]
    if not is_repeat.any():
        return slots, gradients

    starts = np.flatnonzero(np.concatenate(([True], ~is_repeat)))
    counts = np.diff(starts, append=len(slots))
    repeated = counts > 1
    order = np.argsort(slots, kind="stable")
    combined = np.take(gradients, order[starts], axis=0, mode="clip")
    terms = np.take(gradients, order[np.repeat(repeated, counts)], axis=0, mode="clip")
    sums = _sum_in_pairs(terms, counts[repeated])
    if how == "mean":
        divisors = counts[repeated].astype(gradients.dtype)
        sums /= divisors.reshape(-1, *[1] * (gradients.ndim - 1))
    combined[repeated] = sums
    return in_order[starts], combined


def _sum_in_pairs(terms: Array, counts: NDArray[np.int64]) -> Array:
    """Sums runs of `counts` consecutive terms; takes log2 of the longest run rounds.

    Overwrites `terms`.
    """
    rows = np.arange(len(terms))
    starts = np.cumsum(counts) - counts
    positions = rows - np.repeat(starts, counts)
    while len(rows) > len(starts):
        is_second = positions % 2 == 1
        second = rows[is_second]
        first = rows[np.flatnonzero(is_second) - 1]
        terms[first] += terms[second]
        rows, positions = rows[~is_second], positions[~is_second] // 2
    return np.take(terms, starts, axis=0, mode="clip")


def clip_row_norms(gradients: Array, max_norm: float, out: Array) -> Array:
    """Scales down the rows of `gradients` `[B, W]` whose L2 norm is above `max_norm`, into `out`.

    Norms are computed in float64, where no float32 overflows. Other rows stay as they are, bit
    for bit. Both arrays are C-contiguous, and may be the same.
    """
    # NumPy adds a contiguous row in pairs, in an order that depends on W alone; tests hold this.
    norms = np.sqrt(np.sum(np.square(gradients, dtype=np.float64), axis=1))
    np.copyto(out, gradients)
    above = np.flatnonzero(norms > max_norm)
    out[above] *= max_norm / norms[above, None]
    return out
