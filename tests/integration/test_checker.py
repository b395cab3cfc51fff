"""The checker of the crash tests finds what it looks for."""

from __future__ import annotations

import numpy as np
import pytest

from carls_jax.bank.local import LocalBank

from .checker import Checker, Verdict
from .operations import COUNTS, VALUES, WIDTH, Operation, operation, own_keys, perform

NUM_OPERATIONS = 40
WRITER = 3


def verdict_on(*performed: Operation, begun: int = NUM_OPERATIONS) -> Verdict:
    """Judges a bank that did these, where 40 were acknowledged and as many begun as is said."""
    checker = Checker()
    account = checker.open(WRITER)
    for number in range(1, begun + 1):
        account.begin(number)
        if number <= NUM_OPERATIONS:
            account.end()
    with LocalBank() as bank:
        bank.table(COUNTS)
        bank.table(VALUES)
        for one in performed:
            perform(bank, one)
        return checker.check(bank)


def done(last: int = NUM_OPERATIONS) -> list[Operation]:
    return [operation(WRITER, number) for number in range(1, last + 1)]


def last_of(kind: str) -> int:
    """Returns the place of the last operation of a kind, among all that were done."""
    return max(place for place, one in enumerate(done()) if one.kind == kind)


def test_a_bank_that_did_all_is_good() -> None:
    verdict = verdict_on(*done())
    assert verdict.is_good, verdict
    assert verdict.num_acknowledged == NUM_OPERATIONS


@pytest.mark.parametrize("is_there", [True, False])
def test_a_call_that_was_not_acknowledged_may_be_there_or_not(is_there: bool) -> None:
    verdict = verdict_on(*done(NUM_OPERATIONS + is_there), begun=NUM_OPERATIONS + 1)
    assert verdict.is_good, verdict


@pytest.mark.parametrize("kind", ["push", "update"])
def test_a_lost_change_is_found(kind: str) -> None:
    rest = done()
    del rest[last_of(kind)]
    verdict = verdict_on(*rest)
    assert verdict.lost
    assert not verdict.torn


def test_a_lost_change_is_found_under_a_later_one() -> None:
    verdict = verdict_on(*[one for one in done() if one.number != 2 or one.kind == "create"])
    assert verdict.lost


@pytest.mark.parametrize("kind", ["push", "update"])
def test_a_change_that_was_applied_twice_is_found(kind: str) -> None:
    place = last_of(kind)
    verdict = verdict_on(*done()[: place + 1], *done()[place:])
    assert verdict.twice
    assert not verdict.torn


def test_torn_rows_are_found() -> None:
    keys = own_keys(WRITER)[:1]
    row = np.repeat([0.0, 1.0], WIDTH // 2)[None]
    with LocalBank() as bank:
        bank.table(COUNTS).update(keys, {"now": row, "late": 0 * row})
        bank.table(VALUES).update(keys, {"row": row, "number": [1]})
        assert len(Checker().check(bank).torn) == 2
