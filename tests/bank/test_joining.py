"""How a chain of lookups is carried out; what it answers: tests/contracts/test_following.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS, Keys
from carls_jax.bank.connect import connect
from carls_jax.bank.interface import Bank
from carls_jax.bank.joining import Followed
from carls_jax.bank.local import LocalBank
from carls_jax.bank.rows import Rows
from carls_jax.bank.server import BankServer
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.keys import shard_of

SPEC = TableSpec("graph", {"z": Field((64,)), "near": Field((16,), dtype="int32")})
CHAIN = pb.Follow(
    links=[pb.Lookup(table="graph", fields=["near"]), pb.Lookup(table="graph", fields=["z"])]
)


class WatchedBank(LocalBank):
    """Notes what it is asked, and the keys."""

    def __init__(self, index: int = 0, num_shards: int = 1) -> None:
        super().__init__(bank_id="b" * 32, shard_index=index, num_shards=num_shards)
        self.asked: list[tuple[str, list[int]]] = []

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        self.asked.append((request.fields[0], keys.tolist()))
        return super().lookup(request, keys)

    def follow(self, request: pb.Follow, keys: Keys, held: Keys = NO_KEYS) -> Followed:
        self.asked.append(("follow", keys.tolist()))
        return super().follow(request, keys, held)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def fill(bank: Bank) -> None:
    """Makes rows 0 to 99, of which all those with the same last digit have the same neighbours."""
    keys = np.arange(100)
    near = (keys[:, None] % 10) * 2 + np.arange(16)[None] % 2
    bank.table(SPEC).update(keys, {"near": near, "z": np.repeat(keys[:, None], 64, axis=1)})


@pytest.mark.parametrize("connections", [0, 4], ids=["gRPC", "same host"])
def test_a_server_is_asked_once_at_most(held: ExitStack, tmp_path: Path, connections: int) -> None:
    served = held.enter_context(WatchedBank())
    server = held.enter_context(
        BankServer(served, f"unix:{tmp_path}/s", max_same_host_connections=connections)
    )
    bank = held.enter_context(connect(server.address))
    fill(bank)
    served.asked.clear()
    followed = bank.follow(CHAIN, np.array([3, 14, 93]))

    # Where the server's memory can be read it is not asked at all.
    assert served.asked == [("follow", [3, 14, 93])] or (connections and not served.asked)
    assert_array_equal(followed.rows["z"][:, 0], [6, 7, 8, 9])
    assert followed.rows["z"].nbytes == 4 * 64 * 4  # of 48 neighbours
    assert followed.places.shape == (3, 16)


def test_shards_are_asked_for_the_rows_of_their_keys_alone(held: ExitStack) -> None:
    shards = [held.enter_context(WatchedBank(index, 3)) for index in range(3)]
    bank = held.enter_context(ShardedBank(shards))
    fill(bank)
    for shard in shards:
        shard.asked.clear()
    bank.follow(CHAIN, np.array([3, 14, 93, 3]), np.array([7]))

    asked = [(index, *one) for index, shard in enumerate(shards) for one in shard.asked]
    expected = {("near", 3), ("near", 14), ("near", 93), ("z", 6), ("z", 8), ("z", 9)}
    assert {(field, key) for _, field, keys in asked for key in keys} == expected
    assert sum(len(keys) for _, _, keys in asked) == len(expected)
    for index, _, keys in asked:
        assert_array_equal(shard_of(np.array(keys), 3), index)
