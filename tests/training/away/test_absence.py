from __future__ import annotations

import logging

import pytest

from carls_jax.errors import BankUnavailableError
from carls_jax.training.away.absence import Absence


def test_an_absence_is_told_once_however_many_notice_it(caplog: pytest.LogCaptureFixture) -> None:
    absence = Absence("the bank", meanwhile="waiting")
    with caplog.at_level(logging.WARNING):
        assert absence.seconds == 0
        absence.begin(BankUnavailableError("gone"))
        absence.begin(BankUnavailableError("gone"))
        absence.end()
        during = absence.seconds
        absence.begin(BankUnavailableError("gone"))
        absence.end()
        absence.end(told="; all is sent")
    told = [one.message for one in caplog.records]
    assert told[0] == "the bank is away; waiting: gone"
    assert told[1].startswith("the bank is back after ")
    assert told[1].endswith(" s; all is sent")
    assert len(told) == 2
    assert absence.num_times == 1
    assert absence.seconds >= during > 0


def test_who_gives_up_does_not_say_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    absence = Absence("the bank", meanwhile="waiting")
    absence.begin(BankUnavailableError("gone"))
    absence.end(is_back=False)
    assert [one.message for one in caplog.records] == ["the bank is away; waiting: gone"]
    absence.begin(BankUnavailableError("gone"))
    assert absence.num_times == 2
