"""A server that stands still (SIGSTOP): every call ends by its deadline, and later ones work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from carls_jax.bank import changes, remote
from carls_jax.bank.connect import connect
from carls_jax.bank.interface import Bank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankTimeoutError, BankUnavailableError
from carls_jax.keys import shard_of

TIMEOUT_S = 0.3
# A call first asks who answers, and may look for the server's memory; each has its own deadline.
LONGEST_S = 10.0
KEYS = np.arange(200)
NOWHERE = KEYS + 10**9
SPEC = TableSpec("t", {"x": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0), history=2)})
UUID = "a" * 32

Call = Callable[[Bank], object]
Site = tuple[str, int, Callable[[], Bank]]


@contextmanager
def serving(where: str, root: Path, shard: str = "0/1") -> Iterator[tuple[int, str, Path]]:
    """Runs a server until the block ends; gives its process, address and token file."""
    command = [sys.executable, "-m", "carls_jax.cli", "bank", "--bank-id", "b"]
    command += ["--root", str(root), "--address", where, "--shard", shard]
    command += [] if where.startswith("unix:") else ["--token-file", str(root.parent / "token")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split("'")[1]
            yield process.pid, address, root.parent / "token"
        finally:
            process.kill()


KINDS = ("unix", "tcp", "sharded")


@pytest.fixture(params=KINDS, scope="module")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Serves a bank with a snapshot; gives the process that is to be stopped, and clients."""
    directory = tmp_path_factory.mktemp("site")
    where = "127.0.0.1:0" if request.param == "tcp" else f"unix:{directory}/s"
    shards = 2 if request.param == "sharded" else 1
    with ExitStack() as held:
        served = [
            held.enter_context(
                serving(
                    where if shards == 1 else f"{where}{i}", directory / str(i), f"{i}/{shards}"
                )
            )
            for i in range(shards)
        ]
        address, token = ",".join(one[1] for one in served), served[0][2]

        shown = token if request.param == "tcp" else None

        def client() -> Bank:
            return connect(address, timeout_s=TIMEOUT_S, token_file=shown)

        with connect(address, token_file=shown) as bank:
            bank.wait_ready()
            bank.table(SPEC).update(KEYS, {"x": np.ones((KEYS.size, 2))}, step=1)
            bank.snapshot("s")
        yield request.param, served[-1][0], client


CALLS: dict[str, Call] = {
    "table": lambda bank: bank.table(SPEC),
    "tables": lambda bank: bank.tables(),
    "alter": lambda bank: bank.alter(SPEC),
    "advance": lambda bank: bank.advance(2),
    "apply": lambda bank: bank.apply(changes.delete("t", NOWHERE, by=changes.author())),
    "update": lambda bank: bank.table("t").update(KEYS, {"x": np.ones((KEYS.size, 2))}),
    "push": lambda bank: bank.table("t").push(KEYS, {"x": np.zeros((KEYS.size, 2))}),
    "lookup": lambda bank: bank.table("t").lookup(KEYS, metadata=["source"]),
    "history": lambda bank: bank.table("t").history(KEYS, "x"),
    "to_numpy": lambda bank: bank.table("t").to_numpy(),
    "delete": lambda bank: bank.table("t").delete(NOWHERE),
    "stats": lambda bank: bank.stats(),
    "snapshots": lambda bank: bank.snapshots(),
    "snapshot": lambda bank: bank.snapshot("another"),
    "verify": lambda bank: bank.verify("s"),
    "pin": lambda bank: bank.pin("me", []),
    "restore": lambda bank: bank.restore("s"),
    "wait_ready": lambda bank: bank.wait_ready(TIMEOUT_S),
    "identity": lambda bank: bank.identity,
}
# Answered without the server, once it has said who it is.
KNOWN = {"identity"}
AWAY = (BankTimeoutError, BankUnavailableError)


