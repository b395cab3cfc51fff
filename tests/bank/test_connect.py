from __future__ import annotations

from pathlib import Path

import pytest

from carls_jax.bank.connect import connect
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.sharded import ShardedBank
from carls_jax.errors import InvalidInputError


def test_an_empty_local_address_is_a_bank_in_memory() -> None:
    with connect("local:", source="me") as bank:
        assert isinstance(bank, LocalBank)
        assert bank.source == "me"
        with pytest.raises(InvalidInputError, match="no root directory"):
            bank.snapshot("s")


def test_a_local_path_is_the_root_of_its_snapshots(tmp_path: Path) -> None:
    with connect(f"local:{tmp_path}") as bank:
        taken = bank.snapshot("s")
        bank_id = bank.identity.bank_id
    with connect(f"local:{tmp_path}") as bank:
        assert bank.identity.bank_id == bank_id
        assert bank.snapshots() == [taken]


@pytest.mark.parametrize(
    ("address", "cls"),
    [
        ("unix:/nowhere/bank.sock", RemoteBank),
        ("localhost:1", RemoteBank),
        ("localhost:1,localhost:2", ShardedBank),
        ("unix:/nowhere/0,unix:/nowhere/1", ShardedBank),
    ],
)
def test_nothing_need_run_yet(address: str, cls: type) -> None:
    with connect(address, source="me") as bank:
        assert isinstance(bank, cls)
        assert bank.source == "me"


@pytest.mark.parametrize("address", ["", "bank", "localhost", "local", "h:1,", "h:1,local:", "h:x"])
def test_a_malformed_address_is_refused_with_all_forms(address: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"(?s)local:/path.*unix:/path.*host:port,host:port"
    ):
        connect(address)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_timeout_is_positive(timeout_s: float) -> None:
    with pytest.raises(InvalidInputError, match="timeout_s"):
        connect("localhost:1", timeout_s=timeout_s)


def test_a_source_is_a_name() -> None:
    with pytest.raises(InvalidInputError, match="source='a b'"):
        connect("localhost:1", source="a b")
