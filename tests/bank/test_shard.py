from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import changes, shard, table_shard
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.interface import SnapshotIdentity
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankClosedError,
    BankFullError,
    BankOverloadedError,
    BankStorageError,
    CarlsError,
    FieldNotFoundError,
    InvalidInputError,
    KeyKindError,
    ShapeError,
    SpecMismatchError,
    TableNotFoundError,
)

from .conftest import rows_of

SGD = optimizer("sgd", learning_rate=1.0)
SPEC = TableSpec("t", {"x": Field(history=2), "w": Field(optimizer=SGD)}, max_rows=4)
SAID = TableSpec("said", {"x": Field()}, per_source=True)
ME = author(source="me", step=3)

Unchanged = Callable[[Shard], AbstractContextManager[None]]
SNAPSHOT = SnapshotIdentity("b", "s", "0" * 32)


@pytest.fixture
def bank() -> Shard:
    bank = Shard()
    bank.apply(changes.create_table(SPEC))
    bank.apply(changes.create_table(SAID))
    return bank


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def update(*numbers: int, table: str = "t", by: pb.Author = ME) -> Change:
    return changes.update(table, keys(*numbers), {"x": keys(*numbers).astype("f4")}, by=by)


def lookup(bank: Shard, *numbers: int, **arguments: Any) -> Any:
    request = pb.Lookup(**{"table": "t", "fields": ["x"], **arguments})
    return bank.lookup(request, keys(*numbers))


# Numbers, times and copies


def test_changes_are_numbered_one_by_one_and_refused_ones_are_not(bank: Shard) -> None:
    first = bank.apply(update(1)).sequence
    with pytest.raises(BankFullError):
        bank.apply(update(2, 3, 4, 5))
    assert bank.apply(changes.advance(by=ME)).sequence == first + 1
    assert bank.apply(changes.create_table(SPEC)).sequence == first + 2
    assert bank.stats().sequence == first + 2


def test_numbers_are_given_once_whatever_the_table(bank: Shard) -> None:
    def write(table: str) -> list[int]:
        return [bank.apply(update(1, table=table)).sequence for _ in range(200)]

    with ThreadPoolExecutor(2) as pool:
        of_t, of_said = pool.map(write, ("t", "said"))
    assert sorted(of_t + of_said) == list(range(3, 403))
    assert of_t == sorted(of_t)


def test_the_callers_change_stays_as_it_was(bank: Shard) -> None:
    change = update(1)
    header = change.header.SerializeToString()
    before = time.time()
    bank.apply(change)
    assert change.header.SerializeToString() == header
    table = bank.table("t")
    stamped = float(table.columns["updated_at/x"][table.find(keys(1))][0])
    assert before <= stamped <= time.time()


def test_a_change_that_has_a_time_keeps_it(bank: Shard) -> None:
    bank.apply(update(1, by=author(updated_at=5.0)))
    rows = lookup(bank, 1, metadata=["updated_at"])
    assert rows.updated_at["x"].tolist() == [5.0]


def test_what_was_checked_cannot_be_altered_before_it_is_applied(bank: Shard) -> None:
    change = update(1, 2)
    checked, altered = threading.Event(), threading.Event()
    table = bank.table("t")
    make_room = table.make_room

    def wait_after_checks(*arguments: Any, **options: Any) -> None:
        make_room(*arguments, **options)
        checked.set()
        assert altered.wait(10)

    table.make_room = wait_after_checks  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(bank.apply, change)
        assert checked.wait(10)
        change.keys[:] = 77
        change.values["x"][:] = np.nan
        change.header.author.step = 99
        change.header.table = "said"
        altered.set()
        assert applying.result(10).num_created == 2
    rows = lookup(bank, 1, 2, 77, metadata=["step"])
    assert rows["x"].tolist() == [1.0, 2.0, 0.0]
    assert rows.step["x"].tolist() == [3, 3, -1]


# Clocks


