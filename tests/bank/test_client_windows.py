from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import client_windows
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.client_windows import MAX_NUMBERS, ClientWindows
from carls_jax.bank.interface import Applied
from carls_jax.errors import InvalidInputError

ME, YOU = "a" * 32, "b" * 32


class Windows:
    """Makes changes, each with the next number of the bank."""

    def __init__(self) -> None:
        self.kept = ClientWindows()
        self.sequence = 0

    def make(self, number: int, client: str = ME, **answer: Any) -> Applied:
        applied = self.begin(number, client, **answer)
        self.kept.end(pb.Change(client=client, number=number), applied)
        return applied

    def begin(self, number: int, client: str = ME, **answer: Any) -> Applied:
        self.sequence += 1
        self.kept.begin(pb.Change(client=client, number=number), self.sequence)
        return Applied(self.sequence, **answer)

    def find(self, number: int, client: str = ME) -> Applied | None:
        return self.kept.find(pb.Change(client=client, number=number))

    def answered(self, number: int, client: str = ME) -> dict[str, Any]:
        found = self.find(number, client)
        assert found is not None
        assert found.is_repeated
        return {**vars(found), "unknown_keys": found.unknown_keys.tolist()}


@pytest.fixture
def windows() -> Windows:
    return Windows()


def unknown(*keys: int) -> dict[str, Any]:
    return {"unknown_keys": np.array(keys, np.int64)}


def test_a_change_is_new_once_and_then_answered(windows: Windows) -> None:
    assert windows.find(1) is None
    applied = windows.make(1, num_created=3, num_deleted=2, num_kept=1, **unknown(7, 9))
    expected = {**vars(applied), "is_repeated": True, "unknown_keys": [7, 9]}
    assert windows.answered(1) == windows.answered(1) == expected
    assert windows.find(2) is None
    assert windows.find(1, YOU) is None


def test_changes_without_a_number_are_never_repeated(windows: Windows) -> None:
    windows.make(0, "")
    assert windows.find(0, "") is None
    assert windows.kept.save() == {}


@pytest.mark.parametrize(("client", "number"), [(ME, 0), ("", 1), ("x" * 32, 1), (ME + "a", 1)])
def test_half_a_number_is_refused(windows: Windows, client: str, number: int) -> None:
    with pytest.raises(InvalidInputError, match=r"client='.*', number=\d: a client has 32 digits"):
        windows.find(number, client)


def test_numbers_may_come_in_any_order(windows: Windows) -> None:
    for number in (3, 1, 1000, 2):
        assert windows.find(number) is None
        windows.make(number)
    assert [windows.answered(number)["sequence"] for number in (1, 2, 3, 1000)] == [2, 4, 1, 3]


@pytest.mark.parametrize("jump", [1, 7, MAX_NUMBERS - 1, MAX_NUMBERS, 1 << 63])
def test_the_last_numbers_are_known_and_those_below_are_refused(
    windows: Windows, jump: int
) -> None:
    for number in range(1, MAX_NUMBERS + 1):
        windows.make(number)
    highest = MAX_NUMBERS + jump
    windows.make(highest)
    below = highest - MAX_NUMBERS
    with pytest.raises(InvalidInputError, match=f"change {below} of client a+: .*cannot tell"):
        windows.find(below)
    known = [number for number in range(1, MAX_NUMBERS + 1) if number > below]
    assert [row[0] for row in windows.kept.save()[ME]] == [*known, highest]
    assert [windows.answered(number)["sequence"] for number in known] == known


def test_the_client_whose_last_change_is_the_oldest_is_forgotten(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_windows, "MAX_CLIENTS", 2)
    third = "c" * 32
    for number, client in ((1, ME), (1, YOU), (2, ME), (1, third)):
        windows.make(number, client)
    assert windows.find(1, YOU) is None
    assert windows.answered(1)["sequence"] == 1
    assert windows.answered(1, third)["sequence"] == 4


def test_who_is_forgotten_depends_on_the_order_of_beginnings_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Changes of two tables may end in another order than that of their numbers."""
    monkeypatch.setattr(client_windows, "MAX_CLIENTS", 2)
    saved = []
    for order in ((0, 1, 2), (2, 1, 0)):
        windows = Windows()
        begun = [(name * 32, windows.begin(1, name * 32)) for name in "abc"]
        for i in order:
            windows.kept.end(pb.Change(client=begun[i][0], number=1), begun[i][1])
        saved.append(windows.kept.save())
    assert saved[0] == saved[1]
    assert list(saved[0]) == ["b" * 32, "c" * 32]


def test_a_number_under_way_elsewhere_is_refused(windows: Windows) -> None:
    windows.begin(1)
    with pytest.raises(InvalidInputError, match="is being applied to another table"):
        windows.find(1)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_unknown_keys_of_the_highest_numbers_are_kept_whatever_ends_first(
    windows: Windows, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(client_windows, "MAX_UNKNOWN_KEYS", 5)
    for number in order:
        windows.make(number, **unknown(10 * number, 10 * number + 1))
    windows.make(4)
    assert [windows.answered(number)["unknown_keys"] for number in (2, 3, 4)] == [
        [20, 21],
        [30, 31],
        [],
    ]
    with pytest.raises(
        InvalidInputError, match=r"change 1 .* was applied, .*which 2 keys were unknown is known no"
    ):
        windows.find(1)


def test_what_is_saved_is_json_and_goes_on_alike(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_windows, "MAX_CLIENTS", 2)
    monkeypatch.setattr(client_windows, "MAX_UNKNOWN_KEYS", 3)
    windows.make(1, YOU, num_kept=2)
    for number in (5, 4, 1500):
        windows.make(number, num_created=number, **unknown(1, 2))
    text = json.dumps(windows.kept.save())
    loaded = Windows()
    loaded.kept, loaded.sequence = ClientWindows.load(json.loads(text)), windows.sequence
    assert json.dumps(loaded.kept.save()) == text
    for one in (windows, loaded):
        assert one.answered(1, YOU)["num_kept"] == 2
        assert one.answered(1500)["unknown_keys"] == [1, 2]
        one.make(2, "c" * 32)
        one.make(1501, **unknown(3, 4))
    assert loaded.kept.save() == windows.kept.save()


def test_a_copy_stays_as_it_was(windows: Windows) -> None:
    windows.make(1)
    copied = windows.kept.copy()
    saved = copied.save()
    windows.make(2, **unknown(1))
    windows.make(1, YOU)
    assert copied.save() == saved


def test_an_answer_that_comes_late_is_not_taken_for_anothers(windows: Windows) -> None:
    early, late = windows.begin(1), windows.begin(1)
    for applied in (late, early):
        windows.kept.end(pb.Change(client=ME, number=1), applied)
    assert windows.answered(1)["sequence"] == late.sequence
