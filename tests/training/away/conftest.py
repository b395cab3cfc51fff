"""Servers that go away and come back at the same address, with all that they held."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from carls_jax.bank import Bank, BankServer, Field, LocalBank, RemoteBank, ShardedBank, TableSpec
from carls_jax.bank.optimizers import optimizer

DEADLINE_S = 60.0
PATIENCE_S = 0.6

SPEC = TableSpec(
    "t", {"x": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0)), "label": Field()}
)


class Server:
    """Serves a bank, or one shard of one, while it is started."""

    def __init__(self, directory: Path, *, index: int = 0, num_shards: int = 1) -> None:
        self.address = f"unix:{directory}/server-{index}"
        self.held = LocalBank(
            directory / f"root-{index}", bank_id="b", shard_index=index, num_shards=num_shards
        )
        # What is compiled when it is first used is not to cost a client its patience.
        table = self.held.table(SPEC)
        table.push([7], {"x": [[1.0, 1.0]]})
        table.update([7], {"label": [1.0]})
        table.delete([7])
        self._server: BankServer | None = None
        self.start()

    def start(self) -> None:
        self._server = BankServer(self.held, self.address)

    def stop(self) -> None:
        if self._server:
            self._server.stop(0)
        self._server = None


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Closes at the end what a test opens."""
    with ExitStack() as stack:
        yield stack


def _started(held: ExitStack, directory: Path, num_shards: int) -> list[Server]:
    servers = [Server(directory, index=i, num_shards=num_shards) for i in range(num_shards)]
    for server in servers:
        held.callback(server.held.close)
        held.callback(server.stop)
    return servers


@pytest.fixture
def server(held: ExitStack, tmp_path: Path) -> Server:
    return _started(held, tmp_path, 1)[0]


@pytest.fixture
def bank(held: ExitStack, server: Server) -> Bank:
    """A client of `server` that waits for it but shortly; its table is there."""
    bank = _client(server)
    held.callback(bank.close)
    bank.wait_ready(DEADLINE_S)
    return bank


@pytest.fixture
def servers(held: ExitStack, tmp_path: Path) -> list[Server]:
    return _started(held, tmp_path, 2)


@pytest.fixture
def sharded(held: ExitStack, servers: list[Server]) -> Bank:
    """A client of both `servers`, as `bank` is of one."""
    bank = ShardedBank([_client(one, num_shards=2) for one in servers], source="trainer")
    held.callback(bank.close)
    bank.wait_ready(DEADLINE_S)
    return bank


def _client(server: Server, *, num_shards: int = 1) -> RemoteBank:
    return RemoteBank(
        server.address,
        source="trainer",
        timeout_s=PATIENCE_S,
        try_timeout_s=PATIENCE_S,
        num_shards=num_shards,
    )


@pytest.fixture
def heard() -> Iterator[Callable[[str], threading.Event]]:
    """Returns what gives an event that is set when a message with some words is logged."""
    logger, filters = logging.getLogger("carls_jax.training.away.absence"), []

    def listen(words: str) -> threading.Event:
        event = threading.Event()

        def note(record: logging.LogRecord) -> bool:
            if words in record.getMessage():
                event.set()
            return True

        logger.addFilter(note)
        filters.append(note)
        return event

    yield listen
    for one in filters:
        logger.removeFilter(one)
