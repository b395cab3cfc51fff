from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import status
from carls_jax.bank.local import LocalBank
from carls_jax.bank.same_host_connection import COUNTERS_BYTES, SEGMENT_BYTES, Connection, Kind
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_memory import attach
from carls_jax.bank.table_sharing import MAX_COUNT, MAX_SHARED_TABLES, SharedTable, TableSharing
from carls_jax.errors import BankOverloadedError, InvalidInputError, TableNotFoundError

SPEC = TableSpec("t", {"x": Field((2,)), "n": Field(dtype="int8", group="g")}, max_rows=1000)


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        bank.table(SPEC).update([7], {"x": [[1.0, 2.0]]})
        yield bank


class Pair:
    """A client's and a server's end of a connection."""

    def __init__(self, bank: LocalBank) -> None:
        segment = memoryview(bytearray(SEGMENT_BYTES))
        links = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.client, self.server = (Connection(link, segment) for link in links)
        for end in (self.client, self.server):
            end.deadline = time.monotonic() + 20
        self.counters = np.frombuffer(segment[-COUNTERS_BYTES:], np.int64)
        self.sharing = TableSharing(self.server, bank.share)

    def open(self, name: str) -> tuple[SharedTable, int]:
        self.sharing.open(name, call=3)
        packet, descriptors = self.client.receive_descriptors()
        message, _ = self.client.content(packet)
        assert packet.call == 3
        if packet.kind is Kind.FAILURE:
            assert not descriptors
            raise status.unpack_error(message)
        assert packet.kind is Kind.TABLE
        return SharedTable.decode(message), descriptors[0]


@pytest.fixture
def pair(bank: LocalBank) -> Iterator[Pair]:
    pair = Pair(bank)
    with pair.sharing:
        yield pair
        for end in (pair.client, pair.server):
            end.close()


def test_a_table_is_described_with_its_memory(bank: LocalBank, pair: Pair) -> None:
    shared, descriptor = pair.open("t")
    arrays = attach(descriptor, shared.parts)
    os.close(descriptor)
    assert (shared.bank_id, shared.incarnation) == (
        bank.identity.bank_id,
        bank.identity.incarnation,
    )
    assert shared.spec == SPEC
    slot = np.flatnonzero(arrays["key"] == 7)
    assert arrays["value/x"][slot].tolist() == [[1.0, 2.0]]


def test_what_cannot_be_shared_is_refused_and_why(bank: LocalBank, pair: Pair) -> None:
    bank.table(TableSpec("s", {"x": Field()}, per_source=True))
    with pytest.raises(InvalidInputError, match="'s' cannot be shared"):
        pair.open("s")
    with pytest.raises(TableNotFoundError, match="no table 'u'; this bank has s, t"):
        pair.open("u")
    pair.open("t")


def test_tables_are_bounded(pair: Pair) -> None:
    numbers = []
    for _ in range(MAX_SHARED_TABLES):
        shared, descriptor = pair.open("t")
        os.close(descriptor)
        numbers.append(shared.number)
    assert numbers == list(range(MAX_SHARED_TABLES))
    with pytest.raises(BankOverloadedError, match=f"{MAX_SHARED_TABLES} tables"):
        pair.open("t")


def counted(bank: LocalBank) -> tuple[int, int]:
    counters = bank.stats().tables["t"].counters
    return counters.get("lookup_calls", 0), counters.get("rows_looked_up", 0)


def test_a_clients_counts_are_the_tables_and_stay(bank: LocalBank) -> None:
    with ExitStack() as held:
        pairs = [Pair(bank) for _ in range(2)]
        for pair in pairs:
            held.enter_context(pair.sharing)
            os.close(pair.open("t")[1])
        assert counted(bank) == (0, 0)
        assert "lookup_calls" not in bank.stats().tables["t"].counters
        pairs[0].counters[:2] = 3, 300
        pairs[1].counters[:2] = 1, 50
        assert counted(bank) == (4, 350)
        pairs[1].counters[:2] = 2, 60
        for pair in pairs:
            pair.client.close()
            pair.server.close()
    assert counted(bank) == (5, 360)
    pairs[0].counters[:2] = 1000
    assert counted(bank) == (5, 360)


def test_impossible_counts_are_not_believed(bank: LocalBank, pair: Pair) -> None:
    os.close(pair.open("t")[1])
    pair.counters[:2] = -5, 2**63 - 1
    assert counted(bank) == (0, MAX_COUNT)


def described(pair: Pair) -> dict[str, Any]:
    shared, descriptor = pair.open("t")
    os.close(descriptor)
    return json.loads(shared.encode())


def part(message: dict[str, Any], name: str) -> list[Any]:
    return next(one for one in message["parts"] if one[0] == name)


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no number": lambda message: message.pop("number"),
    "more": lambda message: message.update(more=1),
    "number": lambda message: message.update(number=MAX_SHARED_TABLES),
    "negative": lambda message: message.update(number=-1),
    "text": lambda message: message.update(number="1"),
    "spec": lambda message: message.update(spec=[]),
    "parts": lambda message: message.update(parts=3),
    "short column": lambda message: part(message, "value/x")[1].__setitem__(0, 999),
    "wide column": lambda message: part(message, "value/x")[1].__setitem__(1, 3),
    "flat column": lambda message: part(message, "value/x").__setitem__(1, []),
    "dtype": lambda message: part(message, "value/x").__setitem__(2, "<f8"),
    "objects": lambda message: part(message, "value/x").__setitem__(2, "|O"),
    "key": lambda message: part(message, "key").__setitem__(1, [10]),
    "guards": lambda message: part(message, "guards").__setitem__(1, [10]),
    "cells": lambda message: part(message, "index/cells").__setitem__(1, [10]),
    "directory": lambda message: part(message, "index/directory").__setitem__(1, [10]),
    "no column": lambda message: message["parts"].remove(part(message, "step/g")),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_description_is_refused(pair: Pair, forgery: str) -> None:
    message = described(pair)
    FORGERIES[forgery](message)
    with pytest.raises(ValueError):  # noqa: PT011, each has its own text
        SharedTable.decode(json.dumps(message).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"3", b"[" * 100_000], ids=lambda raw: raw[:8]
)
def test_bytes_that_describe_nothing_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, each has its own text
        SharedTable.decode(raw)