def test_every_change_tells_its_clock_and_none_turns_it_back(bank: Shard) -> None:
    bank.apply(update(1, by=author(step=5)))
    bank.apply(update(1, by=author(step=2)))
    bank.apply(changes.advance(by=author(step=7, clock="other")))
    bank.apply(changes.delete("t", keys(9), by=author()))
    assert bank.stats().clocks == {"main": 5, "other": 7}


def test_a_bank_knows_a_bounded_number_of_clocks(
    bank: Shard, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "MAX_CLOCKS", 1)
    bank.apply(changes.advance(by=author(step=1, clock="a")))
    with unchanged(bank), pytest.raises(BankOverloadedError, match=r"clock='b'.*at most 1"):
        bank.apply(changes.advance(by=author(step=1, clock="b")))
    bank.apply(changes.advance(by=author(step=2, clock="a")))


# Tables


def test_a_bank_holds_a_bounded_number_of_tables(
    bank: Shard, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "MAX_TABLES", 2)
    with unchanged(bank), pytest.raises(BankOverloadedError, match=r"'more'.*at most 2"):
        bank.apply(changes.create_table(TableSpec("more", {"x": Field()})))
    bank.apply(changes.create_table(SPEC))


def test_a_table_is_made_once(bank: Shard, unchanged: Unchanged) -> None:
    table = bank.table("t")
    bank.apply(changes.create_table(SPEC))
    assert bank.table("t") is table
    with unchanged(bank), pytest.raises(SpecMismatchError, match="'t' exists with another spec"):
        bank.apply(changes.create_table(TableSpec("t", {"x": Field()})))


