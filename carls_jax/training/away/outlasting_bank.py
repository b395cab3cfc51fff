"""`OutlastingBank`: what a session asks of its bank, whatever the policy; its own is "fail"."""

from __future__ import annotations

from collections.abc import Callable

from carls_jax.bank import Bank
from carls_jax.bank.changes import NO_STEP
from carls_jax.training.away.around import BankAround


class OutlastingBank(BankAround):
    """Passes calls on, and lets the errors of a bank that is away pass.

    Attributes:
      as_of: Returns the step up to which the bank has acknowledged what its user writes. Whoever
        knows sets it.
    """

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.as_of: Callable[[], int] = lambda: NO_STEP
        self._told: dict[str, float] = {}

    @property
    def is_away(self) -> bool:
        """Whether the loop goes on without a server."""
        return False

    @property
    def is_settled(self) -> bool:
        """Whether the bank has acknowledged all changes that were applied here."""
        return True

    def settle(self, *, be_back: bool = False, wait: bool = True) -> None:
        """Waits until the bank has acknowledged all changes that were applied here.

        Args:
          be_back: Waits until all servers answer, too, if nothing is to be sent.
          wait: Whether to wait for a server that is away.

        Raises:
          BankUnavailableError: It is away for too long.
          CarlsError: As `check`.
        """

    def check(self) -> None:
        """Raises the first error of a change that was kept, and refused when it was sent."""

    def totals(self) -> dict[str, float]:
        """Returns what absences have cost so far, as numbers by name."""
        return {}

    def take_line(self) -> dict[str, float]:
        """Returns what absences have cost since the last call, once there was one.

        Returns:
          As `totals`, with "away/" before each name.
        """
        told, self._told = self._told, self.totals()
        if not self._told.get("times"):
            return {}
        return {f"away/{name}": total - told.get(name, 0) for name, total in self._told.items()}
