"""What plans find, on a bank in this process and on a server; numbers are worked out by hand."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Bank, Field, TableSpec
from carls_jax.bank.initializers import constant
from carls_jax.bank.optimizers import optimizer
from carls_jax.errors import InvalidInputError, KeyKindError
from carls_jax.keys import string_keys
from carls_jax.training import Lookup, Push, Update
from carls_jax.training.fetching import Fetcher
from carls_jax.training.knowledge import Fetched

SGD = optimizer("sgd", learning_rate=1.0)
NODES = TableSpec(
    "nodes",
    {
        "z": Field((2,), optimizer=SGD),
        "score": Field(),
        "neighbors": Field((3,), dtype="int64"),
        "author": Field((), dtype="int32"),
    },
)
AUTHORS = TableSpec("authors", {"h_index": Field((), dtype="int32")})
WORDS = TableSpec("words", {"count": Field(), "partner": Field((), dtype="int64")}, keys="str")
OPINIONS = TableSpec(
    "opinions", {"p": Field((2,)), "about": Field((), dtype="int64")}, per_source=True
)


@pytest.fixture(autouse=True)
def _tables(bank: Bank) -> None:
    """Makes nodes 0 to 4 at step 3: z is (k, 10 k), node k has neighbours k+1 and k+2."""
    nodes = bank.table(NODES)
    for spec in (AUTHORS, WORDS, OPINIONS):
        bank.table(spec)
    keys = np.arange(5)
    neighbors = np.stack([keys + 1, keys + 2, np.full(5, -1)], axis=1)
    nodes.update(keys, {"z": np.stack([keys, 10 * keys], 1).astype(np.float32)}, step=3)
    nodes.update(keys, {"neighbors": neighbors, "author": keys + 100}, step=1)


def fetched(bank: Bank, batch: dict[str, Any], now: int = 10, **plan: Any) -> Fetched:
    """Fetches a plan, whose writes are told by their class."""
    lookups = {name: one for name, one in plan.items() if isinstance(one, Lookup)}
    writes = {name: one for name, one in plan.items() if isinstance(one, Update)}
    return Fetcher(lookups, writes, bank)(batch, now)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_a_lookup_gives_values_mask_and_age_of_each_key(bank: Bank, dtype: type) -> None:
    found = fetched(
        bank, {"id": np.array([4, 99, 0], dtype)}, own=Lookup(NODES, ("z", "score"), keys="id")
    )
    own = found.known["own"]

    assert_array_equal(own["z"], np.array([[4, 40], [0, 0], [0, 0]], np.float32), strict=True)
    assert_array_equal(own["score"], np.zeros(3, np.float32), strict=True)
    assert_array_equal(own.mask, [True, False, True])
    assert_array_equal(own.age["z"], np.array([7, -1, 7], np.int32), strict=True)
    assert_array_equal(own.age["score"], np.array([-1, -1, -1], np.int32), strict=True)
    assert own.sources == ()
    assert (found.num_found, found.num_asked) == (2, 3)
    assert_array_equal(found.ages, [7, 7])


def test_keys_may_have_any_shape_and_padding_is_not_found(bank: Bank) -> None:
    ids = np.array([[1, -1], [2, 2]], np.int32)
    own = fetched(bank, {"id": ids}, own=Lookup(NODES, "z", keys="id")).known["own"]

    assert own["z"].shape == (2, 2, 2)
    assert_array_equal(own["z"][..., 1], [[10, 0], [20, 20]])
    assert_array_equal(own.mask, [[True, False], [True, True]])


def test_keys_beyond_32_bits_are_kept_whole(bank: Bank) -> None:
    far = 2**40 + 1
    bank.table(NODES).update([far, 1], {"score": [5.0, 6.0]}, step=2)
    own = fetched(bank, {"id": np.array([far])}, own=Lookup(NODES, "score", keys="id")).known["own"]
    assert_array_equal(own["score"], [5.0])


def test_a_chain_reads_the_rows_of_the_keys_that_it_found(bank: Bank) -> None:
    plan = Lookup(NODES, "neighbors", keys="id").then("z")
    found = fetched(bank, {"id": np.array([0, 3, 50])}, neighbor=plan)
    neighbor = found.known["neighbor"]

    # 0 has 1 and 2; 3 has 4 and 5, which has no row; 50 has no row, so its neighbours are not 0.
    assert_array_equal(neighbor["z"][..., 0], [[1, 2, 0], [4, 0, 0], [0, 0, 0]])
    assert_array_equal(
        neighbor.mask, [[True, True, False], [True, False, False], [False, False, False]]
    )
    assert_array_equal(neighbor.age["z"], [[7, 7, -1], [7, -1, -1], [-1, -1, -1]])
    assert (found.num_found, found.num_asked) == (3, 9)
    assert_array_equal(found.ages, [7, 7, 7])


def test_a_chain_of_three_has_the_axes_of_all_its_keys(bank: Bank) -> None:
    plan = Lookup(NODES, "neighbors", keys="id").then("neighbors").then("z")
    far = fetched(bank, {"id": np.array([0, 2])}, far=plan).known["far"]

    assert far["z"].shape == (2, 3, 3, 2)
    assert_array_equal(far["z"][0, ..., 0], [[2, 3, 0], [3, 4, 0], [0, 0, 0]])
    assert_array_equal(far.mask[1], [[True, False, False], [False, False, False], [False] * 3])


def test_a_chain_may_go_through_another_table(bank: Bank) -> None:
    bank.table(AUTHORS).update([101, 103], {"h_index": np.array([11, 13], np.int32)}, step=9)
    plan = Lookup(NODES, "author", keys="id").then("h_index", table=AUTHORS)
    author = fetched(bank, {"id": np.array([3, 2, 1])}, author=plan).known["author"]

    assert_array_equal(author["h_index"], np.array([13, 0, 11], np.int32), strict=True)
    assert_array_equal(author.mask, [True, False, True])
    assert_array_equal(author.age["h_index"], [1, -1, 1])


def test_a_chain_ends_at_rows_that_are_too_old(bank: Bank) -> None:
    plan = Lookup(NODES, "neighbors", keys="id", max_age_steps=8).then("z", max_age_steps=7)
    ids = {"id": np.array([0])}

    assert fetched(bank, ids, now=9, a=plan).known["a"].mask.tolist() == [[True, True, False]]
    late = fetched(bank, ids, now=10, a=plan).known["a"]  # the neighbours are 9 steps old
    assert not late.mask.any()
    assert not late["z"].any()


def test_a_chain_creates_rows_where_it_is_told_to(bank: Bank) -> None:
    spec = TableSpec("fresh", {"z": Field((), init=constant(2.5))})
    bank.table(spec)
    plan = Lookup(NODES, "neighbors", keys="id").then("z", table=spec, create=True)
    fresh = fetched(bank, {"id": np.array([1, 50])}, fresh=plan).known["fresh"]

    assert_array_equal(fresh["z"], [[2.5, 2.5, 0], [0, 0, 0]])
    assert_array_equal(fresh.age["z"], np.full((2, 3), -1))
    assert bank.table("fresh").to_numpy()["keys"].tolist() == [2, 3]
    assert len(bank.table("nodes")) == 5


def test_string_keys_and_chains_of_fingerprints(bank: Bank) -> None:
    words = bank.table(WORDS)
    words.update(["cat", "dog"], {"count": [1.0, 2.0], "partner": string_keys(["dog", "cow"])})
    words.update(["cow"], {"count": [3.0]})
    batch = {"word": np.array([["dog", "cat"], ["emu", "cow"]])}
    found = fetched(
        bank,
        batch,
        own=Lookup(WORDS, "count", keys="word"),
        partner=Lookup(WORDS, "partner", keys="word").then("count"),
    ).known

    assert_array_equal(found["own"]["count"], [[2, 1], [0, 3]])
    assert_array_equal(found["own"].mask, [[True, True], [False, True]])
    assert_array_equal(found["partner"]["count"][0], [3, 2])


def test_a_per_source_table_has_an_axis_of_authors(bank: Bank) -> None:
    opinions = bank.table(OPINIONS)
    opinions.update([1, 2], {"p": [[1, 2], [3, 4]]}, step=4, source="peer")
    opinions.update([2], {"p": [[5, 6]]}, step=9, source="me")
    found = fetched(
        bank,
        {"id": np.array([[2, 1, -1]])},
        all=Lookup(OPINIONS, "p", keys="id"),
        peers=Lookup(OPINIONS, "p", keys="id", sources=("nobody", "peer")),
    )
    everyone, peers = found.known["all"], found.known["peers"]

    assert everyone.sources == ("me", "peer")
    assert_array_equal(everyone["p"][0, :, :, 0], [[5, 3], [0, 1], [0, 0]])
    assert_array_equal(everyone.mask, [[[True, True], [False, True], [False, False]]])
    assert_array_equal(everyone.age["p"], [[[1, 6], [-1, 6], [-1, -1]]])
    assert peers.sources == ("nobody", "peer")
    assert_array_equal(peers["p"][0, :, :, 1], [[0, 4], [0, 2], [0, 0]])
    assert (found.num_found, found.num_asked) == (3 + 2, 6 + 6)
    assert sorted(found.ages) == [1, 6, 6, 6, 6]


def test_a_per_source_table_that_nobody_wrote_has_an_empty_axis(bank: Bank) -> None:
    found = fetched(bank, {"id": np.array([1, 2])}, all=Lookup(OPINIONS, "p", keys="id"))
    everyone = found.known["all"]

    assert everyone["p"].shape == (2, 0, 2)
    assert everyone.mask.shape == everyone.age["p"].shape == (2, 0)
    assert (found.num_found, found.num_asked) == (0, 0)


def test_a_chain_goes_on_from_what_each_author_says(bank: Bank) -> None:
    opinions = bank.table(OPINIONS)
    opinions.update([7], {"about": [3]}, source="peer")
    opinions.update([7, 8], {"about": [4, 2]}, source="me")
    plan = Lookup(OPINIONS, "about", keys="id").then("z", table=NODES)
    about = fetched(bank, {"id": np.array([7, 8])}, about=plan).known["about"]

    assert_array_equal(about["z"][..., 0], [[4, 3], [2, 0]])
    assert_array_equal(about.mask, [[True, True], [True, False]])


def test_a_lookup_may_use_the_keys_of_another(bank: Bank) -> None:
    found = fetched(
        bank,
        {"id": np.array([0, 3])},
        neighbor=Lookup(NODES, "neighbors", keys="id").then("z"),
        writer=Lookup(NODES, "author", keys="neighbor"),
    ).known

    assert_array_equal(found["writer"]["author"], [[101, 102, 0], [104, 0, 0]])


def test_writes_go_to_keys_of_the_batch_or_of_a_lookup(bank: Bank) -> None:
    found = fetched(
        bank,
        {"id": np.array([0, 3], np.int32)},
        neighbor=Lookup(NODES, "neighbors", keys="id").then("z"),
        own=Update(NODES, "score", keys="id"),
        theirs=Update(NODES, "score", keys="neighbor"),
        gradient=Push(NODES, "z", keys="neighbor"),
    )

    assert_array_equal(found.targets["own"], np.array([0, 3]), strict=True)
    assert_array_equal(found.targets["theirs"], [[1, 2, -1], [4, 5, -1]])
    assert_array_equal(found.targets["gradient"], [[1, 2, -1], [4, -1, -1]])  # 5 has no row


def test_keys_that_are_nowhere_are_named_with_those_there_are(bank: Bank) -> None:
    lookup = Lookup(NODES, "z", keys="id")
    message = "keys='id': the batch has x, y, and the plan nothing before it"
    with pytest.raises(InvalidInputError, match=message):
        fetched(bank, {"x": 1, "y": 2}, own=lookup)
    with pytest.raises(InvalidInputError, match="keys='no': the batch has id, and the plan own"):
        fetched(bank, {"id": np.array([1])}, own=lookup, w=Update(NODES, "z", keys="no"))


def test_keys_of_another_kind_than_their_table_are_refused(bank: Bank) -> None:
    with pytest.raises(KeyKindError, match="table 'nodes' has integer keys"):
        fetched(bank, {"id": np.array(["a"])}, own=Lookup(NODES, "z", keys="id"))
    with pytest.raises(KeyKindError, match="table 'words' has string keys"):
        fetched(bank, {"id": np.array([1], np.int32)}, own=Lookup(WORDS, "count", keys="id"))


def test_known_passes_through_jit_with_its_sources(bank: Bank) -> None:
    bank.table(OPINIONS).update([1], {"p": [[1, 2]]}, step=4, source="peer")
    known = fetched(bank, {"id": np.array([1])}, all=Lookup(OPINIONS, "p", keys="id")).known
    doubled = jax.jit(lambda known: jax.tree.map(lambda x: x * x.dtype.type(2), known["all"]))
    assert doubled(known).sources == ("peer",)
    assert_array_equal(doubled(known)["p"], [[[2, 4]]])
