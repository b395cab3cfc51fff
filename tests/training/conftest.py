"""Banks for the tests of training loops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from carls_jax.bank import Bank, BankServer, LocalBank, connect


@pytest.fixture
def local_bank(tmp_path: Path) -> Iterator[Bank]:
    """Gives a bank in this process, which is named "trainer" and can take snapshots."""
    with LocalBank(tmp_path / "bank", source="trainer") as bank:
        yield bank


@pytest.fixture
def served_bank(tmp_path: Path) -> Iterator[Bank]:
    """Gives a client, named "trainer", of a bank that a server holds."""
    with (
        LocalBank(tmp_path / "bank") as held,
        BankServer(held, f"unix:{tmp_path}/socket") as server,
        connect(server.address, source="trainer") as bank,
    ):
        yield bank


@pytest.fixture(params=["local", "served"])
def bank(request: pytest.FixtureRequest) -> Bank:
    """Gives a bank of either kind."""
    found: Bank = request.getfixturevalue(f"{request.param}_bank")
    return found