def test_a_table_that_the_machine_cannot_hold_is_not_made(
    bank: Shard, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BankFullError("no addresses")

    monkeypatch.setattr(table_shard, "reserve", refuse)
    with unchanged(bank), pytest.raises(BankFullError):
        bank.apply(changes.create_table(TableSpec("more", {"x": Field()})))


def test_many_threads_make_one_table() -> None:
    bank, start = Shard(), threading.Barrier(8)

    def make(_: int) -> int:
        start.wait(10)
        return bank.apply(changes.create_table(SPEC)).sequence

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(make, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    assert list(bank.stats().tables) == ["t"]


# Lookups that create


def test_a_lookup_creates_what_is_missing_and_counts_once(bank: Shard) -> None:
    bank.apply(update(1))
    rows = lookup(bank, 1, 2, -1, 2, create=True, reader=author())
    assert rows.num_created == 1
    assert rows.found.tolist() == [True, True, False, True]
    counters = bank.stats().tables["t"].counters
    assert (counters["lookup_calls"], counters["rows_looked_up"]) == (1, 4)
    assert counters["rows_created"] == 2


def test_a_lookup_that_finds_all_its_keys_is_no_change(bank: Shard) -> None:
    bank.apply(update(1))
    before = bank.stats().sequence
    assert lookup(bank, 1, -1, create=True, reader=author()).num_created == 0
    assert bank.stats().sequence == before


def test_a_row_too_old_to_be_found_is_not_created_again(bank: Shard) -> None:
    bank.apply(update(1, by=author(step=1)))
    rows = lookup(bank, 1, create=True, reader=author(), max_age_steps=0, now=9, clock="main")
    assert (rows.num_created, rows.found.tolist(), rows["x"].tolist()) == (0, [False], [0.0])
    assert lookup(bank, 1)["x"].tolist() == [1.0]


def test_a_lookup_creates_the_readers_own_rows_alone(bank: Shard) -> None:
    bank.apply(update(1, 2, table="said", by=author(source="bob", step=3)))
    rows = lookup(
        bank, 1, 2, table="said", sources=["bob"], create=True, reader=author(source="me")
    )
    assert (rows.num_created, rows.sources) == (2, ("bob",))
    rows = lookup(bank, 1, 2, table="said", sources=["*"], metadata=["source", "step"])
    assert rows.sources == ("bob", "me")
    assert rows.source["x"].tolist() == [["bob", "me"]] * 2
    assert rows.step["x"].tolist() == [[3, -1]] * 2


def test_a_full_table_refuses_a_lookup_that_would_create(bank: Shard, unchanged: Unchanged) -> None:
    bank.apply(update(1, 2, 3))
    with unchanged(bank), pytest.raises(BankFullError, match="3 of at most 4 rows; 2 more"):
        lookup(bank, 4, 5, create=True, reader=author())
    assert lookup(bank, 4, 5).found.tolist() == [False, False]


# Bad requests


BAD_REQUESTS: dict[str, tuple[Callable[[Shard], Any], type[CarlsError], str]] = {
    "no table": (lambda b: lookup(b, 1, table="u"), TableNotFoundError, "'u'.*said, t"),
    "no field": (lambda b: lookup(b, 1, fields=["y"]), FieldNotFoundError, "'y'.*it has x, w"),
    "no fields": (lambda b: lookup(b, 1, fields=[]), InvalidInputError, "name at least one of x"),
    "metadata": (
        lambda b: lookup(b, 1, metadata=["age"]),
        InvalidInputError,
        "metadata='age': allowed are version, step",
    ),
    "no keys": (lambda b: lookup(b), ShapeError, r"shape \[0\]"),
    "narrow keys": (
        lambda b: b.lookup(pb.Lookup(table="t", fields=["x"]), np.array([1], np.int32)),
        KeyKindError,
        "int32",
    ),
    "creation by nobody": (
        lambda b: lookup(b, 1, table="said", create=True, reader=pb.Author()),
        InvalidInputError,
        "source=''",
    ),
    "no history": (
        lambda b: b.history(pb.History(table="t", field="w"), keys(1)),
        InvalidInputError,
        "'w' keeps no history",
    ),
    "history of no field": (
        lambda b: b.history(pb.History(table="t", field="y"), keys(1)),
        FieldNotFoundError,
        "'y'",
    ),
    "history of no keys": (
        lambda b: b.history(pb.History(table="t", field="x"), keys()),
        ShapeError,
        r"\[0\]",
    ),
    "scan of too many": (
        lambda b: b.scan(pb.Scan(table="t", fields=["x"], num_rows=(1 << 20) + 1)),
        InvalidInputError,
        "num_rows=1048577: allowed is 1 to 1048576",
    ),
    "update of no table": (lambda b: b.apply(update(1, table="u")), TableNotFoundError, "'u'"),
    "change of no kind": (
        lambda b: b.apply(Change(pb.Change(table="t", author=ME), keys(1))),
        InvalidInputError,
        "kind='None'",
    ),
    "advance by nobody": (
        lambda b: b.apply(changes.advance(by=pb.Author())),
        InvalidInputError,
        "clock=''",
    ),
    "table of nothing": (
        lambda b: b.apply(Change(pb.Change(create_table=pb.CreateTable()))),
        InvalidInputError,
        "describes no TableSpec",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_says_why_and_changes_nothing(
    bank: Shard, unchanged: Unchanged, name: str
) -> None:
    ask, error, text = BAD_REQUESTS[name]
    bank.apply(update(1, 2))
    with unchanged(bank), pytest.raises(error, match=text):
        ask(bank)


def test_an_empty_bank_says_that_it_has_no_tables() -> None:
    with pytest.raises(TableNotFoundError, match="has none yet"):
        Shard().table("t")


# Snapshots


def snapshot(bank: Shard, path: Path) -> SnapshotContent:
    store = SnapshotStore(path, bank_id="b")
    with bank.frozen() as (tables, clocks, sequence, clients):
        store.write(SNAPSHOT, tables, clocks=clocks, sequence=sequence, clients=clients)
    return store.read(SNAPSHOT)


def test_a_restored_shard_is_as_it_was_and_goes_on(
    bank: Shard, state_of: Any, tmp_path: Path
) -> None:
    bank.apply(update(1, 2, by=author(step=5, clock="c", source="me")))
    bank.apply(changes.push("t", keys(2, 3), {"w": np.ones(2, np.float32)}, by=ME))
    bank.apply(update(1, table="said", by=author(source="bob")))
    bank.apply(changes.delete("t", keys(1), by=ME))
    content, before = snapshot(bank, tmp_path), state_of(bank)
    bank.apply(update(7, by=author(step=99)))
    bank.apply(changes.create_table(TableSpec("more", {"x": Field()})))

    # Numbers never go back, so that none is given twice.
    for one, sequence in ((bank, bank.stats().sequence + 1), (Shard(), content.sequence)):
        one.replaced_by(content)
        assert state_of(one) == {**before, "sequence": sequence}
        assert one.apply(update(4)).sequence == sequence + 1
        with pytest.raises(TableNotFoundError):
            one.table("more")


def test_what_is_frozen_stays_as_it_was_while_changes_go_on(bank: Shard) -> None:
    bank.apply(update(1))
    with bank.frozen() as (images, clocks, sequence, _):
        bank.apply(update(2, 1, by=author(step=50)))
        bank.apply(update(1, table="said"))
        bank.apply(changes.create_table(TableSpec("more", {"x": Field()})))
        bank.apply(changes.advance(by=author(step=60)))
        assert lookup(bank, 1, 2).found.tolist() == [True, True]
        assert [(one.spec.name, one.num_rows) for one in images] == [("said", 0), ("t", 1)]
        held = rows_of(images[1])
        assert (held["key"].tolist(), held["version/x"].tolist()) == ([1], [1])
        assert (clocks, sequence) == ({"main": 3}, 3)
    assert bank.stats().clocks == {"main": 60}
    assert lookup(bank, 1, metadata=["version"]).version["x"].tolist() == [2]


def test_a_change_that_waited_for_a_restore_goes_to_the_restored_table(
    bank: Shard, tmp_path: Path
) -> None:
    content = snapshot(bank, tmp_path)
    old = bank.table("t")
    with ThreadPoolExecutor(1) as pool:
        with old.writer:
            applying = pool.submit(bank.apply, update(1))
            # As `replaced_by` does while it holds the writers of all tables.
            fresh = Shard()
            fresh.replaced_by(content)
            bank._tables = fresh._tables
        assert applying.result(10).num_created == 1
    assert lookup(bank, 1).found.tolist() == [True]
    assert old.num_rows == 0


def test_changes_during_restores_are_in_the_restored_state_or_before_it(
    bank: Shard, tmp_path: Path
) -> None:
    """Whatever was numbered after a restore is there: none went to a table that was replaced."""
    content = snapshot(bank, tmp_path)
    stop, restored_at = threading.Event(), list[int]()

    def write() -> int:
        last = 0
        while not stop.is_set():
            last = bank.apply(update(1, 2, by=author(step=last))).sequence
        return last

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write) for _ in range(2)]
        for _ in range(20):
            bank.replaced_by(content, keep=lambda state: restored_at.append(state.sequence))
        stop.set()
        for one in writing:
            one.result(10)
    versions = lookup(bank, 1, metadata=["version"]).version["x"]
    assert_array_equal(versions, [bank.stats().sequence - restored_at[-1]])


# Changes that are sent again


def numbered(change: Change, number: int = 1, client: str = "c" * 32) -> Change:
    change.header.client, change.header.number = client, number
    return change


def test_a_change_that_is_sent_again_is_answered_and_not_applied(
    bank: Shard, unchanged: Unchanged
) -> None:
    push = changes.push("t", keys(2, 3), {"w": np.ones(2, "f4")}, by=ME, create=False)
    made = [update(1), push, changes.create_table(SPEC), changes.delete("t", keys(1), by=ME)]
    made += [changes.create_rows("t", keys(2), by=ME), changes.advance(by=ME)]
    for number, change in enumerate(made, 1):
        first = bank.apply(numbered(change, number))
        with unchanged(bank):
            again = bank.apply(numbered(change, number))
        assert str(again) == str(replace(first, is_repeated=True))
    assert bank.apply(numbered(push, 2)).unknown_keys.tolist() == [2, 3]


def test_a_change_sent_again_while_it_is_applied_waits_for_its_answer(bank: Shard) -> None:
    table, checked, go_on = bank.table("t"), threading.Event(), threading.Event()
    make_room = table.make_room

    def wait_after_checks(*arguments: Any, **options: Any) -> None:
        make_room(*arguments, **options)
        checked.set()
        assert go_on.wait(10)

    table.make_room = wait_after_checks  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(bank.apply, numbered(update(1)))]
        assert checked.wait(10)
        tries += [pool.submit(bank.apply, numbered(update(1))) for _ in range(3)]
        go_on.set()
        answers = [one.result(10) for one in tries]
    assert [one.is_repeated for one in answers] == [False, True, True, True]
    assert len({one.sequence for one in answers}) == 1
    assert lookup(bank, 1, metadata=["version"]).version["x"].tolist() == [1]


def test_a_refused_change_may_be_sent_again(bank: Shard) -> None:
    bank.apply(update(1, 2, 3))
    with pytest.raises(BankFullError):
        bank.apply(numbered(update(4, 5)))
    bank.apply(changes.delete("t", keys(1), by=ME))
    bank.apply(changes.delete("t", keys(2), by=ME))
    applied = bank.apply(numbered(update(4, 5)))
    assert (applied.is_repeated, applied.num_created) == (False, 2)


def test_what_clients_were_answered_is_part_of_the_state(
    bank: Shard, unchanged: Unchanged, tmp_path: Path
) -> None:
    bank.apply(numbered(update(1), 1))
    content = snapshot(bank, tmp_path)
    bank.apply(numbered(update(2), 2))
    fresh = Shard()
    for one in (bank, fresh):
        one.replaced_by(content)
        with unchanged(one):
            assert one.apply(numbered(update(1), 1)).is_repeated
        # Its effect was lost with the later state, so it is made again.
        assert not one.apply(numbered(update(2), 2)).is_repeated


# Changes that are kept


class Keeping:
    """Keeps changes, or refuses to."""

    def __init__(self, *errors: Exception) -> None:
        self.kept: list[tuple[int, str]] = []
        self.waited: list[int] = []
        self.errors = list(errors)

    def append(self, record: Change, sequence: int) -> None:
        if self.errors:
            raise self.errors.pop()
        self.kept.append((sequence, record.kind))

    def wait(self, sequence: int) -> None:
        assert sequence in [number for number, _ in self.kept]
        self.waited.append(sequence)


def test_each_change_is_kept_before_it_is_applied_and_waited_for_after(bank: Shard) -> None:
    keeping = Keeping()
    bank.keep_in(keeping)
    bank.apply(numbered(update(1)))
    lookup(bank, 2, create=True, reader=ME)
    bank.apply(numbered(update(1)))  # whoever asks again is told no sooner than the first
    with pytest.raises(BankFullError):
        bank.apply(update(3, 4, 5))
    assert keeping.kept == [(3, "update"), (4, "create_rows")]
    assert keeping.waited == [3, 4, 3]


def test_a_change_that_cannot_be_kept_alters_nothing(bank: Shard, unchanged: Unchanged) -> None:
    keeping = Keeping(BankStorageError("full"))
    bank.keep_in(keeping)
    with unchanged(bank), pytest.raises(BankStorageError, match="full"):
        bank.apply(numbered(update(1)))
    applied = bank.apply(numbered(update(1)))
    assert (applied.sequence, applied.is_repeated) == (3, False)


def test_a_closed_shard_applies_nothing(bank: Shard, unchanged: Unchanged) -> None:
    bank.close()
    with unchanged(bank), pytest.raises(BankClosedError):
        bank.apply(update(1))
