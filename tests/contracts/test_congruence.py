"""Any history of calls gets the same answers from every kind of bank."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank.connect import connect
from carls_jax.bank.initializers import uniform
from carls_jax.bank.interface import Applied, Bank
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.server import BankServer
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import CarlsError

FIELDS = {
    "x": Field((2,), init=uniform(-1, 1), optimizer=optimizer("adagrad", learning_rate=0.1)),
    "label": Field((), dtype="int32", history=2),
}
SHARED = TableSpec("shared", fields=FIELDS, max_rows=10_000)
SPOKEN = TableSpec("spoken", fields=FIELDS, per_source=True, max_rows=10_000)
METADATA = ("version", "step", "source", "clock")  # all but the time

KEYS = st.lists(st.integers(-1, 12), min_size=1, max_size=8)
STEPS = st.integers(-1, 9)
CLOCKS = st.sampled_from(["main", "other"])
SOURCES = st.sampled_from(["", "ann", "bob"])
BY = {"step": STEPS, "clock": CLOCKS, "source": SOURCES}
NUMBERS = st.integers(-4, 4)

CALLS = st.one_of(
    st.fixed_dictionaries({"call": st.just("update"), "if_newer": st.booleans(), **BY}),
    st.fixed_dictionaries(
        {
            "call": st.just("push"),
            "combine": st.sampled_from(["sum", "mean"]),
            "create": st.booleans(),
            **BY,
        }
    ),
    st.fixed_dictionaries({"call": st.just("delete"), "source": SOURCES}),
    st.fixed_dictionaries({"call": st.just("history"), "source": SOURCES}),
    st.fixed_dictionaries(
        {
            "call": st.just("lookup"),
            "create": st.booleans(),
            "max_age_steps": st.none() | st.integers(0, 5),
            "now": st.none() | st.integers(0, 9),
            "clock": CLOCKS,
            "sources": st.sampled_from([None, "!me", "bob", ("bob", "stranger")]),
        }
    ),
)
HISTORY = st.lists(st.tuples(st.booleans(), KEYS, NUMBERS, CALLS), max_size=12)


@contextmanager
def banks() -> Iterator[dict[str, Bank]]:
    """Gives an empty bank of every kind."""
    with ExitStack() as held:
        directory = held.enter_context(tempfile.TemporaryDirectory())
        served = held.enter_context(LocalBank())
        server = held.enter_context(BankServer(served, f"unix:{directory}/s"))
        shards = [LocalBank(bank_id="b", shard_index=i, num_shards=3) for i in range(3)]
        yield {
            "local": held.enter_context(LocalBank(source="me")),
            "remote": held.enter_context(connect(server.address, source="me")),
            "sharded": held.enter_context(ShardedBank(shards, source="me")),
        }


def answer(
    bank: Bank, is_spoken: bool, keys: Sequence[int], number: int, arguments: dict[str, Any]
) -> object:
    """Makes one call and returns what it answers or how it fails."""
    table = bank.table(SPOKEN if is_spoken else SHARED)
    given = dict(arguments)
    call = given.pop("call")
    values = np.arange(len(keys)) + number
    try:
        if call == "update":
            return plain(table.update(keys, {"label": values}, **given))
        if call == "push":
            gradients = np.stack([values, -values], axis=1).astype(np.float32)
            return plain(table.push(keys, {"x": gradients}, **given))
        if call == "delete":
            return table.delete(keys, **given)
        if call == "history":
            return plain(table.history(keys, "label", **given))
        if not is_spoken:
            given["sources"] = None
        return plain(table.lookup(keys, metadata=METADATA, **given))
    except CarlsError as error:
        return type(error).__name__, str(error)


def plain(answered: object) -> object:
    """Turns an answer into what can be compared; times and numbers of changes are left out."""
    match answered:
        case Applied():
            unknown = answered.unknown_keys.tolist()
            return replace(answered, sequence=0, unknown_keys=None), unknown  # type: ignore[arg-type]
        case Rows():
            return {name: plain(value) for name, value in vars(answered).items()}
        case Written():
            return plain(replace(answered, updated_at=0.0).__dict__)
        case np.ndarray() | np.generic():
            return answered.dtype, answered.shape, answered.tolist()
        case dict():
            return {name: plain(value) for name, value in answered.items()}
        case list():
            return [plain(value) for value in answered]
        case _:
            return answered


def contents(bank: Bank) -> object:
    """Returns all rows of a bank by key and author, and its clocks."""
    tables = {}
    for name in bank.tables():
        rows = [
            (int(key), row)
            for block in bank.table(name).scan(metadata=METADATA, block_rows=3)
            for key, row in zip(block.keys, _rows_of(block), strict=True)
        ]
        tables[name] = sorted(rows, key=repr)
    return tables, bank.stats().clocks


def _rows_of(block: Rows) -> Iterator[tuple[object, ...]]:
    columns = [block["x"], block["label"]]
    columns += [block.metadata[kind][name] for kind in METADATA for name in FIELDS]
    return zip(*(column.tolist() for column in columns), strict=True)


@settings(max_examples=40, deadline=None)
@given(history=HISTORY)
def test_every_bank_gives_the_same_answers(
    history: list[tuple[bool, list[int], int, dict[str, Any]]],
) -> None:
    with banks() as kinds:
        for is_spoken, keys, number, arguments in history:
            expected = answer(kinds["local"], is_spoken, keys, number, arguments)
            for kind in ("remote", "sharded"):
                assert answer(kinds[kind], is_spoken, keys, number, arguments) == expected
        expected = contents(kinds["local"])
        for kind in ("remote", "sharded"):
            assert contents(kinds[kind]) == expected
