from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import service
from carls_jax.bank.interface import PROTOCOL_VERSION
from carls_jax.bank.local import LocalBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    BankIdentityError,
    BankUnavailableError,
    InvalidInputError,
    ProtocolMismatchError,
)

KEYS = np.array([3, 1])


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        bank.table(TableSpec("t", fields={"x": Field((2,))}))
        yield bank


def ask(bank: LocalBank, arrays: Arrays | None = None, **call: object) -> service.Answer:
    request = pb.Request(protocol_version=PROTOCOL_VERSION, **call)  # type: ignore[arg-type]
    return service.answer(bank, request, arrays or {})


def test_hello_tells_who_answers(bank: LocalBank) -> None:
    reply, arrays = ask(bank, hello=pb.Hello())

    assert reply.incarnation == bank.identity.incarnation
    assert reply.identity == pb.Identity(
        protocol_version=PROTOCOL_VERSION, bank_id=bank.identity.bank_id, num_shards=1
    )
    assert arrays == {}


def test_an_update_is_applied_and_looked_up(bank: LocalBank) -> None:
    change = pb.Change(table="t", update=pb.Update(), author=pb.Author(clock="main"))
    reply, arrays = ask(bank, {"keys": KEYS, "value/x": np.ones((2, 2), "f4")}, change=change)
    assert reply.applied.num_created == 2
    assert arrays["unknown_keys"].size == 0

    reply, arrays = ask(bank, {"keys": KEYS}, lookup=pb.Lookup(table="t", fields=["x"]))
    assert list(arrays) == ["found", "present/x", "value/x"]
    assert arrays["value/x"].tolist() == [[1, 1], [1, 1]]
    assert reply.WhichOneof("answer") == "looked_up"


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1])
def test_another_protocol_version_is_refused_by_every_call(bank: LocalBank, version: int) -> None:
    for request in (
        pb.Request(protocol_version=version, hello=pb.Hello()),
        pb.Request(protocol_version=version, describe=pb.Describe()),
    ):
        with pytest.raises(ProtocolMismatchError, match=rf"version {version}, this server"):
            service.answer(bank, request, {})


def test_a_request_to_another_bank_is_refused(bank: LocalBank) -> None:
    with pytest.raises(BankIdentityError, match=f"bank abc was meant.*{bank.identity.bank_id}"):
        ask(bank, bank_id="abc", describe=pb.Describe())
    assert ask(bank, bank_id=bank.identity.bank_id, describe=pb.Describe())


def test_a_request_must_hold_a_call(bank: LocalBank) -> None:
    with pytest.raises(InvalidInputError, match="no call: allowed are hello, change"):
        ask(bank)


def test_a_change_must_be_of_a_kind(bank: LocalBank) -> None:
    with pytest.raises(InvalidInputError, match="no kind"):
        ask(bank, {"keys": KEYS}, change=pb.Change(table="t"))


@pytest.mark.parametrize("arrays", [{}, {"value/x": KEYS}, {"keys": KEYS, "extra": KEYS}])
def test_a_reading_request_has_keys_alone(bank: LocalBank, arrays: Arrays) -> None:
    with pytest.raises(InvalidInputError, match="'keys' alone"):
        ask(bank, arrays, lookup=pb.Lookup(table="t", fields=["x"]))


def test_an_array_without_a_place_in_a_change_is_refused(bank: LocalBank) -> None:
    change = pb.Change(table="t", update=pb.Update())
    with pytest.raises(InvalidInputError, match="array 'x': a change has"):
        ask(bank, {"keys": KEYS, "x": KEYS}, change=change)


def test_a_chain_is_followed(bank: LocalBank) -> None:
    bank.table(TableSpec("s", fields={"to": Field((), dtype="int8")}))
    bank.table("s").update(KEYS, {"to": [7, 7]})
    bank.table("t").update([7], {"x": [[1, 2]]})
    links = [pb.Lookup(table="s", fields=["to"]), pb.Lookup(table="t", fields=["x"])]

    reply, arrays = ask(bank, {"keys": KEYS}, follow=pb.Follow(links=links))
    assert reply.WhichOneof("answer") == "followed"
    assert list(arrays) == ["keys", "places", "found", "present/x", "value/x"]
    assert arrays["keys"].tolist() == [7]
    assert arrays["places"].tolist() == [0, 0]

    _, arrays = ask(bank, {"held": np.array([7]), "keys": KEYS}, follow=pb.Follow(links=links))
    assert arrays["keys"].tolist() == [-1, 7]
    assert arrays["value/x"].tolist() == [[0, 0]]


@pytest.mark.parametrize("arrays", [{}, {"held": KEYS}, {"keys": KEYS, "extra": KEYS}])
def test_a_chain_has_keys_and_what_is_held_alone(bank: LocalBank, arrays: Arrays) -> None:
    with pytest.raises(InvalidInputError, match="'keys' alone"):
        ask(bank, arrays, follow=pb.Follow(links=[pb.Lookup(table="t", fields=["x"])]))


@pytest.mark.parametrize("uuid", ["../escape", "a" * 31, "A" * 32, "a" * 33])
def test_a_snapshots_uuid_cannot_name_a_path(bank: LocalBank, uuid: str) -> None:
    with pytest.raises(InvalidInputError, match="32 hexadecimal digits"):
        ask(bank, take_snapshot=pb.TakeSnapshot(label="s", uuid=uuid))


def test_a_closed_bank_is_away(bank: LocalBank) -> None:
    bank.close()

    with pytest.raises(BankUnavailableError, match="stopping"):
        ask(bank, describe=pb.Describe())
