"""Which rows batches share while they are held ahead; a bank that is altered in between tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import Bank, BankServer, Field, LocalBank, TableSpec, connect
from carls_jax.bank.initializers import constant
from carls_jax.metrics import Amount
from carls_jax.training import Lookup, WhenAway, outlast
from carls_jax.training.fetching import Fetcher

DEADLINE_S = 60.0
NODES = TableSpec(
    "nodes",
    {"z": Field((2,), init=constant(0.5)), "neighbors": Field((2,), dtype="int64")},
)
OPINIONS = TableSpec("opinions", {"p": Field()}, per_source=True)
OWN = Lookup(NODES, "z", keys="id")


@pytest.fixture(autouse=True)
def _tables(bank: Bank) -> None:
    bank.table(NODES)
    bank.table(OPINIONS)
    write(bank, range(10), 0.0, step=0)


def write(bank: Bank, keys: Any, value: float, *, step: int) -> None:
    """Makes z of each key (key + value, value)."""
    keys = np.array(keys)
    z = np.stack([keys + value, np.full(keys.size, value)], axis=1)
    bank.table(NODES).update(keys, {"z": z.astype(np.float32)}, step=step)


def ids(*keys: int) -> dict[str, Any]:
    return {"id": np.array(keys)}


def values(fetcher: Fetcher, step: int, *keys: int, name: str = "own") -> list[float]:
    """Fetches for a step and returns the part of z that says when it was written."""
    found = fetcher(ids(*keys), step).known[name]["z"]
    return np.asarray(found)[..., 1].tolist()


def moved_rows(bank: Bank) -> int:
    return bank.ledger.totals().get("lookup", Amount()).num_rows


def test_a_key_that_a_batch_repeats_is_fetched_once(bank: Bank) -> None:
    fetched = Fetcher({"own": OWN}, {}, bank)(
        {"id": np.array([[4, 7, 4], [7, -1, 4], [99, 99, -1]])}, 5
    )
    own = fetched.known["own"]

    assert_array_equal(own["z"][..., 0], [[4, 7, 4], [7, 0, 4], [0, 0, 0]])
    assert_array_equal(own.mask, [[True, True, True], [True, False, True], [False] * 3])
    assert_array_equal(own.age["z"][1], [5, -1, 5])
    assert_array_equal(fetched.ages, [5] * 5)  # each use counts
    assert (fetched.num_found, fetched.num_asked, fetched.num_moved) == (5, 9, 4)
    (flow,) = [row for row in bank.ledger.rows() if row["direction"] == "lookup"]
    assert (flow["num_rows"], flow["num_bytes"]) == (4, 4 * 2 * 4)


def test_keys_that_chains_lead_to_are_fetched_once(bank: Bank) -> None:
    bank.table(NODES).update([1, 2], {"neighbors": [[3, 4], [4, 3]]})
    plan = {"near": Lookup(NODES, "neighbors", keys="id").then("z")}
    fetched = Fetcher(plan, {}, bank)(ids(1, 2, 1), 5)

    assert_array_equal(fetched.known["near"]["z"][..., 0], [[3, 4], [4, 3], [3, 4]])
    assert (fetched.num_found, fetched.num_asked, fetched.num_moved) == (6, 6, 2)


def test_a_row_is_shared_by_the_batches_that_are_held_with_its_own(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=3)
    seen = []
    for step in range(1, 8):
        seen.append(values(fetcher, step, 1, 2))
        write(bank, [1, 2], float(step), step=step)

    # Read for steps 1, 4 and 7, each time with what was written in the step before.
    assert seen == [[0, 0], [0, 0], [0, 0], [3, 3], [3, 3], [3, 3], [6, 6]]


def test_with_a_depth_of_one_each_step_sees_what_is_there(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=1)
    assert values(fetcher, 1, 1) == [0]
    write(bank, [1], 1.0, step=1)
    assert values(fetcher, 2, 1) == [1]


def test_only_rows_that_are_not_held_travel(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=3)
    fetched = [
        fetcher(ids(*keys), step)
        for step, keys in enumerate([(1, 2, 3), (5, 3, 2, 3), (9, 5, 1, -1), (1, 5, 9)], start=1)
    ]

    # The last reads 1 again, which was read for step 1, and shares 5 and 9.
    assert [one.num_moved for one in fetched] == [3, 1, 2, 1]
    assert_array_equal(fetched[1].known["own"]["z"][:, 0], [5, 3, 2, 3])
    assert_array_equal(fetched[2].known["own"]["z"][:, 0], [9, 5, 1, 0])
    assert_array_equal(fetched[2].known["own"].mask, [True, True, True, False])
    assert_array_equal(fetched[3].known["own"]["z"][:, 0], [1, 5, 9])
    assert moved_rows(bank) == 7


def test_the_age_is_told_for_the_step_that_uses_a_row(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=3)
    write(bank, [1], 1.0, step=7)
    ages = [fetcher(ids(1, 2), step).known["own"].age["z"].tolist() for step in (8, 9, 10)]

    assert ages == [[1, 8], [2, 9], [3, 10]]


def test_all_may_be_held(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=2)
    values(fetcher, 1, 1, 2)
    write(bank, [1, 2], 1.0, step=1)

    assert values(fetcher, 2, 2, 1, 2) == [0, 0, 0]


def test_a_row_that_was_not_found_is_asked_for_again(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=2)
    assert not fetcher(ids(1, 50), 1).known["own"].mask[1]
    write(bank, [50], 3.0, step=1)

    assert values(fetcher, 2, 50, 1) == [3, 0]


def test_a_row_that_has_become_too_old_is_asked_for_again(bank: Bank) -> None:
    plan = {"own": Lookup(NODES, "z", keys="id", max_age_steps=5)}
    fetcher = Fetcher(plan, {}, bank, depth=4)
    write(bank, [2], 0.0, step=3)
    assert fetcher(ids(1, 2), 5).known["own"].mask.tolist() == [True, True]
    # Row 1, of step 0, is too old for step 6.
    assert fetcher(ids(1, 2), 6).known["own"].mask.tolist() == [False, True]
    write(bank, [1, 2], 6.0, step=6)
    late = fetcher(ids(1, 2), 7).known["own"]

    assert late.mask.tolist() == [True, True]
    assert_array_equal(late["z"][:, 1], [6, 0])
    assert_array_equal(late.age["z"], [1, 4])


def test_rows_that_are_created_are_shared(bank: Bank) -> None:
    plan = {"own": Lookup(NODES, "z", keys="id", create=True)}
    fetcher = Fetcher(plan, {}, bank, depth=2)
    assert values(fetcher, 1, 20) == [0.5]
    write(bank, [20], 4.0, step=1)

    assert values(fetcher, 2, 20, 21) == [0.5, 0.5]
    assert len(bank.table(NODES)) == 12


def test_the_last_rows_of_chains_are_shared(bank: Bank) -> None:
    bank.table(NODES).update([1, 2], {"neighbors": [[3, 4], [4, 5]]})
    plan = {"near": Lookup(NODES, "neighbors", keys="id").then("z")}
    fetcher = Fetcher(plan, {}, bank, depth=2)
    assert values(fetcher, 1, 1, name="near") == [[0, 0]]
    write(bank, [3, 4, 5], 1.0, step=1)
    second = fetcher(ids(2), 2)

    assert_array_equal(second.known["near"]["z"][..., 1], [[0, 1]])  # 4 is held, 5 is not
    assert second.num_moved == 1


def test_lookups_of_the_same_rows_share_them(bank: Bank) -> None:
    plan = {
        "own": OWN,
        "near": Lookup(NODES, "neighbors", keys="id").then("z"),
        "young": Lookup(NODES, "z", keys="id", max_age_steps=100),
    }
    bank.table(NODES).update([1, 2], {"neighbors": [[2, 1], [1, 2]]})
    fetched = Fetcher(plan, {}, bank, depth=2)(ids(1, 2), 1)

    assert_array_equal(fetched.known["near"]["z"][..., 0], [[2, 1], [1, 2]])
    # Own: 2. Near: none but padding. Young ones are another kind of lookup: 2.
    assert fetched.num_moved == 5


def test_rows_of_authors_are_read_each_time_since_one_may_join(bank: Bank) -> None:
    opinions = bank.table(OPINIONS)
    opinions.update([1], {"p": [1.0]}, source="ann")
    fetcher = Fetcher({"all": Lookup(OPINIONS, "p", keys="id")}, {}, bank, depth=3)
    assert_array_equal(fetcher(ids(1, 1), 1).known["all"]["p"], [[1.0], [1.0]])
    opinions.update([1], {"p": [2.0]}, source="bob")

    assert_array_equal(fetcher(ids(1), 2).known["all"]["p"], [[1.0, 2.0]])


def test_rows_tell_how_much_was_acknowledged_when_they_were_read(bank: Bank) -> None:
    numbers = iter([5, 7, 8])
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=2, acknowledged=lambda: next(numbers))
    fetched = [fetcher(ids(*keys), step) for step, keys in enumerate([(1, 2), (3, 2), (3, 4)])]
    told = [
        dict(zip(one.found["own"].rows.keys, one.found["own"].as_of, strict=True))
        for one in fetched
    ]

    assert told == [{1: 5, 2: 5}, {2: 5, 3: 7}, {3: 7, 4: 8}]
    assert [one.as_of for one in fetched] == [5, 5, 7]


def test_nothing_is_shared_after_forget(bank: Bank) -> None:
    fetcher = Fetcher({"own": OWN}, {}, bank, depth=3)
    values(fetcher, 1, 1)
    write(bank, [1], 1.0, step=1)
    fetcher.forget()

    assert values(fetcher, 1, 1) == [1]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_while_nobody_writes_what_is_shared_is_what_is_there(bank: Bank, depth: int) -> None:
    """Any batches, of repeated, missing and padding keys: as a lookup of each key tells."""
    rng = np.random.default_rng(depth)
    plan = {
        "own": OWN,
        "near": Lookup(NODES, "neighbors", keys="id").then("z", max_age_steps=9),
    }
    write(bank, range(5, 10), 1.0, step=4)
    bank.table(NODES).update(range(10), {"neighbors": rng.integers(-1, 12, (10, 2))}, step=1)
    alone = Fetcher(plan, {}, bank)
    fetcher = Fetcher(plan, {}, bank, depth=depth)
    spared = 0
    for step in range(5, 20):
        batch = {"id": rng.integers(-1, 14, (4, 3))}
        found, expected = fetcher(batch, step), alone(batch, step)
        spared += expected.num_moved - found.num_moved
        for name in plan:
            for part in ("values", "age"):
                mine = getattr(found.known[name], part)["z"]
                assert_array_equal(mine, getattr(expected.known[name], part)["z"], strict=True)
            assert_array_equal(found.known[name].mask, expected.known[name].mask)
            assert_array_equal(found.found[name].keys, expected.found[name].keys)
        assert sorted(found.ages) == sorted(expected.ages)
    assert (spared > 0) == (depth > 1)


def test_rows_of_before_are_asked_for_again_as_soon_as_the_bank_is_back(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/bank.sock"
    with LocalBank() as held, BankServer(held, address) as server:
        write(held, range(10), 0.0, step=0)
        with connect(address, timeout_s=0.6) as bank:
            bank.wait_ready(DEADLINE_S)
            outlasting = outlast(bank, WhenAway("last_seen"))
            fetcher = Fetcher({"own": OWN}, {}, outlasting, depth=3)
            assert values(fetcher, 1, 1, 2) == [0.0, 0.0]
            fetcher.forget()
            server.stop(0)
            found = fetcher(ids(1, 2, 3), 2)
            assert found.known["own"].mask.tolist() == [True, True, False]
            assert found.num_moved == 0
            assert_array_equal(found.found["own"].as_of_step, [-1, -1, -1])
            write(held, [1, 2, 3], 7.0, step=2)
            with BankServer(held, address):
                outlasting.settle(be_back=True)
                again = fetcher(ids(1, 2, 3), 3)
                assert again.known["own"]["z"][..., 1].tolist() == [7.0, 7.0, 7.0]
                assert again.found["own"].as_of_step is None
                assert again.num_moved == 3
            outlasting.close()
