"""What a client does when its server is overloaded: it comes back when the server says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carls_jax.bank.changes import Change
from carls_jax.bank.interface import Applied, BankStats
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankOverloadedError

SPEC = TableSpec("t", {"x": Field(())})
BOTH_WAYS = pytest.mark.parametrize(
    "options", [{}, {"max_same_host_connections": 0}], ids=["same_host", "grpc"]
)


class BusyBank(LocalBank):
    """Refuses the next calls for now."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.num_refused = 0
        self.refusal = BankOverloadedError("too much", retry_after_s=0.01)
        self.asked = threading.Event()

    def refuse(self) -> None:
        self.asked.set()
        if self.num_refused:
            self.num_refused -= 1
            raise self.refusal

    def apply(self, change: Change) -> Applied:
        self.refuse()
        return super().apply(change)

    def stats(self) -> BankStats:
        self.refuse()
        return super().stats()

    def restore(self, snapshot: Any) -> Any:
        self.refuse()
        return super().restore(snapshot)


@BOTH_WAYS
def test_what_is_refused_for_now_is_sent_again(tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        BusyBank(tmp_path / "root") as bank,
        BankServer(bank, f"unix:{tmp_path}/s", **options) as server,
        RemoteBank(server.address) as remote,
    ):
        table = remote.table(SPEC)
        remote.snapshot("s")
        for call in (
            lambda: table.update([1], {"x": [1.0]}),
            remote.stats,
            lambda: remote.restore("s"),
        ):
            bank.num_refused = 2
            call()
            assert bank.num_refused == 0


@BOTH_WAYS
def test_what_would_be_refused_again_is_not(tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        BusyBank(tmp_path / "root") as bank,
        BankServer(bank, f"unix:{tmp_path}/s", **options) as server,
        RemoteBank(server.address) as remote,
    ):
        table = remote.table(SPEC)
        bank.num_refused, bank.refusal = 2, BankOverloadedError("too much")
        with pytest.raises(BankOverloadedError, match="too much"):
            table.update([1], {"x": [1.0]})
        assert bank.num_refused == 1


def test_a_change_that_is_refused_until_its_deadline_is_resumed(tmp_path: Path) -> None:
    with (
        BusyBank(tmp_path / "root") as bank,
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        RemoteBank(server.address) as remote,
    ):
        table = remote.table(SPEC)
        bank.num_refused, bank.refusal = 1, BankOverloadedError("too much", retry_after_s=3600)
        with pytest.raises(BankOverloadedError, match="too much") as caught:
            table.update([1], {"x": [1.0]})
        assert remote.resume(caught.value).num_created == 1
        assert bank.table("t").lookup([1])["x"].tolist() == [1.0]


@BOTH_WAYS
def test_a_client_that_is_paced_waits_and_gets_all(tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        LocalBank() as bank,
        BankServer(bank, f"unix:{tmp_path}/s", max_rows_per_s=10_000, **options) as server,
        RemoteBank(server.address) as remote,
    ):
        table = remote.table(SPEC)
        for start in range(0, 15_000, 3000):
            table.update(np.arange(start, start + 3000), {"x": np.ones(3000)})
        assert len(bank.table("t")) == 15_000
