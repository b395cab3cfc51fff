"""`BankAround`: a bank that passes its calls on to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from carls_jax.bank import Bank, BankIdentity, SnapshotIdentity
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.interface import Applied, BankStats
from carls_jax.bank.joining import Followed
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.table_shard import TableShard
from carls_jax.errors import CarlsError

T = TypeVar("T")


class BankAround(Bank):
    """Passes every call on to another bank, by way of `_call`, which may do more than that.

    It shares the other's ledger, and never closes it.
    """

    def __init__(self, bank: Bank) -> None:
        super().__init__(source=bank.source)
        self.ledger = bank.ledger
        self._bank = bank

    def _call(self, call: Callable[[], T]) -> T:
        """Makes a call of the other bank that may be made again."""
        return call()

    @property
    def identity(self) -> BankIdentity:
        return self._call(lambda: self._bank.identity)

    @property
    def last_alter(self) -> int:
        return self._bank.last_alter

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        self._bank.wait_ready(timeout_s)

    def apply(self, change: Change) -> Applied:
        return self._call(lambda: self._bank.apply(change))

    def resume(self, error: CarlsError) -> Applied:
        return self._call(lambda: self._bank.resume(error))

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        return self._call(lambda: self._bank.lookup(request, keys))

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = NO_KEYS) -> Followed:
        return self._call(lambda: self._bank.follow(request, keys, held))

    def share(self, table: str) -> tuple[BankIdentity, TableShard]:
        return self._bank.share(table)

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        return self._call(lambda: self._bank.history(request, keys))

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        return self._call(lambda: self._bank.scan(request))

    def stats(self) -> BankStats:
        return self._call(lambda: self._bank.stats())

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        if is_frozen:
            return self._call(lambda: self._bank.snapshot(label, uuid=uuid, is_frozen=True))
        # A snapshot has a deadline of its own, which is far too long to find out by.
        self.stats()
        return self._call(lambda: self._bank.snapshot(label, uuid=uuid))

    def freeze(self, uuid: str) -> None:
        self._call(lambda: self._bank.freeze(uuid))

    def thaw(self, uuid: str) -> None:
        self._call(lambda: self._bank.thaw(uuid))

    def snapshots(self) -> list[SnapshotIdentity]:
        return self._call(lambda: self._bank.snapshots())

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        # Once: a second one would undo what others have done after the first.
        self.stats()
        return self._bank.restore(snapshot)

    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        return self._call(lambda: self._bank.verify(snapshot))

    def pin(self, owner: str, snapshots: Sequence[SnapshotIdentity | str]) -> None:
        self._call(lambda: self._bank.pin(owner, snapshots))

    def close(self) -> None:
        """Does no more than pass calls on, from now on; the other bank stays open."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._bank!r}>"
