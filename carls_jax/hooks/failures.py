"""What went wrong inside callbacks, kept until somebody outside jit asks.

A callback must not raise, so a hook that fails gives zeros and `found=False`, or writes nothing.
The first such error of a bank is logged and kept here. It is raised by the next `check`, before and
after `checking`, and by the next hook that is traced or called outside jit. A compiled step runs
none of these by itself: put `@hooks.checking(bank)` above its `@jax.jit`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from carls_jax.bank.interface import Bank
from carls_jax.errors import BankError, CarlsError


@dataclass
class _Failures:
    """Is what failed on one bank since the last check."""

    first: Exception
    hook: str
    num_calls: int = 0


_kept: weakref.WeakKeyDictionary[Bank, _Failures] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def keep(bank: Bank, *, hook: str, error: Exception) -> None:
    """Keeps the error of a hook's call, if it is the first since the last check, and logs it."""
    with _lock:
        is_first = bank not in _kept
        failures = _kept.setdefault(bank, _Failures(error, hook))
        failures.num_calls += 1
    if is_first:
        logging.getLogger(__name__).error(
            "%s failed inside a jitted function: such lookups give zeros and found=False, such "
            "writes are lost; hooks.check(bank) raises the error",
            hook,
            exc_info=error,
        )


def check(bank: Bank) -> None:
    """Raises the first error of this bank's hooks since the last check; without one does nothing.

    A step that still runs has not failed yet: wait for its results with `jax.block_until_ready`,
    and for writes whose results nobody uses with `jax.effects_barrier`.

    Raises:
      CarlsError: What the call outside jit would have raised, with the error itself as cause.
      BankError: The error was of no class of ours; the cause is the error.
    """
    with _lock:
        failures = _kept.pop(bank, None)
    if failures is None:
        return
    error = failures.first
    kind = type(error) if isinstance(error, CarlsError) else BankError
    raise kind(
        f"{failures.hook} failed inside a jitted function: {error} ({failures.num_calls} calls of "
        "this bank's hooks have failed since the last check; their lookups gave zeros and "
        "found=False, their writes were lost)"
    ) from error


@contextmanager
def checking(bank: Bank) -> Iterator[None]:
    """Checks before and after a block, or as a decorator before and after each call of a function.

    It does not wait (see `check`): on a device that runs steps in the background, the error of a
    step is raised after the next one.

    Raises:
      CarlsError: as `check`.
    """
    check(bank)
    yield
    check(bank)
