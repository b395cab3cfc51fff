"""Tests of the key index: it is a dict from keys to slots, however its keys collide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from carls_jax.bank.columns import reserve
from carls_jax.bank.index import FIRST_CELLS, PARTITION_CELLS, KeyIndex
from carls_jax.errors import BankFullError, DtypeError, InvalidInputError, ShapeError
from carls_jax.keys import PADDING, splitmix64


class Owner:
    """Does what a table does for its index, and keeps the same in a dict."""

    def __init__(self, *, max_rows=4096, partition_cells=PARTITION_CELLS):
        self.column = reserve(max_rows, (), np.int64)
        self.index = KeyIndex(self.column, partition_cells=partition_cells)
        self.expected = {}
        self.free_slots = list(range(max_rows))[::-1]

    def insert(self, keys):
        slots = np.array([self.free_slots.pop() for _ in keys], np.int32)
        self.column[slots] = keys
        self.index.insert(np.array(keys, np.int64), slots)
        self.expected.update(zip(keys, slots.tolist(), strict=True))

    def remove(self, keys):
        self.index.remove(np.array(keys, np.int64))
        self.free_slots += [self.expected.pop(key) for key in keys]

    def check(self, absent=()):
        keys = [*self.expected, PADDING, *absent]
        found = self.index.find(np.array(keys, np.int64))
        assert found.dtype == np.intp
        assert found.tolist() == [self.expected.get(key, -1) for key in keys]
        assert len(self.index) == len(self.expected)


def key_of_hash(value):
    """Inverts SplitMix64, so that a test can choose where its keys collide."""

    def unshift(mixed, bits):
        plain = mixed
        for _ in range(64 // bits):
            plain = mixed ^ (plain >> bits)
        return plain

    value = unshift(value, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    value = unshift(value, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    value = (unshift(value, 30) - 0x9E3779B97F4A7C15) % 2**64
    return value - 2**64 if value >= 2**63 else value


def colliding_keys(num_keys, *, prefix=0, home=0):
    """Makes keys that agree in the highest and the lowest 24 bits of their hashes."""
    return [key_of_hash(prefix << 40 | i << 24 | home) for i in range(num_keys)]


# Up to 3 keys share their 10 highest bits, and up to 1,024 their home.
colliding_hashes = st.builds(
    lambda prefix, home: prefix << 54 | home, st.integers(0, 1023), st.integers(0, 2)
)
some_keys = colliding_hashes.map(key_of_hash) | st.integers(-50, 50).filter(PADDING.__ne__)


class IndexHistory(RuleBasedStateMachine):
    """Random histories of inserts, removals and searches."""

    @initialize(partition_cells=st.sampled_from([8, 16, 64]))
    def make(self, partition_cells):
        self.owner = Owner(partition_cells=partition_cells)

    @rule(keys=st.sets(some_keys, max_size=60))
    def insert(self, keys):
        self.owner.insert(sorted(keys - self.owner.expected.keys()))

    @precondition(lambda self: self.owner.expected)
    @rule(data=st.data())
    def remove(self, data):
        present = sorted(self.owner.expected)
        self.owner.remove(data.draw(st.lists(st.sampled_from(present), unique=True)))

    @precondition(lambda self: self.owner.expected)
    @rule()
    def remove_all(self):
        self.owner.remove(sorted(self.owner.expected))

    @rule(keys=st.lists(some_keys, max_size=30))
    def find(self, keys):
        found = self.owner.index.find(np.array(keys, np.int64)).tolist()
        assert found == [self.owner.expected.get(key, -1) for key in keys]

    @invariant()
    def finds_all(self):
        self.owner.check()


TestIndexHistory = IndexHistory.TestCase
TestIndexHistory.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)


def test_the_inverse_hash_of_these_tests_is_right():
    keys = np.array([key_of_hash(value) for value in (0, 1, 2**63, 2**64 - 1)])

    assert splitmix64(keys.view(np.uint64)).tolist() == [0, 1, 2**63, 2**64 - 1]


def test_an_empty_index_finds_nothing():
    index = Owner().index

    assert index.find(np.array([0, -1, 5, 5])).tolist() == [-1, -1, -1, -1]
    assert index.find(np.empty(0, np.int64)).shape == (0,)
    assert len(index) == 0


def test_zero_and_negative_keys_are_ordinary():
    owner = Owner()
    owner.insert([0, -2, -(2**63), 2**63 - 1])

    owner.check(absent=[1, 2])


def test_a_search_may_repeat_keys():
    owner = Owner()
    owner.insert([7, 9])

    assert owner.index.find(np.array([9, 7, 9, 3, 9])).tolist() == [1, 0, 1, -1, 1]


def test_the_key_of_slot_zero_is_found_behind_a_deleted_mark():
    # A mark holds no slot; reading the key column for it must not pass for a match.
    owner = Owner()
    late, early = colliding_keys(2)
    owner.free_slots[-2:] = [0, 1]
    owner.insert([early])
    owner.insert([late])
    owner.remove([early])

    assert owner.expected == {late: 0}
    owner.check(absent=[early])


def test_keys_with_one_home_are_all_found():
    owner = Owner()
    owner.insert(colliding_keys(300))

    owner.check(absent=colliding_keys(310)[300:])


def test_one_large_insert_splits_as_often_as_needed():
    owner = Owner(max_rows=60_000, partition_cells=64)
    owner.insert(list(range(50_000)))

    owner.check(absent=range(50_000, 50_100))


def test_full_grown_partitions_are_split():
    owner = Owner(max_rows=100_000)
    for start in range(0, 100_000, 10_000):
        owner.insert(list(range(start, start + 10_000)))

    owner.check(absent=range(100_000, 100_100))


def test_a_crowded_prefix_is_split_deeper_than_the_rest():
    owner = Owner(partition_cells=16)
    owner.insert(list(range(1000)))
    crowd = [key_of_hash(0b1011 << 60 | i << 50) for i in range(1000)]
    owner.insert(crowd)
    owner.remove(crowd[::2])

    owner.check(absent=crowd[::2])


def test_deleted_marks_are_cleaned_so_that_churn_takes_no_memory():
    owner = Owner(partition_cells=256)
    owner.insert(list(range(100)))
    memory_bytes = owner.index.memory_bytes

    for first in range(0, 5000, 50):
        owner.remove(list(range(first, first + 50)))
        owner.insert(list(range(first + 100, first + 150)))

    owner.check(absent=range(5000))
    assert owner.index.memory_bytes == memory_bytes


def test_memory_stays_within_sixteen_bytes_a_key():
    owner = Owner(max_rows=40_000)
    assert owner.index.memory_bytes < 4 * FIRST_CELLS + 100

    for start in range(0, 40_000, 2000):
        owner.insert(list(range(start, start + 2000)))
        assert owner.index.memory_bytes < 16 * len(owner.index)


def test_more_keys_with_one_prefix_than_a_partition_holds_are_refused_unchanged():
    owner = Owner(partition_cells=16)
    owner.insert(list(range(20)))
    before = dict(owner.expected)

    with pytest.raises(BankFullError, match="share 22 hash bits"):
        owner.insert(colliding_keys(20))

    assert owner.expected == before
    owner.check(absent=colliding_keys(20))
    owner.insert(list(range(20, 40)))
    owner.check()


def test_removing_an_absent_key_is_our_own_mistake():
    with pytest.raises(AssertionError, match="absent"):
        Owner().index.remove(np.array([3]))


@pytest.mark.parametrize("partition_cells", [-4, 0, 2, 12, 1 << 17])
def test_partitions_need_a_power_of_two_cells(partition_cells):
    with pytest.raises(InvalidInputError, match=f"received {partition_cells}"):
        Owner(partition_cells=partition_cells)


def test_the_key_column_must_be_flat_and_int64():
    with pytest.raises(DtypeError, match="received int32"):
        KeyIndex(np.zeros(4, np.int32))
    with pytest.raises(ShapeError, match=r"received \(2, 2\)"):
        KeyIndex(np.zeros((2, 2), np.int64))
    with pytest.raises(ShapeError, match="2147483647"):
        KeyIndex(reserve(1 << 31, (), np.int64))


def test_room_is_made_for_all_keys_before_any_is_inserted():
    owner = Owner(max_rows=20_000, partition_cells=64)
    keys = list(range(10_000))
    owner.index.make_room(np.array(keys))
    num_bytes = owner.index.memory_bytes
    owner.check(absent=keys)
    for start in range(0, 10_000, 100):
        owner.insert(keys[start : start + 100])
    assert owner.index.memory_bytes == num_bytes
    owner.check()


def test_room_for_keys_that_collide_on_purpose_is_refused():
    owner = Owner(partition_cells=64)
    keys = colliding_keys(100)
    with pytest.raises(BankFullError, match="choose other keys"):
        owner.index.make_room(np.array(keys))
    owner.insert([1, 2, 3])
    owner.check(absent=keys)
