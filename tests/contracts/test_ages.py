"""How old fields may be, asked of every kind of bank."""

from __future__ import annotations

from numpy.testing import assert_array_equal

from carls_jax.bank.interface import Bank
from carls_jax.bank.table import Table

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


def test_old_fields_are_not_found(nodes: Table) -> None:
    nodes.update([3, 1, 4], {"label": [30, 10, 40]}, step=100)
    nodes.update([1], {"label": [11]}, step=104)

    rows = nodes.lookup([3, 1, 9], fields=("label",), max_age_steps=5, now=106)

    assert_array_equal(rows.found, [False, True, False])
    assert_array_equal(rows["label"], [0, 11, 0])
    assert nodes.lookup([3], fields=("label",), max_age_steps=6, now=106).found.all()


def test_a_row_is_found_if_each_field_asked_for_is_young_enough(nodes: Table) -> None:
    nodes.update([3], {"label": [1], "confidence": [1.0]}, step=1)
    nodes.update([3], {"label": [2]}, step=9)

    rows = nodes.lookup([3], fields=("label", "confidence"), max_age_steps=2, now=10)

    assert_array_equal(rows.found, [False])
    assert_array_equal(rows.present["label"], [True])
    assert_array_equal(rows.present["confidence"], [False])
    assert_array_equal(rows["label"], [2])
    assert_array_equal(rows["confidence"], [0.0])


def test_a_field_never_written_has_no_age(nodes: Table) -> None:
    rows = nodes.lookup([3, 1], create=True, fields=("label",), max_age_steps=10**9)

    assert not rows.found.any()


def test_without_now_ages_are_measured_from_the_clock(nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS}, step=100)
    # One key, so in a sharded bank one shard alone gets a row.
    nodes.update([3], {"label": [3]}, step=110)

    rows = nodes.lookup(KEYS, fields=("label",), max_age_steps=5)

    assert_array_equal(rows.found, [key == 3 for key in KEYS])


def test_each_field_ages_on_the_clock_it_was_written_on(nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS}, step=100)
    nodes.update([1], {"label": [1]}, step=5, clock="teacher")
    nodes.update([4], {"label": [4]}, step=9, clock="teacher")

    def found(max_age_steps: int, now: int, clock: str) -> list[bool]:
        rows = nodes.lookup(
            [3, 1, 4], fields=("label",), max_age_steps=max_age_steps, now=now, clock=clock
        )
        return rows.found.tolist()

    assert found(3, 103, "main") == [True, False, True]
    assert found(3, 104, "main") == [False, False, True]
    assert found(0, 5, "teacher") == [True, True, True]


def test_advance_moves_a_clock_but_never_back(bank: Bank, nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS}, step=100)

    bank.advance(105)
    assert nodes.lookup(KEYS, fields=("label",), max_age_steps=5).found.all()
    bank.advance(106)
    bank.advance(50)
    assert not nodes.lookup(KEYS, fields=("label",), max_age_steps=5).found.any()
    assert bank.stats().clocks == {"main": 106}


def test_stats_tell_every_clocks_highest_step(bank: Bank, nodes: Table) -> None:
    nodes.update([3], {"label": [3]}, step=7)
    nodes.update([1], {"label": [1]}, step=9)
    nodes.push([4], {"embedding": [[1, 1]]}, step=2, clock="other")

    assert bank.stats().clocks == {"main": 9, "other": 2}
