"""`NamespacedBank`: a part of a bank with tables and clocks of its own, for one of several runs.

In the bank itself its tables and clocks are called "NAMESPACE/NAME"; that is all there is to it.
The names are changed here, on the way in and on the way out, and nowhere else. What a table knows
of its sources is the table's own, so sources need no other names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, Change, Keys
from carls_jax.bank.interface import Applied, Bank, BankIdentity, BankStats, SnapshotIdentity
from carls_jax.bank.joining import Followed
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.specs import check_name
from carls_jax.errors import BankClosedError, CarlsError, InvalidInputError


def check_namespace(name: object) -> str:
    """Returns the name of a namespace if it is one: 1 to 64 letters, digits, dots, dashes or _.

    Raises:
      InvalidInputError: It is not. With slashes one namespace could be within another.
    """
    if "/" in check_name(name, argument="namespace"):
        raise InvalidInputError(f"namespace={name!r}: a namespace has no slashes")
    return str(name)


class NamespacedBank(Bank):
    """Is the part of a bank that is in a namespace; made by `Bank.namespace` or `connect`.

    It shows its own tables and clocks alone. Snapshots are of the whole bank: to restore one puts
    back the tables of other namespaces, too, and they are told by the bank's new incarnation. Names
    are 256 letters at most with that of the namespace; errors that the bank itself raises name
    tables as the bank does. Rows are not guarded from other clients: who connects without a
    namespace sees everything.

    Args:
      bank: The whole bank.
      name: Name of the namespace; see `check_namespace`.
      closes: Whether closing this object closes `bank`.

    Raises:
      InvalidInputError: The name is not one, or `bank` is a namespace itself.
    """

    def __init__(self, bank: Bank, name: str, *, closes: bool = False) -> None:
        super().__init__(source=bank.source)
        if isinstance(bank, NamespacedBank):
            raise InvalidInputError(f"namespace={name!r}: {bank!r} is in one already")
        self.name = check_namespace(name)
        self._whole = bank
        self._closes = closes
        self._is_closed = False

    @property
    def identity(self) -> BankIdentity:
        return self._bank.identity

    @property
    def last_alter(self) -> int:
        return self._bank.last_alter

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        self._bank.wait_ready(timeout_s)

    def apply(self, change: Change) -> Applied:
        header = pb.Change()
        header.CopyFrom(change.header)
        if header.table:
            header.table = self._inside(header.table)
        if header.author.clock:
            header.author.clock = self._inside(header.author.clock)
        if change.kind in ("create_table", "alter"):
            spec = changes.spec_of(change)
            spec = replace(spec, name=self._inside(spec.name))
            getattr(header, change.kind).spec_json = json.dumps(spec.to_dict())
        return self._bank.apply(replace(change, header=header))

    def resume(self, error: CarlsError) -> Applied:
        """As `Bank.resume`; what is left has the names of the whole bank already."""
        return self._bank.resume(error)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        return self._rows_outside(self._bank.lookup(self._lookup_inside(request), keys))

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = NO_KEYS) -> Followed:
        inside = pb.Follow(links=[self._lookup_inside(link) for link in request.links])
        followed = self._bank.follow(inside, keys, held)
        followed = replace(followed, rows=self._rows_outside(followed.rows))
        self._count(request.links[-1], followed.rows)
        return followed

    def history(self, request: pb.History, keys: Keys) -> list[list[Written]]:
        inside = pb.History()
        inside.CopyFrom(request)
        inside.table = self._inside(request.table)
        return [
            [replace(one, clock=self._outside(one.clock)) for one in of_key]
            for of_key in self._bank.history(inside, keys)
        ]

    def scan(self, request: pb.Scan) -> tuple[Rows, int]:
        inside = pb.Scan()
        inside.CopyFrom(request)
        inside.table = self._inside(request.table)
        rows, following = self._bank.scan(inside)
        return self._rows_outside(rows), following

    def stats(self) -> BankStats:
        stats = self._bank.stats()
        tables = {
            name: replace(table, spec=replace(table.spec, name=name))
            for name, table in self._own(stats.tables).items()
        }
        return BankStats(tables, self._own(stats.clocks), stats.sequence)

    def snapshot(
        self, label: str, *, uuid: str | None = None, is_frozen: bool = False
    ) -> SnapshotIdentity:
        return self._bank.snapshot(label, uuid=uuid, is_frozen=is_frozen)

    def snapshots(self) -> list[SnapshotIdentity]:
        return self._bank.snapshots()

    def restore(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        return self._bank.restore(snapshot)

    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        return self._bank.verify(snapshot)

    def pin(self, owner: str, snapshots: Sequence[SnapshotIdentity | str]) -> None:
        self._bank.pin(owner, snapshots)

    def close(self) -> None:
        self._is_closed = True
        if self._closes:
            self._whole.close()

    def __repr__(self) -> str:
        return f"<{self._whole!r} namespace={self.name!r}>"

    @property
    def whole(self) -> Bank:
        """The bank that it is a part of."""
        return self._whole

    @property
    def _bank(self) -> Bank:
        if self._is_closed:
            raise BankClosedError("this bank was closed; connect again")
        return self._whole

    def _inside(self, name: str) -> str:
        """Returns what a table or clock of the namespace is called in the whole bank."""
        return f"{self.name}/{name}"

    def _outside(self, name: str) -> str:
        return name.removeprefix(f"{self.name}/")

    def _own(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what is the namespace's, by the names it has there."""
        prefix = self._inside("")
        return {self._outside(name): one for name, one in named.items() if name.startswith(prefix)}

    def _lookup_inside(self, request: pb.Lookup) -> pb.Lookup:
        inside = pb.Lookup()
        inside.CopyFrom(request)
        inside.table = self._inside(request.table)
        if request.clock:
            inside.clock = self._inside(request.clock)
        if request.HasField("reader"):
            inside.reader.clock = self._inside(request.reader.clock)
        return inside

    def _rows_outside(self, rows: Rows) -> Rows:
        if "clock" not in rows.metadata:
            return rows
        clocks: dict[str, NDArray[Any]] = {
            name: np.asarray(np.frompyfunc(self._outside, 1, 1)(array), object)
            for name, array in rows.metadata["clock"].items()
        }
        return replace(rows, metadata={**rows.metadata, "clock": clocks})
