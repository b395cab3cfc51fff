from __future__ import annotations

from collections import Counter

import numpy as np

from carls_jax.bank.sightings import Sightings


def test_few_keys_are_counted_exactly() -> None:
    sightings = Sightings(1 << 20)
    rng = np.random.default_rng(0)
    expected: Counter[int] = Counter()
    for _ in range(30):
        keys = rng.choice(1000, 100, replace=False) - 500
        sightings.note(keys)
        expected.update(keys.tolist())
    keys = np.arange(-600, 600)
    assert sightings.counts(keys).tolist() == [expected[key] for key in keys.tolist()]


def test_no_count_is_too_low_and_few_are_too_high() -> None:
    """As full as it gets before it ages."""
    sightings = Sightings(1 << 14)
    once, twice = np.arange(16_000), np.arange(16_000, 16_190)
    for keys in (once, twice, twice):
        sightings.note(keys)
    assert (sightings.counts(once) >= 1).all()
    assert (sightings.counts(twice) >= 2).all()
    assert (sightings.counts(once) == 1).mean() > 0.99
    # Of cells that several keys share only the low ones were raised.
    assert int(sightings._cells.sum()) < 4 * (once.size + 2 * twice.size)
    # Of keys never seen at most (1 - exp(-1/4))**4 = 0.0024.
    assert (sightings.counts(np.arange(100_000, 130_000)) == 0).mean() > 0.996


def test_a_count_ends_at_255() -> None:
    sightings = Sightings(1 << 20)
    for _ in range(260):
        sightings.note(np.array([7]))
    assert sightings.counts(np.array([7, 8])).tolist() == [255, 0]


def test_what_was_seen_long_ago_counts_half() -> None:
    sightings = Sightings(128)
    key = np.array([5])
    for _ in range(4):
        sightings.note(key)
    sightings.note(np.arange(100, 223))
    assert sightings.counts(key) == [4]
    sightings.note(np.array([1000]))
    assert sightings.counts(key) == [2]


def test_equal_keys_of_others_are_other_keys() -> None:
    sightings = Sightings(1 << 20)
    sightings.note(np.arange(5), of=1)
    assert sightings.counts(np.arange(5), of=1).tolist() == [1] * 5
    assert sightings.counts(np.arange(5), of=2).tolist() == [0] * 5


def test_its_memory_does_not_grow() -> None:
    sightings = Sightings(1 << 20)
    sightings.note(np.random.default_rng(0).integers(0, 1 << 62, 1 << 16))
    assert sightings._cells.nbytes == 16 << 20
