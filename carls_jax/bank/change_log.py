"""`ChangeLog`: gives a shard's changes their numbers, and knows what numbered ones have told."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_STEP, Change
from carls_jax.bank.client_windows import ClientWindows
from carls_jax.bank.interface import Applied
from carls_jax.errors import BankClosedError


class Keeper(Protocol):
    """Keeps numbered changes where they outlast the process; see `journal.Journal`."""

    def append(self, record: Change, sequence: int) -> None:
        """Keeps the change of the next number; raises BankStorageError if it cannot."""

    def wait(self, sequence: int) -> None:
        """Waits until a change is as durable as was promised, or raises BankStorageError."""


class Told(NamedTuple):
    """Is what clients may ask of the numbered changes; see `LogState`."""

    sequence: int
    clocks: Mapping[str, int]


class LogState(NamedTuple):
    """Is what the numbered changes have told.

    Attributes:
      sequence: Number of the last one.
      clocks: Highest step of each clock.
      windows: What clients were answered.
    """

    sequence: int
    clocks: Mapping[str, int]
    windows: ClientWindows


class ChangeLog:
    """Numbers changes one by one, in the order in which they are kept.

    Methods may be called from several threads at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._clocks: Mapping[str, int] = {}  # replaced, never altered, so readers need no lock
        self._windows = ClientWindows()
        self._keeper: Keeper | None = None
        self._is_closed = False

    @property
    def clocks(self) -> Mapping[str, int]:
        """The highest step told on each clock."""
        return self._clocks

    @property
    def told(self) -> Told:
        """The number of the last change, and the clocks as it left them."""
        with self._lock:
            return Told(self._sequence, self._clocks)

    def keep_in(self, keeper: Keeper | None) -> None:
        """Has all later changes kept; None: by nobody."""
        with self._lock:
            self._keeper = keeper

    def find(self, header: pb.Change) -> Applied | None:
        """As `ClientWindows.find`; the caller lets nobody else apply this change meanwhile."""
        with self._lock:
            return self._windows.find(header)

    def accept(self, change: Change) -> int:
        """Gives a change, which now cannot fail, the next number, after it was kept.

        Raises:
          BankStorageError: It cannot be kept, and so got no number.
          BankClosedError: The log was closed.
        """
        with self._lock:
            if self._is_closed:
                raise BankClosedError("this bank was closed; connect again")
            if self._keeper is not None:
                self._keeper.append(change, self._sequence + 1)
            self._note(change.header, self._sequence + 1)
            return self._sequence

    def accept_again(self, change: Change, sequence: int) -> None:
        """Notes a change that has got its number and was kept before."""
        with self._lock:
            self._note(change.header, sequence)

    def _note(self, header: pb.Change, sequence: int) -> None:
        self._sequence = sequence
        by = header.author
        if by.clock and by.step > self._clocks.get(by.clock, NO_STEP):
            self._clocks = {**self._clocks, by.clock: by.step}
        self._windows.begin(header, sequence)

    def end(self, header: pb.Change, applied: Applied) -> None:
        """Notes what a change that was accepted did."""
        if header.client:
            with self._lock:
                self._windows.end(header, applied)

    def wait(self, sequence: int) -> None:
        """Waits until a change is as durable as was promised; the caller holds no lock.

        Raises:
          BankStorageError: It was applied, and may be lost when the process ends.
        """
        keeper = self._keeper
        if keeper is not None:
            keeper.wait(sequence)

    def state(self) -> LogState:
        """Returns all that is known, which later changes do not alter."""
        with self._lock:
            return LogState(self._sequence, self._clocks, self._windows.copy())

    def replace(self, state: LogState) -> None:
        """Takes over what another log knew."""
        with self._lock:
            self._sequence, self._clocks, self._windows = state

    def close(self) -> None:
        """Accepts no more changes."""
        with self._lock:
            self._is_closed = True
