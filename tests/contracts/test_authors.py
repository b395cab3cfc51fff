"""What tables with a row per author answer, asked of every kind of bank."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.interface import Bank
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


@pytest.fixture
def spoken(messages: Table) -> Table:
    """Messages about key 3 by "bob" and "me", about 1 by "ann", about 4 by "bob"."""
    messages.update([3, 4], {"text": [[1, 1], [2, 2]]}, source="bob", step=1)
    messages.update([1], {"text": [[3, 3]]}, source="ann", step=2)
    messages.update([3], {"text": [[4, 4]]}, step=3)
    return messages


def test_a_per_source_lookup_gives_all_authors_by_name(spoken: Table) -> None:
    rows = spoken.lookup([3, 1, 4, 9, -1], metadata=METADATA)

    assert rows.sources == ("ann", "bob", "me")
    assert_array_equal(
        rows.found,
        [
            [False, True, True],
            [True, False, False],
            [False, True, False],
            [False, False, False],
            [False, False, False],
        ],
    )
    assert rows["text"].shape == (5, 3, 2)
    assert rows["text"].dtype == np.int32
    assert_array_equal(rows["text"][0], [[0, 0], [1, 1], [4, 4]])
    assert_array_equal(rows.step["text"][0], [-1, 1, 3])
    assert_array_equal(rows.version["text"][1], [1, 0, 0])
    assert rows.source["text"].tolist()[0] == ["", "bob", "me"]
    assert rows.clock["text"].tolist()[2] == ["", "main", ""]


def test_authors_are_chosen_by_name(spoken: Table) -> None:
    others = spoken.lookup([3, 4], sources="!me")
    assert others.sources == ("ann", "bob")
    assert_array_equal(others.found, [[False, True], [False, True]])

    chosen = spoken.lookup([3, 4], sources=("stranger", "bob"))
    assert chosen.sources == ("bob", "stranger")
    assert_array_equal(chosen.found, [[True, False], [True, False]])

    assert spoken.lookup([3], sources="me").sources == ("me",)


def test_a_per_source_table_without_authors_has_an_empty_axis(messages: Table) -> None:
    rows = messages.lookup(KEYS)

    assert rows.sources == ()
    assert rows.found.shape == (8, 0)
    assert rows["text"].shape == (8, 0, 2)


def test_an_author_creates_and_deletes_only_its_own_rows(spoken: Table) -> None:
    created = spoken.lookup([3, 9], create=True)
    assert created.num_created == 1
    assert_array_equal(created.found, [[False, True, True], [False, False, True]])

    assert spoken.delete([3, 1]) == 1
    assert_array_equal(spoken.lookup([3]).found, [[False, True, False]])
    assert spoken.delete([3, 1], source="bob") == 1
    assert len(spoken) == 3


def test_per_source_ages_are_measured_for_each_author(spoken: Table) -> None:
    rows = spoken.lookup([3, 1], max_age_steps=1, now=3)

    assert_array_equal(rows.found, [[False, False, True], [True, False, False]])


def test_a_per_source_scan_gives_a_row_per_author(spoken: Table) -> None:
    blocks = list(spoken.scan(metadata=("source",)))

    seen = [
        (key, source, text)
        for rows in blocks
        for key, source, text in zip(
            rows.keys.tolist(),
            rows.source["text"].tolist(),
            rows["text"][:, 0].tolist(),
            strict=True,
        )
    ]
    assert sorted(seen) == [(1, "ann", 3), (3, "bob", 1), (3, "me", 4), (4, "bob", 2)]


def test_history_is_an_authors_own(bank: Bank) -> None:
    spec = TableSpec("said", fields={"x": Field((), history=4)}, per_source=True)
    table = bank.table(spec)
    table.update([3, 1], {"x": [1, 2]}, source="bob")
    table.update([3], {"x": [3]}, source="ann")

    assert [[float(w.value) for w in one] for one in table.history([3, 1], "x", source="bob")] == [
        [1.0],
        [2.0],
    ]
    assert table.history([3, 1], "x", source="nobody") == [[], []]