def in_time(call: Call, bank: Bank) -> type[Exception] | None:
    """Makes a call, and returns what it raised; it must not take long."""
    began = time.monotonic()
    try:
        call(bank)
    except AWAY as error:
        assert time.monotonic() - began < LONGEST_S
        return type(error)
    return None


@contextmanager
def frozen(process: int) -> Iterator[None]:
    """Has a process stand still until the block ends."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def succeeds(call: Call, bank: Bank) -> bool:
    """Makes a call again until it is answered: its deadline is short for a busy machine."""
    deadline = time.monotonic() + 30
    while in_time(call, bank) is not None:
        assert time.monotonic() < deadline
    return True


def test_every_call_ends_by_its_deadline_and_works_when_the_server_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SNAPSHOT_TIMEOUT_S", TIMEOUT_S)
    kind, process, client = site
    with client() as bank, client() as stranger:
        bank.wait_ready(30)
        assert succeeds(lambda one: one.table("t").lookup(KEYS), bank)
        with frozen(process):
            ended = {name: in_time(call, bank) for name, call in CALLS.items()}
            # One that has never met the server cannot tell a busy one from none.
            assert in_time(lambda one: one.stats(), stranger) in AWAY
        # By gRPC a connection that is not there yet cannot be made: no server seems to be there.
        allowed = {BankTimeoutError} if kind == "tcp" else set(AWAY)
        assert ended.pop("wait_ready") is BankUnavailableError
        for name, error in ended.items():
            assert (error is None) if name in KNOWN else (error in allowed), name
        monkeypatch.undo()
        bank.wait_ready(30)
        assert all(succeeds(call, bank) for call in CALLS.values())
        assert succeeds(lambda one: one.stats(), stranger)


def test_rows_in_shared_memory_are_read_though_the_server_stands_still(tmp_path: Path) -> None:
    with (
        serving(f"unix:{tmp_path}/s", tmp_path / "root") as (process, address, _),
        connect(address, timeout_s=30) as bank,
    ):
        bank.wait_ready()
        table = bank.table(SPEC)
        table.update(KEYS, {"x": np.ones((KEYS.size, 2))})
        table.lookup(KEYS)
        with frozen(process):
            assert table.lookup(KEYS).found.all()


def test_a_shard_that_is_away_stops_nothing_that_others_can_do(tmp_path: Path) -> None:
    where = [f"unix:{tmp_path}/s{index}" for index in range(2)]
    own, others = (KEYS[shard_of(KEYS, 2) == index] for index in range(2))
    with (
        serving(where[0], tmp_path / "0", "0/2"),
        ExitStack() as second,
        connect(",".join(where), timeout_s=TIMEOUT_S) as bank,
    ):
        away, _, _ = second.enter_context(serving(where[1], tmp_path / "1", "1/2"))
        bank.wait_ready(30)
        assert succeeds(lambda one: one.table(SPEC), bank)
        calls: list[Callable[[np.ndarray], Call]] = [
            lambda keys: lambda one: one.table("t").update(keys, {"x": np.ones((keys.size, 2))}),
            lambda keys: lambda one: one.table("t").push(keys, {"x": np.zeros((keys.size, 2))}),
            lambda keys: lambda one: one.table("t").lookup(keys),
            lambda keys: lambda one: one.table("t").lookup(keys, metadata=["source"]),
            lambda keys: lambda one: one.table("t").history(keys, "x"),
        ]
        assert all(succeeds(call(KEYS), bank) for call in calls)
        with frozen(away):
            assert all(succeeds(call(own), bank) for call in calls)
            assert in_time(calls[-1](others), bank) is BankTimeoutError
        os.kill(away, signal.SIGKILL)
        assert all(succeeds(call(own), bank) for call in calls)
        assert in_time(calls[-1](others), bank) in AWAY
        second.close()
        with serving(where[1], tmp_path / "1", "1/2"):
            assert all(succeeds(call(KEYS), bank) for call in calls)
            rows = bank.table("t").lookup(KEYS)
        assert rows.found.all()
