"""Banks of every kind, for the suites that all of them must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carls_jax.bank.connect import connect
from carls_jax.bank.initializers import constant
from carls_jax.bank.interface import Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table

KINDS = ("local", "same_host", "unix", "tcp", "sharded", "namespaced")
NUM_SHARDS = 3
TOKEN = "t" * 32

Connect = Callable[[], Bank]

SPECS = SimpleNamespace(
    nodes=TableSpec(
        "nodes",
        fields={
            "embedding": Field(
                (2,), init=constant(8.0), optimizer=optimizer("sgd", learning_rate=0.5)
            ),
            "label": Field((), dtype="int64"),
            "confidence": Field(()),
        },
    ),
    messages=TableSpec("messages", fields={"text": Field((2,), dtype="int32")}, per_source=True),
    words=TableSpec("words", fields={"count": Field((), dtype="int64")}, keys="str"),
    traces=TableSpec("traces", fields={"loss": Field((), dtype="float64", history=2)}),
)


def _serve(held: ExitStack, address: str, bank: LocalBank, **options: Any) -> str:
    held.enter_context(bank)
    return held.enter_context(BankServer(bank, address, **options)).address


def _site(held: ExitStack, kind: str, directory: Path, *, has_root: bool) -> Connect:
    """Starts a bank of a kind and returns what gives a client of it, named "me"."""
    root = directory / "root" if has_root else None
    if kind == "local":
        bank = held.enter_context(LocalBank(root, source="me"))
        return lambda: bank
    if kind == "tcp":
        address = _serve(held, "127.0.0.1:0", LocalBank(root), token=TOKEN)
    elif kind in ("same_host", "namespaced"):
        address = _serve(held, f"unix:{directory}/socket", LocalBank(root))
    elif kind == "unix":
        path = f"unix:{directory}/socket"
        address = _serve(held, path, LocalBank(root), max_same_host_connections=0)
    else:
        address = ",".join(
            _serve(
                held,
                f"unix:{directory}/socket{index}",
                LocalBank(
                    root and root / str(index),
                    bank_id="b" * 32,
                    shard_index=index,
                    num_shards=NUM_SHARDS,
                ),
            )
            for index in range(NUM_SHARDS)
        )
    namespace = "run" if kind == "namespaced" else None
    return lambda: held.enter_context(
        connect(address, source="me", token=TOKEN, namespace=namespace)
    )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connected(kind: str, tmp_path: Path) -> Iterator[Connect]:
    """Gives clients of one bank in memory."""
    with ExitStack() as held:
        yield _site(held, kind, tmp_path, has_root=False)


@pytest.fixture
def bank(connected: Connect) -> Bank:
    return connected()


@pytest.fixture
def specs() -> SimpleNamespace:
    """Gives the specs of the tables that these suites use."""
    return SPECS


@pytest.fixture
def nodes(bank: Bank) -> Table:
    return bank.table(SPECS.nodes)


@pytest.fixture
def messages(bank: Bank) -> Table:
    return bank.table(SPECS.messages)


@pytest.fixture
def rooted_bank(kind: str, tmp_path: Path) -> Iterator[Bank]:
    """Gives a client of a bank that can take snapshots."""
    with ExitStack() as held:
        yield _site(held, kind, tmp_path, has_root=True)()
