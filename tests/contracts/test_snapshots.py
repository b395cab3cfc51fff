"""What snapshots keep, asked of every kind of bank."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax import errors
from carls_jax.bank.interface import Bank
from carls_jax.bank.rows import METADATA

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


def test_a_restored_bank_is_as_it_was(rooted_bank: Bank, specs: SimpleNamespace) -> None:
    nodes, words = rooted_bank.table(specs.nodes), rooted_bank.table(specs.words)
    messages = rooted_bank.table(specs.messages)
    nodes.update(KEYS, {"label": KEYS}, step=5)
    nodes.push([3, 1], {"embedding": np.ones((2, 2))}, step=6)
    words.update(["cat"], {"count": [1]})
    messages.update([3, 1], {"text": [[1, 2], [3, 4]]}, source="bob")
    before = nodes.lookup(KEYS, metadata=METADATA)
    incarnation = rooted_bank.identity.incarnation

    taken = rooted_bank.snapshot("step-6")
    nodes.update([77, 3], {"label": [1, 1]}, step=50)
    nodes.delete([1])
    words.update(["dog"], {"count": [2]})
    restored = rooted_bank.restore(taken)

    assert restored == taken
    assert taken.num_rows == 11
    after = nodes.lookup(KEYS, metadata=METADATA)
    assert_array_equal(after["label"], before["label"])
    assert_array_equal(after["embedding"], before["embedding"])
    for kind in METADATA:
        assert_array_equal(after.metadata[kind]["embedding"], before.metadata[kind]["embedding"])
    assert len(nodes) == 8
    assert_array_equal(words.lookup(["cat", "dog"]).found, [True, False])
    assert messages.lookup([3]).sources == ("bob",)
    assert rooted_bank.stats().clocks == {"main": 6}
    assert rooted_bank.identity.incarnation != incarnation
    assert rooted_bank.identity.bank_id == taken.bank_id
    # It goes on from there.
    nodes.push([3], {"embedding": [[1, 1]]}, step=7)
    assert_array_equal(nodes.lookup([3])["embedding"], [[7.0, 7.0]])


def test_snapshots_are_listed_oldest_first_and_named_by_label_or_uuid(
    rooted_bank: Bank, specs: SimpleNamespace
) -> None:
    nodes = rooted_bank.table(specs.nodes)
    taken = []
    for value, label in ((1, "a"), (2, "b"), (3, "a")):
        nodes.update(KEYS, {"label": [value] * 8})
        taken.append(rooted_bank.snapshot(label))

    assert rooted_bank.snapshots() == taken
    assert [one.num_rows for one in rooted_bank.snapshots()] == [8, 8, 8]
    for wanted, value in (("a", 3), (taken[0].uuid, 1), ("b", 2), (taken[0], 1)):
        rooted_bank.restore(wanted)
        assert_array_equal(nodes.lookup(KEYS)["label"], [value] * 8)


def test_the_uuid_of_a_snapshot_may_be_chosen(rooted_bank: Bank, specs: SimpleNamespace) -> None:
    rooted_bank.table(specs.nodes)

    assert rooted_bank.snapshot("s", uuid="c" * 32).uuid == "c" * 32
    assert [one.uuid for one in rooted_bank.snapshots()] == ["c" * 32]


def test_only_snapshots_of_this_bank_are_restored(
    rooted_bank: Bank, specs: SimpleNamespace
) -> None:
    nodes = rooted_bank.table(specs.nodes)
    taken = rooted_bank.snapshot("s")
    nodes.update(KEYS, {"label": KEYS})

    with pytest.raises(errors.BankIdentityError, match=taken.bank_id):
        rooted_bank.restore(replace(taken, bank_id="another"))
    with pytest.raises(errors.SnapshotNotFoundError, match="there are: s"):
        rooted_bank.restore("t")
    assert_array_equal(nodes.lookup(KEYS)["label"], KEYS)


def test_a_bank_without_a_root_takes_no_snapshots(bank: Bank) -> None:
    assert bank.snapshots() == []
    with pytest.raises(errors.InvalidInputError, match="no root directory"):
        bank.snapshot("s")


def test_a_label_must_be_a_name(rooted_bank: Bank) -> None:
    with pytest.raises(errors.InvalidInputError, match="a b"):
        rooted_bank.snapshot("a b")
    assert rooted_bank.snapshots() == []


def test_a_snapshot_is_verified_and_nothing_is_changed(
    rooted_bank: Bank, specs: SimpleNamespace
) -> None:
    nodes = rooted_bank.table(specs.nodes)
    taken = rooted_bank.snapshot("s")
    nodes.update(KEYS, {"label": KEYS})
    incarnation = rooted_bank.identity.incarnation

    for wanted in (taken, taken.uuid, "s"):
        assert rooted_bank.verify(wanted) == taken
    with pytest.raises(errors.BankIdentityError, match="another"):
        rooted_bank.verify(replace(taken, bank_id="another"))
    with pytest.raises(errors.SnapshotNotFoundError, match="there are: s"):
        rooted_bank.verify("t")
    assert_array_equal(nodes.lookup(KEYS)["label"], KEYS)
    assert rooted_bank.identity.incarnation == incarnation


def test_pinned_snapshots_outlast_newer_ones_until_they_are_released(rooted_bank: Bank) -> None:
    first, second = rooted_bank.snapshot("first"), rooted_bank.snapshot("second")
    rooted_bank.pin("run", [first, second.uuid])
    rooted_bank.pin("run", [first])
    for _ in range(10):  # as many as are kept
        rooted_bank.snapshot("later")
    assert [one.label for one in rooted_bank.snapshots()] == ["first"] + ["later"] * 10
    rooted_bank.pin("run", [])
    rooted_bank.snapshot("last")
    assert first not in rooted_bank.snapshots()


def test_only_snapshots_that_there_are_can_be_pinned(rooted_bank: Bank) -> None:
    taken = rooted_bank.snapshot("s")
    for unknown in ("s", "0" * 32, replace(taken, uuid="1" * 32)):
        with pytest.raises(errors.SnapshotNotFoundError, match="there are: s"):
            rooted_bank.pin("run", [taken, unknown])
    with pytest.raises(errors.InvalidInputError, match="owner=''"):
        rooted_bank.pin("", [taken])
