"""Rows that are read while they are written, without a lock: one number guards each row.

A row's guard, uint32, is odd while the row is being written and has grown by two afterwards. Who
reads a row notes the guard, copies the row and looks again: an odd guard or another one says that
the copy may be torn, so it is made again. Readers change nothing, so they may be other processes
whose mapping of the memory is read-only. A table has one writer at a time.

    guard = begin_read(at)      # odd: try again
    ... copy the row ...
    if not is_unchanged(at, guard): ...  # try again

`at` is the address of a guard; see `guard_at`.

Source: Boehm, "Can seqlocks get along with programming language memory models?" (MSPC 2012).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from carls_jax.bank.machine import (
    acquire_uint32,
    fence_acquire,
    fence_release,
    inlined,
    release_uint32,
)


@inlined
def guard_at(guards: Any, slot: Any) -> Any:
    """Returns the address of a row's guard; `guards` is where the table's guards begin."""
    return guards + 4 * slot


@inlined
def begin_write(at: Any) -> None:
    """Says that a row is about to be written; for the table's one writer."""
    release_uint32(at, acquire_uint32(at) + np.uint32(1))
    fence_release()


@inlined
def end_write(at: Any) -> None:
    """Says that a row was written."""
    release_uint32(at, acquire_uint32(at) + np.uint32(1))


@inlined
def begin_read(at: Any) -> Any:
    """Returns the guard of a row; an odd one says that the row is being written."""
    return acquire_uint32(at)


@inlined
def is_unchanged(at: Any, guard: Any) -> Any:
    """Tells whether a row has been as it is since its guard was noted, so a copy of it is whole."""
    fence_acquire()
    return acquire_uint32(at) == guard
