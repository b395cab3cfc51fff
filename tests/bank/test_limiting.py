"""What a limit makes of a change before it gets its number: what is left out, and what goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.initializers import constant
from carls_jax.bank.limits import Limit
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankFullError, BankStorageError, NonFiniteError

FIELDS = {"x": Field(init=constant(5.0), optimizer=optimizer("sgd", learning_rate=1.0))}


class Keeper:
    """Keeps changes as a journal does, or refuses those of a kind."""

    def __init__(self) -> None:
        self.kept: list[Change] = []
        self.refused = ""

    def append(self, record: Change, sequence: int) -> None:
        if record.kind == self.refused:
            raise BankStorageError("the disk is full")
        assert sequence == len(self.kept) + 1
        self.kept.append(record.copy(updated_at=0))

    def wait(self, sequence: int) -> None:
        assert sequence <= len(self.kept)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def shard_of(limit: Limit, keeper: Keeper, **options: Any) -> Shard:
    shard = Shard()
    shard.keep_in(keeper)
    shard.apply(changes.create_table(TableSpec("t", FIELDS, limit=limit, **options)))
    return shard


def keys_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def update(*numbers: int, source: str = "") -> Change:
    values = {"x": np.array(numbers, np.float32)}
    return changes.update("t", keys_of(*numbers), values, by=author(source=source))


def push(*numbers: int, create: bool = True) -> Change:
    values = {"x": np.ones(len(numbers), np.float32)}
    return changes.push("t", keys_of(*numbers), values, by=author(), create=create)


def numbered(change: Change, number: int) -> Change:
    header = pb.Change()
    header.CopyFrom(change.header)
    header.client, header.number = "c" * 32, number
    return Change(header, change.keys, change.values)


def found(shard: Shard, *numbers: int, create: bool = False, **told: Any) -> list[bool]:
    request = pb.Lookup(table="t", fields=["x"], create=create, **told)
    return np.ravel(shard.lookup(request, keys_of(*numbers)).found).tolist()


# Admission


def test_a_key_gets_its_row_by_the_nth_change_that_would_create_it(keeper: Keeper) -> None:
    shard = shard_of(Limit(admit_after=3), keeper)
    assert shard.apply(update(1, 2, -1)).num_not_admitted == 2
    assert shard.apply(push(1, 3, 1)).num_not_admitted == 2
    assert found(shard, 1, 2, 3) == [False] * 3
    applied = shard.apply(update(1, 2, 4))
    assert (applied.num_created, applied.num_not_admitted) == (1, 2)
    assert found(shard, 1, 2, 3, 4) == [True, False, False, False]
    assert shard.apply(update(1)).num_not_admitted == 0
    assert shard.table("t").counts.read()["rows_not_admitted"] == 6


def test_a_lookup_that_creates_is_a_sighting_and_does_not_find_what_is_left_out(
    keeper: Keeper,
) -> None:
    shard = shard_of(Limit(admit_after=2), keeper)
    request = pb.Lookup(table="t", fields=["x"], create=True)
    rows = shard.lookup(request, keys_of(1, 2))
    assert (rows.num_created, rows.found.tolist(), rows["x"].tolist()) == (0, [False] * 2, [0, 0])
    rows = shard.lookup(request, keys_of(2, 3))
    assert (rows.num_created, rows.found.tolist()) == (1, [True, False])
    assert rows["x"].tolist() == [5, 0]


def test_what_creates_nothing_is_no_sighting(keeper: Keeper) -> None:
    shard = shard_of(Limit(admit_after=2), keeper)
    for _ in range(3):
        found(shard, 1)
        shard.apply(push(1, create=False))
        shard.apply(changes.delete("t", keys_of(1), by=author()))
    assert shard.apply(update(1)).num_not_admitted == 1


def test_the_change_that_is_numbered_names_padding_in_place_of_what_is_left_out(
    keeper: Keeper,
) -> None:
    shard = shard_of(Limit(admit_after=2), keeper)
    shard.apply(update(7))
    shard.apply(update(7))
    shard.apply(update(5, 7, 6, -1, 5))
    record = keeper.kept[-1]
    assert record.keys.tolist() == [-1, 7, -1, -1, -1]
    assert_array_equal(record.values["x"], [5, 7, 6, -1, 5])
    replayed = Shard()
    for sequence, change in enumerate(keeper.kept, 1):
        replayed.replay(change, sequence)
    assert found(replayed, 5, 6, 7) == found(shard, 5, 6, 7) == [False, False, True]


def test_a_change_that_is_sent_again_is_no_second_sighting(keeper: Keeper) -> None:
    shard = shard_of(Limit(admit_after=2), keeper)
    first = shard.apply(numbered(update(1), 1))
    again = shard.apply(numbered(update(1), 1))
    assert (first.num_not_admitted, again.is_repeated) == (1, True)
    assert found(shard, 1) == [False]
    assert shard.apply(numbered(update(1), 2)).num_created == 1


def test_a_change_that_is_refused_is_no_sighting(keeper: Keeper) -> None:
    shard = shard_of(Limit(admit_after=2, max_rows=2), keeper)
    nan = changes.update("t", keys_of(1), {"x": np.array([np.nan], np.float32)}, by=author())
    with pytest.raises(NonFiniteError):
        shard.apply(nan)
    keeper.refused = "update"
    with pytest.raises(BankStorageError):
        shard.apply(update(1))
    keeper.refused = ""
    assert shard.apply(update(1, 2, 3)).num_not_admitted == 3
    with pytest.raises(BankFullError):
        shard.apply(update(1, 2, 3))
    assert shard.apply(update(1, 4)).num_not_admitted == 1


def test_each_author_of_a_per_source_table_sees_for_itself(keeper: Keeper) -> None:
    shard = shard_of(Limit(admit_after=2), keeper, per_source=True)
    assert shard.apply(update(1, source="ann")).num_not_admitted == 1
    assert shard.apply(update(1, source="bob")).num_not_admitted == 1
    assert shard.apply(update(1, source="ann")).num_created == 1
    assert found(shard, 1, sources=["ann", "bob"]) == [True, False]


def test_only_rows_that_are_let_in_need_room(keeper: Keeper) -> None:
    shard = shard_of(Limit(admit_after=2, max_rows=2), keeper)
    for _ in range(2):
        shard.apply(update(1, 2))
    assert shard.apply(update(3, 4, 5)).num_evicted == 0
    assert found(shard, 1, 2) == [True, True]
    assert shard.apply(update(3)).num_evicted == 1


# Order


def test_evictions_are_kept_before_the_change_that_needs_the_room(keeper: Keeper) -> None:
    shard = shard_of(Limit(max_rows=2), keeper)
    shard.apply(update(1, 2))
    shard.apply(update(3))
    kinds = [change.kind for change in keeper.kept]
    assert kinds == ["create_table", "update", "evict", "update"]
    gone = keeper.kept[2]
    assert gone.header.evict.reason == "limit"
    assert gone.header.author.updated_at > 1e9
    assert (gone.header.client, gone.header.number) == ("", 0)
    assert found(shard, *gone.keys.tolist()) == [False]


@pytest.mark.parametrize("kind", ["evict", "update"])
def test_a_change_that_cannot_be_kept_leaves_the_table_within_its_limit(
    keeper: Keeper, kind: str
) -> None:
    shard = shard_of(Limit(max_rows=2), keeper)
    shard.apply(update(1, 2))
    keeper.refused = kind
    with pytest.raises(BankStorageError):
        shard.apply(update(3))
    assert found(shard, 3) == [False]
    assert sum(found(shard, 1, 2)) == (2 if kind == "evict" else 1)
    keeper.refused = ""
    assert shard.apply(update(3)).num_created == 1
    assert sum(found(shard, 1, 2)) == 1


def test_a_change_sent_again_evicts_once(keeper: Keeper) -> None:
    shard = shard_of(Limit(max_rows=2), keeper)
    shard.apply(update(1, 2))
    first = shard.apply(numbered(update(3), 1))
    shard.apply(update(4))
    again = shard.apply(numbered(update(3), 1))
    assert (first.num_evicted, again.is_repeated) == (1, True)
    assert again.sequence == first.sequence
    assert len(keeper.kept) == 6
