"""Every quantity that a client chooses has a bound; SECURITY.md has the same list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.bounds import check_request
from carls_jax.bank.initializers import constant
from carls_jax.bank.interface import PROTOCOL_VERSION
from carls_jax.bank.joining import MAX_LINKS
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.shard import MAX_TABLES, Shard
from carls_jax.bank.specs import DTYPES, MAX_FIELDS, MAX_HISTORY, Field, TableSpec
from carls_jax.bank.staging import Staging
from carls_jax.bank.table_shard import MAX_AUTHORS, MAX_CLOCKS
from carls_jax.bank.values import MAX_KEYS
from carls_jax.bank.wire import MAX_ARRAYS, MAX_DIMENSIONS
from carls_jax.errors import BankOverloadedError, CarlsError, InvalidInputError, ShapeError

BY = {"clock": "main", "source": "me", "step": -1}
KEYS = np.arange(4)
WIDE = 1 << 20
SPECS = [
    TableSpec("t", {"x": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0))}),
    TableSpec("wide", {"x": Field((WIDE,)), "past": Field((1 << 10,), history=MAX_HISTORY)}),
    TableSpec("said", {"x": Field((2,))}, per_source=True),
    TableSpec("links", {"to": Field((64,), dtype="int64")}),
]


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank(source="me") as bank:
        for spec in SPECS:
            bank.table(spec)
        bank.table("links").update(np.arange(1024), {"to": np.arange(1024 * 64).reshape(1024, 64)})
        yield bank


def sent(bank: LocalBank, arrays: dict[str, Any] | None = None, **call: Any) -> Callable[[], Any]:
    """Returns a call that has a request answered as a server does."""
    arrays = {name: np.asarray(array) for name, array in (arrays or {}).items()}
    request = pb.Request(protocol_version=PROTOCOL_VERSION, **call)
    request.arrays.extend(
        pb.ArrayHeader(name=name, dtype=array.dtype.name, shape=array.shape)
        for name, array in arrays.items()
    )
    pieces = [memoryview(array.tobytes()) for array in arrays.values()]
    return lambda: Staging(bank, max_bytes=1 << 30).answer(request, pieces)


def update(table: str = "t", **author: Any) -> dict[str, Any]:
    return {
        "change": pb.Change(table=table, author=pb.Author(**BY | author), update=pb.Update()),
        "arrays": {"keys": KEYS, "value/x": np.zeros((4, 2), np.float32)},
    }


def lookup(num_keys: int = 4, **more: Any) -> dict[str, Any]:
    asked = pb.Lookup(**{"table": "t", "fields": ["x"], **more})
    return {"lookup": asked, "arrays": {"keys": np.arange(num_keys)}}


def created(spec: dict[str, Any] | str) -> dict[str, Any]:
    text = spec if isinstance(spec, str) else json.dumps(spec)
    return {"change": pb.Change(table="new", create_table=pb.CreateTable(spec_json=text))}


def described(**fields: Field) -> dict[str, Any]:
    """Returns a spec as a client writes it that checks nothing."""
    return {**TableSpec("new", {"x": Field()}).to_dict(), "fields": _fields(**fields)}


def _fields(**fields: Any) -> dict[str, Any]:
    plain = Field().to_dict()
    return {name: {**plain, **one} for name, one in fields.items()}


LONG = "x" * 3000
TOO_MUCH: dict[str, tuple[dict[str, Any], type[CarlsError], str]] = {
    # Texts and lists of any request.
    "a name": (lookup(table=LONG), InvalidInputError, "table='xxx.*has 3000 letters of 2048"),
    "a field's name": (lookup(fields=[LONG]), InvalidInputError, "fields='xxx.*3000 letters"),
    "the bank's id": ({"bank_id": LONG, **lookup()}, InvalidInputError, "bank_id='x.*3000 letters"),
    "fields": (lookup(fields=["x"] * 257), InvalidInputError, "257 fields: allowed are 256"),
    "metadata": (lookup(metadata=["step"] * 6), InvalidInputError, "6 metadata: allowed are 5"),
    "sources": (
        lookup(table="said", sources=[f"s{i}" for i in range(MAX_AUTHORS + 1)]),
        InvalidInputError,
        "4097 sources: allowed are 4096",
    ),
    "links": (
        {
            "follow": pb.Follow(links=[pb.Lookup(table="links", fields=["to"])] * (MAX_LINKS + 1)),
            "arrays": {"keys": KEYS},
        },
        InvalidInputError,
        "17 links: allowed are 1 to 16",
    ),
    "a source": (update(source="x" * 257), InvalidInputError, "source='xxx.*at most 256 letters"),
    "a part of a source": (update(source="x" * 65), InvalidInputError, "1 to 64 of the characters"),
    "a clock": (update(clock="x" * 257), InvalidInputError, "clock='xxx.*at most 256 letters"),
    "a client": (
        {**update(), "change": pb.Change(client=LONG)},
        InvalidInputError,
        "client='xxx.*3000 letters",
    ),
    "a label": (
        {"take_snapshot": pb.TakeSnapshot(label=LONG)},
        InvalidInputError,
        "label='xxx.*3000 letters",
    ),
    "a snapshot's name": ({"restore": pb.Restore(name=LONG)}, InvalidInputError, "3000 letters"),
    "lazy fields of a flush": (
        {"change": pb.Change(table="t", flush=pb.Flush(fields=["x"] * 257))},
        InvalidInputError,
        "257 fields: allowed are 256",
    ),
    # Arrays.
    "arrays": (
        {**lookup(), "arrays": {f"value/f{i}": KEYS for i in range(MAX_ARRAYS + 1)}},
        InvalidInputError,
        "2049 arrays: allowed are 2048",
    ),
    "an array's name": (
        {**lookup(), "arrays": {LONG: KEYS}},
        InvalidInputError,
        "name='xxx.*3000 letters",
    ),
    "dimensions": (
        {**lookup(), "arrays": {"keys": np.zeros((1,) * (MAX_DIMENSIONS + 1))}},
        ShapeError,
        f"at most {MAX_DIMENSIONS} sizes",
    ),
    # Rows.
    "keys": (lookup(MAX_KEYS + 1), ShapeError, f"n in 1..{MAX_KEYS}"),
    "rows of a scan": (
        {"scan": pb.Scan(table="t", fields=["x"], num_rows=(1 << 20) + 1)},
        InvalidInputError,
        "num_rows=1048577: allowed is 1 to 1048576",
    ),
    "keys and sources": (
        lookup(1 << 13, table="said", sources=[f"s{i}" for i in range(1 << 12)]),
        InvalidInputError,
        "8192 keys of 4096 sources: allowed are 16777216 rows",
    ),
    "keys that others lead to": (
        {
            "follow": pb.Follow(links=[pb.Lookup(table="links", fields=["to"])] * 4),
            "arrays": {"keys": np.arange(1024)},
        },
        InvalidInputError,
        "4194304 keys lead to 268435456 by field 'to': allowed are 16777216",
    ),
    "bytes of rows that are not there": (
        lookup(2000, table="wide"),
        BankOverloadedError,
        "2000 keys of 4194304 bytes: allowed are 4294967296 bytes per call; ask for fewer",
    ),
    "bytes of rows that a chain leads to": (
        {
            "follow": pb.Follow(
                links=[
                    pb.Lookup(table="links", fields=["to"]),
                    pb.Lookup(table="wide", fields=["x"]),
                ]
            ),
            "arrays": {"keys": np.arange(1024)},
        },
        BankOverloadedError,
        "65536 keys of 4194304 bytes",
    ),
    "bytes of histories": (
        {"history": pb.History(table="wide", field="past"), "arrays": {"keys": np.arange(1000)}},
        BankOverloadedError,
        "1024000 writes of 5120 bytes",
    ),
    # Tables.
    "a spec's text": (created(" " * ((1 << 20) + 1)), InvalidInputError, "1048577 letters of 104"),
    "a spec's depth": (created("[" * 500_000), InvalidInputError, "describes no TableSpec"),
    "a spec's numbers": (created("9" * 10_000), InvalidInputError, "describes no TableSpec"),
    "a table's fields": (
        created(described(**{f"f{i}": {} for i in range(MAX_FIELDS + 1)})),
        InvalidInputError,
        "give 1 to 256 fields",
    ),
    "a table's name": (
        {
            "change": pb.Change(
                table="x" * 257,
                create_table=pb.CreateTable(
                    spec_json=json.dumps({**described(x={}), "name": "x" * 257})
                ),
            )
        },
        InvalidInputError,
        "at most 256 letters",
    ),
    "a row of a field": (
        created(described(x={"shape": [1 << 12, 1 << 11]})),
        ShapeError,
        "takes 33554432 bytes a row: allowed are 16777216",
    ),
    "a row of a field's history": (
        created(described(x={"shape": [1 << 13], "history": MAX_HISTORY})),
        ShapeError,
        "takes 33554432 bytes a row: allowed are 16777216",
    ),
    "a row of all fields": (
        created(described(**{f"f{i}": {"shape": [1 << 22]} for i in range(5)})),
        ShapeError,
        "a row takes 83886080 bytes, with its histories: allowed are 67108864",
    ),
    "dimensions of a field": (
        created(described(x={"shape": [1] * 9})),
        ShapeError,
        "at most 8 positive sizes",
    ),
    "a history": (
        created(described(x={"history": MAX_HISTORY + 1})),
        InvalidInputError,
        "integers 0 to 1024",
    ),
    "max_rows": (
        created({**described(x={}), "max_rows": 1 << 31}),
        InvalidInputError,
        "max_rows.*integers 1 to 2147483647",
    ),
}


@pytest.mark.parametrize(("call", "error", "expected"), TOO_MUCH.values(), ids=list(TOO_MUCH))
def test_what_is_too_much_is_refused_and_changes_nothing(
    bank: LocalBank,
    call: dict[str, Any],
    error: type[CarlsError],
    expected: str,
    state_of: Callable[[Shard], dict[str, Any]],
) -> None:
    before = state_of(bank._open())
    ask = sent(bank, **call)
    with pytest.raises(error, match=expected):
        ask()
    assert state_of(bank._open()) == before
    assert sent(bank, **lookup())()[0].WhichOneof("answer") == "looked_up"


def test_tables_have_a_number(bank: LocalBank) -> None:
    spec = TableSpec("t0", {"x": Field(())}, max_rows=8)
    for number in range(len(SPECS), MAX_TABLES):
        bank.apply(changes.create_table(TableSpec(f"t{number}", spec.fields, max_rows=8)))
    with pytest.raises(BankOverloadedError, match=f"at most {MAX_TABLES}"):
        bank.table(spec)
    assert len(bank.tables()) == MAX_TABLES


def test_tables_together_leave_a_process_its_addresses(bank: LocalBank) -> None:
    # Each column of such a table takes a TiB, the most that one may.
    fields = {f"f{i}": Field((1 << 10,)) for i in range(24)}
    bank.table(TableSpec("one", fields))
    bank.table(TableSpec("two", fields))
    with pytest.raises(BankOverloadedError, match="'three' with max_rows=268435456 is too large"):
        bank.table(TableSpec("three", fields))
    assert "three" not in bank.tables()
    bank.table(TableSpec("small", fields, max_rows=1 << 20))


def test_clocks_have_a_number(bank: LocalBank) -> None:
    for number in range(MAX_CLOCKS):
        bank.advance(1, clock=f"c{number}")
    with pytest.raises(BankOverloadedError, match="'more' is one clock too many"):
        bank.advance(1, clock="more")


def test_all_texts_and_lists_of_all_requests_have_a_bound() -> None:
    for message in _messages(pb.Request.DESCRIPTOR, set()):
        for field in message.fields:
            is_text = field.cpp_type == field.CPPTYPE_STRING
            if not (is_text or field.is_repeated):
                continue
            made = message._concrete_class()
            values = ["x" * 17] * 100_000 if field.is_repeated else "x" * ((1 << 20) + 1)
            if field.is_repeated and not is_text:
                kind = field.message_type
                values = [kind._concrete_class()] * 100_000 if kind else [0] * 100_000
            if field.is_repeated:
                getattr(made, field.name).extend(values)
            else:
                setattr(made, field.name, values)
            with pytest.raises(InvalidInputError, match=f"{field.name}.*(allowed are|letters of)"):
                check_request(made)


def _messages(descriptor: Any, seen: set[str]) -> Iterator[Any]:
    """Yields a kind of message, and all that may be in it."""
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    yield descriptor
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from _messages(field.message_type, seen)


def test_a_request_as_large_as_a_table_may_be_is_allowed() -> None:
    names = [f"{'n' * 60}{i}" for i in range(MAX_FIELDS)]
    fields = {name: Field((2,), init=constant(1.0), group=name) for name in names}
    spec = TableSpec("t", fields, per_source=True)
    check_request(pb.Request(change=changes.create_table(spec).header))
    sources = [f"!{'/'.join(['s' * 63] * 4)}"] * MAX_AUTHORS
    asked = pb.Lookup(table="t", fields=names, sources=sources, metadata=["step"])
    headers = [pb.ArrayHeader(name=f"value/{name}", dtype=DTYPES[0], shape=[1]) for name in names]
    check_request(pb.Request(lookup=asked, arrays=headers))
