"""What a chain of lookups answers, asked of every kind of bank; numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax import errors
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import requests
from carls_jax.bank.changes import NO_KEYS
from carls_jax.bank.initializers import constant
from carls_jax.bank.interface import Bank
from carls_jax.bank.joining import Followed
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.keys import string_keys

SPECS = {
    spec.name: spec
    for spec in (
        TableSpec(
            "graph",
            {
                "z": Field((2,), init=constant(0.5)),
                "near": Field((3,), dtype="int64"),
                "short": Field((), dtype="uint8"),
            },
        ),
        TableSpec("opinions", {"about": Field((2,), dtype="int32")}, per_source=True),
        TableSpec("words", {"count": Field((), dtype="int64")}, keys="str"),
        TableSpec("hubs", {"spokes": Field((300,), dtype="int32")}),
        TableSpec("texts", {"words": Field((2,), dtype="int64")}),
    )
}


@pytest.fixture(autouse=True)
def _tables(bank: Bank) -> None:
    """Makes rows 0 to 9 of graph: z is (k, 10 k), and near are k+1, k+2 and padding."""
    for spec in SPECS.values():
        bank.table(spec)
    keys = np.arange(10)
    near = np.stack([keys + 1, keys + 2, np.full(10, -1)], axis=1)
    z = np.stack([keys, 10 * keys], axis=1).astype(np.float32)
    bank.table("graph").update(keys, {"z": z}, step=3)
    bank.table("graph").update(keys, {"near": near, "short": keys + 1}, step=1)


def chain(*links: tuple[str, str] | tuple[str, str, dict[str, Any]]) -> pb.Follow:
    """Returns a request for a chain of (table, field, other arguments of the lookup)."""
    made = []
    for name, field, *more in links:
        arguments: dict[str, Any] = more[0] if more else {}
        made.append(requests.lookup(SPECS[name], me="me", fields=(field,), **arguments))
    return pb.Follow(links=made)


def follow(
    bank: Bank,
    request: pb.Follow,
    keys: Sequence[int],
    held: Sequence[int] = (),
) -> Followed:
    return bank.follow(request, np.array(keys), np.array(held, np.int64) if held else NO_KEYS)


NEAR = chain(("graph", "near"), ("graph", "z"))


def test_a_chain_answers_each_row_once_and_where_it_belongs(bank: Bank) -> None:
    followed = follow(bank, NEAR, [0, 1, 9, 0, 77])

    # 0 and 1 share 2. 9 has 10 and 11, which have no rows; 77 has none, so it leads nowhere.
    assert_array_equal(followed.keys, [-1, 1, 2, 3, 10, 11])
    assert followed.places.dtype == np.int32
    assert_array_equal(
        followed.keys[followed.places],
        [[1, 2, -1], [2, 3, -1], [10, 11, -1], [1, 2, -1], [-1, -1, -1]],
    )
    rows = followed.rows
    assert_array_equal(rows.keys, followed.keys)
    assert_array_equal(rows.found, [False, True, True, True, False, False])
    assert_array_equal(rows["z"][:, 0], np.array([0, 1, 2, 3, 0, 0], np.float32), strict=True)
    assert_array_equal(rows.step["z"], [-1, 3, 3, 3, -1, -1])


def test_a_chain_of_one_is_a_lookup_of_distinct_keys(bank: Bank) -> None:
    followed = follow(bank, chain(("graph", "z")), [4, -1, 2, 4])

    assert_array_equal(followed.keys, [-1, 2, 4])
    assert_array_equal(followed.places, [2, 0, 1, 2])
    assert_array_equal(followed.rows["z"][:, 0], [0, 2, 4])
    assert_array_equal(followed.rows.found, [False, True, True])


def test_a_longer_chain_has_the_axes_of_all_its_keys(bank: Bank) -> None:
    request = chain(("graph", "near"), ("graph", "near"), ("graph", "short"), ("graph", "z"))
    followed = follow(bank, request, [0, 8])

    assert followed.places.shape == (2, 3, 3)
    keys = followed.keys[followed.places]
    assert_array_equal(keys[0], [[3, 4, -1], [4, 5, -1], [-1, -1, -1]])
    assert_array_equal(keys[1], [[-1, -1, -1], [-1, -1, -1], [-1, -1, -1]])  # 9's have no rows
    assert keys.dtype == np.int64


def test_rows_that_the_reader_holds_are_left_out(bank: Bank) -> None:
    followed = follow(bank, NEAR, [0, 1, 4], held=[6, 2, 50, -1, 3])

    assert_array_equal(followed.keys, [-1, 1, 5, 2, 3, 6])  # those that are sent come first
    assert_array_equal(followed.keys[followed.places], [[1, 2, -1], [2, 3, -1], [5, 6, -1]])
    assert_array_equal(followed.rows.keys, [-1, 1, 5])
    assert_array_equal(followed.rows["z"][:, 0], [0, 1, 5])


@pytest.mark.parametrize(
    "request_", [chain(("graph", "z")), chain(("graph", "short"), ("graph", "z"))]
)
def test_the_reader_may_hold_all_rows(bank: Bank, request_: pb.Follow) -> None:
    followed = follow(bank, request_, [3, 2], held=[2, 3, 4])

    held = followed.keys[followed.rows.keys.size :]
    assert_array_equal(followed.rows.found, [False] * followed.rows.keys.size)
    assert set(followed.keys[followed.places]) == set(held)
    assert followed.rows["z"].shape[1:] == (2,)


def test_rows_that_are_too_old_end_a_chain(bank: Bank) -> None:
    young = {"max_age_steps": 8, "now": 10}
    followed = follow(bank, chain(("graph", "near", young), ("graph", "z")), [0, 1])
    assert_array_equal(followed.keys, [-1])  # near is 9 steps old

    followed = follow(bank, chain(("graph", "near"), ("graph", "z", young)), [0])
    assert_array_equal(followed.rows.found, [False, True, True])
    old = {"max_age_steps": 6, "now": 10}
    followed = follow(bank, chain(("graph", "near"), ("graph", "z", old)), [0])
    assert not followed.rows.found.any()
    assert not followed.rows["z"].any()


def test_rows_are_created_where_the_chain_says_so(bank: Bank) -> None:
    graph = bank.table("graph")
    followed = follow(bank, chain(("graph", "near"), ("graph", "z", {"create": True})), [9, 70])

    assert_array_equal(followed.keys, [-1, 10, 11])
    assert_array_equal(followed.rows["z"], [[0, 0], [0.5, 0.5], [0.5, 0.5]])
    assert followed.rows.num_created == 2
    assert len(graph) == 12

    # Those of a new row are its initial values: near to nothing but row 0.
    follow(bank, chain(("graph", "near", {"create": True}), ("graph", "z")), [70])
    assert len(graph) == 13


def test_a_chain_goes_on_from_what_each_author_says(bank: Bank) -> None:
    opinions = bank.table("opinions")
    opinions.update([7], {"about": [[3, 4]]}, source="ann")
    opinions.update([7, 8], {"about": [[4, 2], [2, -1]]}, source="bob")
    followed = follow(bank, chain(("opinions", "about"), ("graph", "z")), [8, 7])

    assert_array_equal(followed.keys[followed.places], [[[-1, -1], [2, -1]], [[3, 4], [4, 2]]])


def test_a_chain_may_end_at_authors(bank: Bank) -> None:
    opinions = bank.table("opinions")
    opinions.update([1], {"about": [[3, 4]]}, source="ann")
    opinions.update([2], {"about": [[5, 6]]}, source="bob")
    end = ("opinions", "about", {"sources": ("ann", "bob")})
    followed = follow(bank, chain(("graph", "near"), end), [0])

    assert followed.rows.sources == ("ann", "bob")
    assert_array_equal(followed.rows.found, [[False, False], [True, False], [False, True]])
    assert_array_equal(followed.rows["about"][..., 0], [[0, 0], [3, 0], [0, 5]])


def test_a_table_that_nobody_wrote_leads_nowhere(bank: Bank) -> None:
    followed = follow(bank, chain(("opinions", "about"), ("graph", "z")), [1, 2])

    assert followed.places.shape == (2, 0, 2)
    assert not followed.rows.found.any()


def test_a_chain_leads_to_fingerprints(bank: Bank) -> None:
    bank.table("words").update(["cat", "dog"], {"count": [1, 2]})
    bank.table("texts").update([5], {"words": [string_keys(["dog", "cat"])]})
    followed = follow(bank, chain(("texts", "words"), ("words", "count")), [5])

    assert_array_equal(followed.rows["count"][followed.places], [[2, 1]])


def test_what_was_sent_is_in_the_ledger(bank: Bank, kind: str) -> None:
    follow(bank, NEAR, [0, 1, 0], held=[2])

    moved = {
        row["field"]: (row["num_rows"], row["num_bytes"])
        for row in bank.ledger.rows()
        if row["direction"] == "lookup"
    }
    # Of the rows 1, 2, 3 and padding 2 is held.
    assert moved.pop("z") == (3, 3 * 2 * 4)
    is_followed_here = {"near": (2, 2 * 3 * 8)}
    if kind in ("same_host", "namespaced"):  # whichever can be had
        assert moved in ({}, is_followed_here)
    else:
        assert moved == ({} if kind in ("unix", "tcp") else is_followed_here)


BAD_CHAINS: dict[str, tuple[Callable[[], pb.Follow], type[errors.CarlsError], str]] = {
    "no links": (pb.Follow, errors.InvalidInputError, "0 links: allowed are 1 to 16"),
    "too many links": (
        lambda: chain(*[("graph", "near")] * 17),
        errors.InvalidInputError,
        "17 links: allowed are 1 to 16",
    ),
    "no keys": (
        lambda: chain(("graph", "z", {"create": True}), ("graph", "z")),
        errors.DtypeError,
        "goes on from field 'z' of table 'graph', which is float32: keys are integers",
    ),
    "no such table": (
        lambda: pb.Follow(
            links=[
                pb.Lookup(table="graph", fields=["near"], create=True),
                pb.Lookup(table="none", fields=["z"]),
            ]
        ),
        errors.TableNotFoundError,
        "no table 'none'; this bank has graph, hubs, opinions, texts, words",
    ),
    "no such field": (
        lambda: pb.Follow(
            links=[
                pb.Lookup(table="graph", fields=["near"], create=True),
                pb.Lookup(table="graph", fields=["zz"]),
            ]
        ),
        errors.FieldNotFoundError,
        "table 'graph' has no field 'zz'; it has z, near, short",
    ),
    "two fields": (
        lambda: pb.Follow(
            links=[
                pb.Lookup(table="graph", fields=["near", "short"], create=True),
                pb.Lookup(table="graph", fields=["z"]),
            ]
        ),
        errors.InvalidInputError,
        "goes on from one field",
    ),
    "no such metadata": (
        lambda: pb.Follow(
            links=[
                pb.Lookup(table="graph", fields=["near"], create=True),
                pb.Lookup(table="graph", fields=["z"], metadata=["colour"]),
            ]
        ),
        errors.InvalidInputError,
        "colour",
    ),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_bad_chain_changes_nothing_and_says_why(bank: Bank, name: str) -> None:
    make, error, text = BAD_CHAINS[name]
    with pytest.raises(error) as refused:
        follow(bank, make(), [0, 100])
    assert text in str(refused.value).replace("run/", "")  # of a namespace
    assert len(bank.table("graph")) == 10


def test_a_chain_that_leads_to_too_many_keys_is_refused(bank: Bank) -> None:
    bank.table("hubs").update([0], {"spokes": np.zeros((1, 300), np.int32)})
    request = chain(*[("hubs", "spokes")] * 4)
    with pytest.raises(
        errors.InvalidInputError, match="90000 keys lead to 27000000 by field 'spokes'"
    ):
        follow(bank, request, [0])


def test_keys_of_another_kind_are_refused(bank: Bank) -> None:
    with pytest.raises(errors.KeyKindError, match="int32"):
        bank.follow(NEAR, np.array([1], np.int32))
    with pytest.raises(errors.KeyKindError, match="float64"):
        bank.follow(NEAR, np.array([1]), np.array([1.5]))  # type: ignore[arg-type]
