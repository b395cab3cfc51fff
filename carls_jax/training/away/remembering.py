"""`RememberingBank`: a bank that answers, while it is away, with the rows it was seen to have."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import Bank, joining
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, NO_STEP, Change, Keys
from carls_jax.bank.interface import Applied
from carls_jax.bank.joining import Followed
from carls_jax.bank.merging import Part, merged_rows
from carls_jax.bank.rows import Rows
from carls_jax.bank.values import check_gradients, check_keys, check_values
from carls_jax.keys import PADDING, shard_of
from carls_jax.training.away.absence import AWAY
from carls_jax.training.away.keeping import KeepingBank
from carls_jax.training.away.last_seen import ALL, LastSeen, RememberedRows
from carls_jax.training.away.outlasting_bank import OutlastingBank
from carls_jax.training.away.when_away import WhenAway


class RememberingBank(OutlastingBank):
    """Remembers the rows that are looked up, and answers with them for servers that are away.

    Such rows are of `RememberedRows`. How old one is, its step says; what is older than a lookup
    allows is not found, nor what was never seen. A chain is followed from here, link by link, so
    that what is on the way is seen, too. What needs an answer of its own, such as a scan, fails
    while a server that it concerns is away. Methods may be called from several threads at once.

    Args:
      bank: The bank.
      around: The same bank, made of `servers`; closed with this object.
      servers: In the order of the shards.
      when_away: The bounds.
    """

    def __init__(
        self, bank: Bank, around: Bank, servers: Sequence[KeepingBank], *, when_away: WhenAway
    ) -> None:
        super().__init__(around)
        self._plain = bank
        self._servers = servers
        self._is_closed = False
        self._wait_s = when_away.wait_s
        self._seen = LastSeen(max_bytes=when_away.max_seen_bytes)
        self._newest: dict[str, int] = {}  # step by clock, of the changes that passed here
        self._counts: Counter[str] = Counter()

    @property
    def is_away(self) -> bool:
        return any(server.is_away for server in self._servers)

    @property
    def is_settled(self) -> bool:
        return all(server.is_settled for server in self._servers)

    def settle(self, *, be_back: bool = False, wait: bool = True) -> None:
        deadline = time.monotonic() + self._wait_s
        for server in self._servers:
            server.settle(deadline, be_back=be_back, wait=wait)
        self.check()

    def check(self) -> None:
        for server in self._servers:
            server.check()

    def totals(self) -> dict[str, float]:
        totals: Counter[str] = Counter()
        for server in self._servers:
            totals.update(server.totals())
        counts = {name: self._counts[name] for name in ("rows_last_seen", "rows_never_seen")}
        return {**totals, **counts}

    def take_line(self) -> dict[str, float]:
        line = super().take_line()
        waiting = sum(server.num_kept for server in self._servers)
        return {**line, "away/changes_waiting": waiting} if line else {}

    def apply(self, change: Change) -> Applied:
        author = change.header.author
        self._newest[author.clock] = max(self._newest.get(author.clock, NO_STEP), author.step)
        if self.is_away and change.kind in ("update", "push"):
            self._check_values(change)
        return self._bank.apply(change)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        return self._looked_up(request, keys)

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = NO_KEYS) -> Followed:
        return joining.follow(
            partial(self._looked_up, is_counted=True),
            request,
            keys,
            held,
            spec_of=lambda name: self.table(name).spec,
        )

    def close(self) -> None:
        """Looks for servers no more, and drops what waits for them; calls go straight on."""
        self._is_closed = True
        around, self._bank = self._bank, self._plain
        if around is not self._plain:
            around.close()

    def _looked_up(self, request: pb.Lookup, keys: Keys, *, is_counted: bool = False) -> Rows:
        """Looks up, and counts in the ledger what the bank itself tells, if it is to be counted."""
        asked = _with_step(request)
        as_of = self.as_of()
        for _ in range(len(self._servers) + 1):
            is_away = self._are_away(keys)
            if is_away.all() and keys.size:
                break
            try:
                told = self._bank.lookup(asked, keys[~is_away] if is_away.any() else keys)
            except AWAY:  # from now on its server is known to be away
                if self._is_closed:
                    raise
                continue
            if is_counted:
                self._count(asked, told)
            self._seen.remember(asked, told, as_of=as_of)
            return self._completed(asked, keys, is_away, told)
        return self._recalled(asked, keys)

    def _check_values(self, change: Change) -> None:
        """Finds what a server would refuse later, while somebody is there to be told."""
        spec = self.table(change.header.table).spec
        check = check_gradients if change.kind == "push" else check_values
        check(spec, change.values, num_keys=check_keys(change.keys).size)

    def _are_away(self, keys: Keys) -> NDArray[np.bool_]:
        """Tells, `[n]`, which keys are not to be asked for; padding costs nothing here."""
        away = np.array([server.is_away for server in self._servers])
        if not away.any():
            return np.zeros(keys.size, np.bool_)
        return away[shard_of(keys, len(self._servers))] | (keys == PADDING)

    def _completed(
        self, asked: pb.Lookup, keys: Keys, is_away: NDArray[np.bool_], told: Rows
    ) -> Rows:
        """Returns what was told and, for the other keys, what is remembered."""
        if not is_away.any():
            return told
        recalled = self._recalled(asked, keys[is_away])
        places = [Part(0, np.flatnonzero(~is_away)), Part(1, np.flatnonzero(is_away))]
        rows = merged_rows(keys, places, [told, recalled], more_sources=set())
        as_of = np.full(keys.size, ALL)
        as_of[is_away] = recalled.as_of
        return RememberedRows(**vars(rows), as_of=as_of)

    def _recalled(self, asked: pb.Lookup, keys: Keys) -> RememberedRows:
        rows = self._seen.recall(self.table(asked.table).spec, asked, keys)
        if asked.HasField("max_age_steps"):
            rows = self._young(asked, rows)
        num_found = int(rows.found.sum())
        self._counts["rows_last_seen"] += num_found
        self._counts["rows_never_seen"] += int((keys != PADDING).sum()) - num_found
        return rows

    def _young(self, asked: pb.Lookup, rows: RememberedRows) -> RememberedRows:
        """Returns rows without the fields that are too old; all steps are taken as of one clock."""
        now = asked.now if asked.HasField("now") else self._newest.get(asked.clock, NO_STEP)
        present = {}
        for name, there in rows.present.items():
            step = rows.metadata["step"][name]
            present[name] = there & (step != NO_STEP) & (now - step <= asked.max_age_steps)
            rows.values[name][~present[name]] = 0
        return replace(rows, present=present, found=np.logical_and.reduce([*present.values()]))


def _with_step(request: pb.Lookup) -> pb.Lookup:
    """Returns a request whose answer says how old the fields are, if that matters."""
    if not request.HasField("max_age_steps") or "step" in request.metadata:
        return request
    asked = pb.Lookup()
    asked.CopyFrom(request)
    asked.metadata.append("step")
    return asked
