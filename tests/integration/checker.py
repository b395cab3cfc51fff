"""`Checker`: what a bank must hold after the calls that it acknowledged, and whether it does."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from carls_jax.bank.interface import Bank

from .operations import COUNTS, VALUES, Operation, operation, own_keys, owner_of


class Row(NamedTuple):
    """Is a row of "values": what was written last, and how often since it was created."""

    number: int
    version: int


@dataclass
class State:
    """Is what a writer's calls lead to.

    Attributes:
      rows: Its rows of "values", by key.
      pushed: How often rows of "counts" were pushed to, by key.
      changed: By how many pushes.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    pushed: Counter[int] = field(default_factory=Counter)
    changed: Counter[int] = field(default_factory=Counter)

    def add(self, done: Operation) -> None:
        """Takes in a call."""
        keys = done.keys.tolist()
        if done.kind == "push":
            self.pushed.update(keys)
            self.changed.update(set(keys))
        for key in () if done.kind == "push" else keys:
            if done.kind == "update":
                version = self.rows[key].version if key in self.rows else 0
                self.rows[key] = Row(done.number, version + 1)
            elif done.kind == "create":
                self.rows.setdefault(key, Row(0, 0))
            else:
                self.rows.pop(key, None)


class Account:
    """Knows what one writer was told; used by one thread at a time.

    Attributes:
      acknowledged: What its acknowledged calls lead to.
      num_acknowledged: How many there were.
    """

    def __init__(self, writer: int) -> None:
        self.writer = writer
        self.acknowledged = State()
        self.num_acknowledged = 0
        self._under_way: Operation | None = None

    def begin(self, number: int) -> Operation:
        """Notes, and returns, a call that begins; the one before was acknowledged."""
        assert self._under_way is None
        self._under_way = operation(self.writer, number)
        return self._under_way

    def end(self) -> None:
        """Notes that the call was acknowledged."""
        assert self._under_way is not None
        self.acknowledged.add(self._under_way)
        self._under_way = None
        self.num_acknowledged += 1

    def allowed(self) -> list[State]:
        """Returns the states that may be found: with and without the call under way, whole."""
        if self._under_way is None:
            return [self.acknowledged]
        other = copy.deepcopy(self.acknowledged)
        other.add(self._under_way)
        return [self.acknowledged, other]


@dataclass
class Verdict:
    """Tells what is wrong with a bank, in words, and how much was right.

    Attributes:
      num_acknowledged: Calls that were acknowledged.
      lost: Rows that lack a change that was acknowledged.
      twice: Rows with a change too many.
      torn: Rows of which some elements have a change and others do not.
    """

    num_acknowledged: int
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        wrong = [*self.lost, *self.twice, *self.torn][:10]
        return (
            f"{self.num_acknowledged} changes acknowledged; rows that lost one: {len(self.lost)}, "
            f"with one twice: {len(self.twice)}, torn: {len(self.torn)}"
        ) + "".join(f"\n  {one}" for one in wrong)

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.twice or self.torn)

    def compare(self, name: str, found: int | Row, expected: int | Row) -> None:
        """Says whether a count, or a row, lacks something or has too much."""
        number = found.version if isinstance(found, Row) else found
        wanted = expected.version if isinstance(expected, Row) else expected
        if found != expected:
            wrong = self.twice if number > wanted else self.lost
            wrong.append(f"{name}: found {found}, expected {expected}")


class Checker:
    """Keeps the accounts of writers, and holds a bank against them."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}

    def open(self, writer: int) -> Account:
        """Returns a new writer's account."""
        assert writer not in self.accounts
        self.accounts[writer] = Account(writer)
        return self.accounts[writer]

    def check(self, bank: Bank) -> Verdict:
        """Compares everything in a bank that nobody writes to."""
        accounts = self.accounts.values()
        verdict = Verdict(sum(account.num_acknowledged for account in accounts))
        rows, pushed, changed = _rows(bank, verdict), *_counts(bank, verdict)
        states = [_found(account, rows, pushed) for account in accounts]
        all_pushed: Counter[int] = sum((one.pushed for one in states), Counter())
        all_changed: Counter[int] = sum((one.changed for one in states), Counter())
        for key in all_pushed.keys() | pushed.keys():
            verdict.compare(f"pushes to {key}", pushed.get(key, 0), all_pushed[key])
            verdict.compare(f"version of {key}", changed.get(key, 0), all_changed[key])
        expected = {key: row for state in states for key, row in state.rows.items()}
        for key in expected.keys() | rows.keys():
            missing = Row(-1, -1)
            verdict.compare(f"row {key}", rows.get(key, missing), expected.get(key, missing))
        return verdict


def check_own_rows(bank: Bank, account: Account) -> None:
    """Raises AssertionError unless a writer reads what it was told that it wrote."""
    keys, state = own_keys(account.writer), account.acknowledged
    rows = bank.table(VALUES).lookup(keys, metadata=["version"])
    for place, key in enumerate(keys.tolist()):
        found = _row(rows["number"][place], rows.version["number"][place])
        expected = state.rows.get(key)
        assert (found if rows.found[place] else None) == expected, (key, found, expected)
        assert (rows["row"][place] == rows["number"][place]).all(), f"row {key} is torn"
    counted = bank.table(COUNTS).lookup(keys[:1])
    for name, values in counted.values.items():
        expected = state.pushed[int(keys[0])]
        assert (values == expected).all(), (name, values, expected)


def _row(number: int, version: int) -> Row:
    return Row(int(number), int(version))


def _found(account: Account, rows: Mapping[int, Row], pushed: Mapping[int, int]) -> State:
    """Returns which of the states of a writer that are allowed is there; else the first."""
    mark = int(own_keys(account.writer)[0])
    own = {key: row for key, row in rows.items() if owner_of(key) == account.writer}
    for state in account.allowed():
        if state.rows == own and state.pushed[mark] == pushed.get(mark, 0):
            return state
    return account.acknowledged


def _rows(bank: Bank, verdict: Verdict) -> dict[int, Row]:
    """Reads all rows of "values"."""
    found = {}
    for rows in bank.table(VALUES).scan(metadata=["version"]):
        for place, key in enumerate(rows.keys.tolist()):
            number, values = rows["number"][place], rows["row"][place]
            if (values != number).any():
                verdict.torn.append(f"row {key}: {number} and {values}")
            found[key] = _row(number, rows.version["number"][place])
    return found


def _counts(bank: Bank, verdict: Verdict) -> tuple[dict[int, int], dict[int, int]]:
    """Reads all rows of "counts": how often each was pushed to, and by how many changes."""
    pushed, changed = {}, {}
    for rows in bank.table(COUNTS).scan(metadata=["version"]):
        for place, key in enumerate(rows.keys.tolist()):
            values = np.concatenate([rows["now"][place], rows["late"][place]])
            if (values != values[0]).any():
                verdict.torn.append(f"counts of {key}: {values}")
            pushed[key] = int(values[0])
            changed[key] = int(rows.version["now"][place])
    return pushed, changed
