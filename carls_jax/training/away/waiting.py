"""`WaitingBank`: a bank whose calls wait for it while it is away."""

from __future__ import annotations

import threading
import time
import uuid as uuids
from collections.abc import Callable

from carls_jax.bank import Bank, SnapshotIdentity, resuming
from carls_jax.bank.changes import Change
from carls_jax.bank.interface import Applied
from carls_jax.errors import BankClosedError, BankUnavailableError, CarlsError
from carls_jax.training.away.absence import AWAY, Absence
from carls_jax.training.away.around import T
from carls_jax.training.away.outlasting_bank import OutlastingBank

# Between two tries. Each of them is a call, in which the bank object itself tries again and again.
PAUSE_S = 0.25


class WaitingBank(OutlastingBank):
    """Makes calls again until the bank answers.

    A change is not made again but gone on with (`Bank.resume`), so it is applied once. Methods may
    be called from several threads at once.

    Args:
      bank: The bank.
      wait_s: For how many seconds a call waits at most.
    """

    def __init__(self, bank: Bank, *, wait_s: float) -> None:
        super().__init__(bank)
        self._wait_s = wait_s
        self._closed = threading.Event()
        self._absence = Absence("the bank", meanwhile=f"waiting for it, {wait_s:g} s at most")

    def totals(self) -> dict[str, float]:
        return {"times": self._absence.num_times, "seconds": self._absence.seconds}

    def apply(self, change: Change) -> Applied:
        def go_on(error: CarlsError) -> Applied:
            # Not sent at all, or perhaps applied.
            return (
                self._bank.resume(error) if resuming.is_marked(error) else self._bank.apply(change)
            )

        return self._persist(lambda: self._bank.apply(change), go_on)

    def resume(self, error: CarlsError) -> Applied:
        return self._persist(lambda: self._bank.resume(error), self._bank.resume)

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        # Chosen here, so that a snapshot that was taken is answered when it is asked for again.
        chosen = uuid or uuids.uuid4().hex
        return super().snapshot(label, uuid=chosen, is_frozen=is_frozen)

    def close(self) -> None:
        """Waits no more: calls that wait raise BankClosedError, later ones go straight on."""
        self._closed.set()

    def _call(self, call: Callable[[], T]) -> T:
        return self._persist(call, lambda error: call())

    def _persist(self, call: Callable[[], T], again: Callable[[CarlsError], T]) -> T:
        """Makes a call; if the bank is away, makes others with the error until one is answered."""
        try:
            return call()
        except AWAY as error:
            if self._closed.is_set():
                raise
            return self._wait(error, again)

    def _wait(self, error: CarlsError, again: Callable[[CarlsError], T]) -> T:
        deadline = time.monotonic() + self._wait_s
        is_back = False
        self._absence.begin(error)
        try:
            while time.monotonic() < deadline:
                if self._closed.wait(PAUSE_S):
                    raise BankClosedError("the training loop has ended") from error
                try:
                    answer = again(error)
                except AWAY as further:
                    error = further
                else:
                    is_back = True
                    return answer
        finally:
            self._absence.end(is_back=is_back)
        raise _gave_up(error, self._wait_s) from error


def _gave_up(error: CarlsError, wait_s: float) -> BankUnavailableError:
    message = f"the bank was away for {wait_s:g} s (when_away.wait_s): {error}"
    raised = BankUnavailableError(message)
    if resuming.is_marked(error):
        resuming.mark(raised, resuming.unfinished(error))
    return raised
