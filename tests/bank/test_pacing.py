from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import pacing as pacing_module
from carls_jax.bank.access import Access
from carls_jax.bank.local import LocalBank
from carls_jax.bank.pacing import CLIENT_KEY, Pacing, client_of, num_rows
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.tokens import Token
from carls_jax.bank.values import MAX_KEYS
from carls_jax.errors import BankOverloadedError, InvalidInputError

TOKEN = "t" * 32
SPEC = TableSpec("t", {"x": Field(())})


def asking(*shape: int, name: str = "keys") -> pb.Request:
    return pb.Request(arrays=[pb.ArrayHeader(name=name, dtype="int64", shape=shape)])


class Clock:
    """Is a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pacing(clock: Clock) -> Pacing:
    return Pacing(100.0, clock=clock)


def wait_of(pacing: Pacing, client: str, request: pb.Request) -> float | None:
    """Returns how long a client is told to wait; None: it was let in."""
    try:
        pacing.let_in(client, request)
    except BankOverloadedError as error:
        return error.retry_after_s
    return None


def test_a_client_has_the_rows_of_a_second_at_once_and_then_so_many_a_second(
    pacing: Pacing, clock: Clock
) -> None:
    assert [wait_of(pacing, "a", asking(50)) for _ in range(2)] == [None, None]
    assert wait_of(pacing, "a", asking(50)) is None  # what is overdrawn
    assert wait_of(pacing, "a", asking(50)) == pytest.approx(0.5)
    clock.now += 0.25
    assert wait_of(pacing, "a", asking(1)) == pytest.approx(0.25)
    clock.now += 0.25
    assert wait_of(pacing, "a", asking(1)) is None


def test_over_time_a_client_gets_its_rate_and_no_more(pacing: Pacing, clock: Clock) -> None:
    rows, end = 0, clock.now + 100.0
    while clock.now < end:
        wait_s = wait_of(pacing, "a", asking(37))
        rows += 37 * (wait_s is None)
        clock.now += wait_s or 0.0
    assert 100 * 100 <= rows <= 101 * 100 + 2 * 37


def test_a_call_larger_than_a_second_is_let_in_and_paid_for(pacing: Pacing, clock: Clock) -> None:
    assert wait_of(pacing, "a", asking(1000)) is None
    assert wait_of(pacing, "a", asking(1)) == pytest.approx(9.0)
    clock.now += 9.0
    assert wait_of(pacing, "a", asking(1)) is None


def test_clients_do_not_take_from_one_another(pacing: Pacing) -> None:
    assert wait_of(pacing, "a", asking(1000)) is None
    assert wait_of(pacing, "a", asking(1)) is not None
    assert wait_of(pacing, "b", asking(1)) is None


def test_a_refusal_costs_nothing_and_says_who_and_when(pacing: Pacing) -> None:
    pacing.let_in("a", asking(150))
    for _ in range(10):
        with pytest.raises(BankOverloadedError, match=r"a has had its 100 rows a second.*0\.5 s"):
            pacing.let_in("a", asking(1000))


def test_known_clients_have_a_number_and_the_first_of_them_goes(
    pacing: Pacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing_module, "MAX_CLIENTS", 3)
    for client in ("a", "b", "c"):
        pacing.let_in(client, asking(90))
    pacing.let_in("a", asking(90))
    pacing.let_in("d", asking(90))
    assert pacing.num_clients == 3
    assert wait_of(pacing, "a", asking(1)) is not None
    assert wait_of(pacing, "b", asking(90)) is None
    assert wait_of(pacing, "b", asking(90)) is None


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asking(7), 7),
        (asking(0), 1),
        (asking(-3), 1),
        (asking(), 1),
        (asking(9, name="value/x"), 1),
        (asking(1 << 60), MAX_KEYS),
        (pb.Request(scan=pb.Scan(num_rows=30)), 30),
        (pb.Request(describe=pb.Describe()), 1),
    ],
)
def test_rows_are_counted_as_the_headers_say(request_: pb.Request, expected: int) -> None:
    assert num_rows(request_) == expected


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InvalidInputError, match=f"max_rows_per_s={rate}: allowed are positive"):
        Pacing(rate)


class Context:
    """Is what a call by gRPC shows of its client."""

    def __init__(self, peer: str, **metadata: str) -> None:
        self._peer = peer
        self._metadata = tuple((key.replace("_", "-"), one) for key, one in metadata.items())

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


def test_a_client_is_a_connection_or_at_a_unix_socket_a_process() -> None:
    assert CLIENT_KEY == "carls-client"
    assert client_of(Context("ipv4:1.2.3.4:5", carls_client="another")) == "ipv4:1.2.3.4:5"
    assert client_of(Context("unix:", carls_client="process 7")) == "process 7"
    assert client_of(Context("unix:")) == "unix:"
    assert len(client_of(Context("unix:", carls_client="x" * 8000))) == 64


@pytest.mark.parametrize(
    ("address", "options", "client"),
    [
        ("unix:{}/s", {}, f"process {os.getpid()}"),
        ("unix:{}/s", {"max_same_host_connections": 0}, f"process {os.getpid()}"),
        ("127.0.0.1:0", {"token": TOKEN}, r"ipv4:127.0.0.1:\d+"),
    ],
    ids=["same_host", "unix", "tcp"],
)
def test_a_server_refuses_a_client_that_has_had_its_rows(
    address: str, options: dict[str, Any], client: str, tmp_path: Path
) -> None:
    access = Access(Token(TOKEN))
    with (
        LocalBank() as bank,
        BankServer(bank, address.format(tmp_path), max_rows_per_s=1 / 60, **options) as server,
        RemoteBank(server.address, timeout_s=5, access=access) as remote,
        RemoteBank(server.address, timeout_s=5, access=access) as other,
    ):
        assert remote.identity.bank_id == bank.identity.bank_id
        with pytest.raises(BankOverloadedError, match=f"^{client} has had its") as caught:
            remote.stats()
        assert caught.value.retry_after_s is not None
        assert 0 < caught.value.retry_after_s < 60
        if "token" in options:
            assert other.identity.bank_id == bank.identity.bank_id


def test_lookups_in_shared_memory_are_not_counted(tmp_path: Path) -> None:
    with (
        LocalBank() as bank,
        BankServer(bank, f"unix:{tmp_path}/s", max_rows_per_s=10) as server,
        RemoteBank(server.address, timeout_s=5) as remote,
    ):
        table = bank.table(SPEC)
        table.update(np.arange(5000), {"x": np.arange(5000)})
        found = [remote.table("t").lookup(np.arange(5000)).found.all() for _ in range(20)]
        assert found == [True] * 20
        asked = remote.table("t").lookup(np.arange(5000), metadata=["source"])
        assert asked.found.all()
        with pytest.raises(BankOverloadedError):
            remote.table("t").lookup(np.arange(5000), metadata=["source"])
