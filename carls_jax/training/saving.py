"""When a checkpoint is saved, if the bank of which it names a snapshot may be away."""

from __future__ import annotations

import time
from collections.abc import Callable

from carls_jax.errors import BankUnavailableError, CarlsError
from carls_jax.training import processes
from carls_jax.training.away import WhenAway
from carls_jax.training.away.absence import AWAY
from carls_jax.training.away.outlasting_bank import OutlastingBank

Flush = Callable[..., None]  # wait: whether for a bank that is away
Save = Callable[[], None]


def save(bank: OutlastingBank, flush: Flush, save: Save, *, when_away: WhenAway) -> None:
    """Flushes all writes and saves, and waits for the bank if it may.

    Raises:
      BankUnavailableError, BankTimeoutError: It is away for longer.
    """
    deadline = time.monotonic() + when_away.wait_s
    while True:
        bank.settle(be_back=True)
        try:
            flush()
            save()
            return
        except AWAY:  # which was not known before
            if when_away.policy != "last_seen" or time.monotonic() > deadline:
                raise


def save_unless_away(bank: OutlastingBank, flush: Flush, save: Save) -> CarlsError | None:
    """Flushes all writes and saves; or does not, if the bank of any process is away.

    Returns:
      Why nothing was saved, in this process; None: it was.
    """
    if any(processes.gathered(bank.is_away)):
        return BankUnavailableError("the bank is away")
    error: CarlsError | None = None
    try:
        flush(wait=False)
    except AWAY as away:
        error = away
    if any(processes.gathered(error is not None)):
        return error or BankUnavailableError("the bank is away from another process")
    try:
        save()
    except AWAY as away:  # in all processes
        return away
    return None
