"""`KeepingBank`: one server of a bank, whose changes are kept while it is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from carls_jax.bank import Bank, BankIdentity, SnapshotIdentity, resuming
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, Keys
from carls_jax.bank.interface import Applied
from carls_jax.bank.rows import Rows
from carls_jax.errors import BankUnavailableError, CarlsError
from carls_jax.keys import PADDING
from carls_jax.training.away.absence import AWAY, Absence
from carls_jax.training.away.around import BankAround, T
from carls_jax.training.away.kept_changes import KeptChanges
from carls_jax.training.away.last_seen import blank_rows

# One try to find out whether it is back, in which the bank object itself tries again and again.
PROBE_S = 2.0
PAUSE_S = 0.25

# Changes whose answer nobody needs at once. The others are refused.
KEPT_KINDS = frozenset({"update", "push", "advance"})

_KEPT = Applied(sequence=0)

_log = logging.getLogger(__name__)


class KeepingBank(BankAround):
    """Is a server's bank that costs no time while it is away.

    Once a call is not answered the server is away: from then on calls fail at once, but updates and
    pushes are kept, in order. A thread looks for the server, sends it what was kept,
    each change once, and then ends; until all is sent later changes wait for their turn. What the
    server then refuses is logged, and raised by `check`. Methods may be called from several threads
    at once.

    Args:
      bank: The server's bank.
      who: What it is, for the log: "the bank", or which shard.
      max_kept_bytes: Of the changes that are kept; the oldest are dropped.
    """

    def __init__(self, bank: Bank, *, who: str, max_kept_bytes: int) -> None:
        super().__init__(bank)
        self._who = who
        self._absence = Absence(who, meanwhile="going on with the rows seen last")
        self._changed = threading.Condition()
        self._kept = KeptChanges(max_bytes=max_kept_bytes)
        self._known: set[str] = set()  # tables
        self._is_away = False
        self._is_closed = False
        self._is_sending = False
        self._thread: threading.Thread | None = None
        self._cause: CarlsError | None = None  # why it is away
        self._refused: CarlsError | None = None
        self._num_refused = 0

    @property
    def identity(self) -> BankIdentity:
        return self._bank.identity  # known, once the server has answered anything

    @property
    def is_away(self) -> bool:
        """Whether it does not answer."""
        return self._is_away

    @property
    def is_settled(self) -> bool:
        """Whether it has acknowledged all changes that were applied here."""
        return not self._kept and not self._is_sending

    @property
    def num_kept(self) -> int:
        """Changes that wait for it now."""
        return len(self._kept)

    def totals(self) -> dict[str, float]:
        """Returns what its absences have cost so far."""
        return {
            "times": self._absence.num_times,
            "seconds": self._absence.seconds,
            "changes_kept": self._kept.num_kept,
            "changes_dropped": self._kept.num_dropped,
            "rows_dropped": self._kept.rows_dropped,
            "changes_refused": self._num_refused,
        }

    def check(self) -> None:
        """Raises the first error since the last call of a change that was kept and then refused."""
        with self._changed:
            refused, self._refused = self._refused, None
        if refused is not None:
            raise refused

    def settle(self, deadline: float, *, be_back: bool, wait: bool = True) -> None:
        """Waits until all is sent, up to a deadline on the monotonic clock.

        Args:
          be_back: Waits until it answers, too, if nothing is to be sent.
          wait: Whether to wait for it while it is away.

        Raises:
          BankUnavailableError: The deadline has passed.
        """
        with self._changed:
            left_s = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
            self._changed.wait_for(
                lambda: self._is_done(be_back=be_back) or (self._is_away and not wait), left_s
            )
            if not self._is_done(be_back=be_back):
                raise BankUnavailableError(
                    f"{self._who} is away, and {self.num_kept} changes wait for it: {self._cause}"
                )

    def _is_done(self, *, be_back: bool) -> bool:
        return self.is_settled and not (be_back and self._is_away)

    def apply(self, change: Change) -> Applied:
        """As `Bank.apply`; a change that is kept is answered with the sequence 0."""
        if change.kind not in KEPT_KINDS:
            return super().apply(change)
        with self._changed:
            self._changed.wait_for(lambda: self._is_away or self.is_settled)
            if self._is_away:
                self._kept.append(resuming.own(change))
                return _KEPT
        try:
            return self._bank.apply(change)
        except AWAY as error:
            self._begin(error, _left_of(change, error))
            return _KEPT

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        if not is_frozen:
            self.stats()
        # A snapshot that comes too late is no sign of an absence.
        return self._bank.snapshot(label, uuid=uuid, is_frozen=is_frozen)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        """As `Bank.lookup`; padding alone is not found, wherever the server is."""
        if self._is_away and (keys == PADDING).all():
            return blank_rows(self.table(request.table).spec, request, keys)
        rows = super().lookup(request, keys)
        if request.table not in self._known:
            self.table(request.table)  # it is asked for now, while the server is there
            self._known.add(request.table)
        return rows

    def close(self) -> None:
        """Looks for the server no more, and drops what waits for it; calls go straight on."""
        with self._changed:
            self._is_closed = True
            self._is_away = False
            thread, num_lost = self._thread, len(self._kept)
            self._kept.drop_all()
            self._changed.notify_all()
        if num_lost:
            _log.error("%s is away at the end: %d changes are lost", self._who, num_lost)
        if thread is not None:
            thread.join()

    def _call(self, call: Callable[[], T]) -> T:
        if self._is_away:
            raise BankUnavailableError(f"{self._who} is away: {self._cause}") from self._cause
        try:
            return call()
        except AWAY as error:
            self._begin(error)
            raise

    def _begin(self, error: CarlsError, change: Change | None = None) -> None:
        """Notes that the server is away, and keeps a change that it did not answer."""
        with self._changed:
            if self._is_closed:
                raise error
            if change is not None:
                self._kept.append(change)
            self._is_away, self._cause = True, error
            self._changed.notify_all()
            if self._thread is None:
                self._absence.begin(error)
                self._thread = threading.Thread(
                    target=self._outlast, name="carls-away", daemon=True
                )
                self._thread.start()

    def _outlast(self) -> None:
        """Waits for the server, and sends what was kept; runs in a thread of its own."""
        while not self._is_over():
            if not self._answers():
                continue
            with self._changed:
                self._is_away = False
                self._changed.notify_all()
            while change := self._next():
                self._send(change)
            with self._changed:
                self._changed.notify_all()

    def _is_over(self) -> bool:
        """Ends the absence if the server is there and has got everything, or nobody cares."""
        with self._changed:
            if not self._is_closed and (self._is_away or self._kept):
                return False
            self._thread = None
            self._changed.notify_all()
            is_back, dropped = not self._is_closed, self._kept.num_dropped
        told = f"; {dropped} changes were dropped so far" if dropped else ""
        self._absence.end(is_back=is_back, told=told)
        return True

    def _answers(self) -> bool:
        try:
            self._bank.wait_ready(PROBE_S)
        except AWAY:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, PAUSE_S)
            return False
        except CarlsError as error:  # such as another bank at its address
            self._refuse(error, "does not let us in")
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, PAUSE_S)
            return False
        return True

    def _next(self) -> Change | None:
        with self._changed:
            self._is_sending = bool(self._kept) and not self._is_away
            return self._kept.take() if self._is_sending else None

    def _send(self, change: Change) -> None:
        try:
            self._bank.apply(change)
        except AWAY as error:
            with self._changed:
                self._kept.put_back(_left_of(change, error))
                self._is_away, self._is_sending, self._cause = True, False, error
                self._changed.notify_all()
        except CarlsError as error:
            self._num_refused += 1
            self._refuse(error, f"refuses a {change.kind} of {change.keys.size} rows")

    def _refuse(self, error: CarlsError, what: str) -> None:
        with self._changed:
            is_first = self._refused is None
            self._refused = self._refused or error
        if is_first:
            _log.error("%s %s: %s", self._who, what, error)


def _left_of(change: Change, error: CarlsError) -> Change:
    """Returns what is left of a change; what may have been applied has its number."""
    if resuming.is_marked(error):
        (left,) = resuming.unfinished(error).left.values()
        return left
    return resuming.own(change)
