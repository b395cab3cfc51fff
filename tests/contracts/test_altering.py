"""What altering a table does, asked of every kind of bank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax import errors
from carls_jax.bank.initializers import normal
from carls_jax.bank.interface import Bank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table

KEYS = np.array([3, 1, 4, 0, 5, 9, 2, 6])  # on all shards
NEW = Field((2,), init=normal(1.0), optimizer=optimizer("sgd", learning_rate=1.0))


def with_fields(spec: TableSpec, **fields: Field) -> TableSpec:
    return replace(spec, fields={**spec.fields, **fields})


def test_a_field_is_added_to_rows_that_are_there(bank: Bank, nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS}, step=12, source="maker/0")
    spec = with_fields(nodes.spec, new=NEW)

    table = bank.alter(spec)

    assert table.spec == spec
    rows = table.lookup(KEYS, metadata=("step", "version"))
    assert_array_equal(rows["label"], KEYS)
    assert_array_equal(rows.step["label"], [12] * 8)
    assert_array_equal(rows.version["label"], [1] * 8)
    assert_array_equal(rows.version["new"], [0] * 8)
    straight = bank.table(replace(spec, name="straight"))
    assert_array_equal(straight.lookup(KEYS, create=True)["new"], rows["new"])

    table.push(KEYS, {"new": np.ones((8, 2))}, step=13)
    assert_array_equal(table.lookup(KEYS)["new"], rows["new"] - 1)


def test_hyper_parameters_are_altered(bank: Bank, nodes: Table) -> None:
    nodes.push(KEYS, {"embedding": np.ones((8, 2))})
    slower = replace(nodes.spec.fields["embedding"], optimizer=optimizer("sgd", learning_rate=0.25))
    table = bank.alter(with_fields(nodes.spec, embedding=slower))
    table.push(KEYS, {"embedding": np.ones((8, 2))})
    assert_array_equal(table.lookup(KEYS)["embedding"], np.full((8, 2), 8 - 0.5 - 0.25))


def test_a_table_object_from_before_goes_on_working(bank: Bank, nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS})
    bank.alter(with_fields(nodes.spec, new=NEW))

    nodes.update(KEYS[:3], {"label": [7, 8, 9]})
    nodes.push(KEYS, {"embedding": np.ones((8, 2))})

    rows = nodes.lookup(KEYS)
    assert list(rows.values) == ["embedding", "label", "confidence"]
    assert_array_equal(rows["label"], [7, 8, 9, *KEYS[3:]])
    assert len(list(nodes.scan())) >= 1
    with pytest.raises(errors.FieldNotFoundError, match="'new'"):
        nodes.lookup(KEYS, fields=("new",))


def test_other_clients_get_the_new_spec(connected: Callable[[], Bank], specs: object) -> None:
    here, there = connected(), connected()
    table = here.table(specs.nodes)  # type: ignore[attr-defined]
    table.update(KEYS, {"label": KEYS})
    before = there.table("nodes")
    assert_array_equal(before.lookup(KEYS)["label"], KEYS)

    here.alter(with_fields(table.spec, new=NEW))

    before.update(KEYS, {"label": KEYS + 1})  # whose answer tells of it
    after = there.table("nodes")
    assert list(after.spec.fields) == ["embedding", "label", "confidence", "new"]
    assert_array_equal(after.lookup(KEYS)["label"], KEYS + 1)
    assert there.table("nodes") is after


def test_a_table_holds_more_rows(bank: Bank) -> None:
    spec = TableSpec("small", {"n": Field(dtype="int64")}, max_rows=8)
    table = bank.table(spec)
    table.update(KEYS, {"n": KEYS})
    with pytest.raises(errors.BankFullError):
        table.update(np.arange(100), {"n": np.arange(100)})
    table = bank.alter(replace(spec, max_rows=100))
    table.update(np.arange(100), {"n": np.arange(100) * 2})
    assert_array_equal(table.lookup(np.arange(100))["n"], np.arange(100) * 2)


@pytest.mark.parametrize("added", [{}, {"new": NEW}], ids=["in place", "copied"])
def test_what_cannot_be_altered_changes_nothing(bank: Bank, nodes: Table, added: object) -> None:
    nodes.update(np.arange(64), {"label": np.arange(64)})
    wide = with_fields(nodes.spec, **added)  # type: ignore[arg-type]
    with pytest.raises(errors.SpecMismatchError, match="shape of field 'label'"):
        bank.alter(with_fields(wide, label=Field((2,), dtype="int64")))
    with pytest.raises(errors.InvalidInputError, match=r"max_rows=10: table '.*nodes' has"):
        bank.alter(replace(wide, max_rows=10))
    with pytest.raises(errors.TableNotFoundError, match="edges'"):
        bank.alter(replace(wide, name="edges"))
    assert bank.tables() == {"nodes": nodes.spec}
    assert_array_equal(nodes.lookup(np.arange(64))["label"], np.arange(64))


def test_altered_tables_are_restored_as_they_were(rooted_bank: Bank, specs: object) -> None:
    table = rooted_bank.table(specs.nodes)  # type: ignore[attr-defined]
    table.update(KEYS, {"label": KEYS})
    first = rooted_bank.snapshot("first")
    wide = rooted_bank.alter(with_fields(table.spec, new=NEW))
    wide.update(KEYS, {"new": np.ones((8, 2))})
    second = rooted_bank.snapshot("second")

    rooted_bank.restore(first)
    assert rooted_bank.table("nodes").spec == table.spec
    rooted_bank.restore(second)
    assert rooted_bank.table("nodes").spec == wide.spec
    assert_array_equal(rooted_bank.table("nodes").lookup(KEYS)["new"], np.ones((8, 2)))


def test_readers_and_writers_notice_nothing(connected: Callable[[], Bank]) -> None:
    """Rows are whole and never older than was acknowledged, and no write is lost."""
    bank = connected()
    spec = TableSpec(
        "t",
        {
            "a": Field((16,), dtype="int64"),
            "w": Field(optimizer=optimizer("sgd", learning_rate=1.0)),
        },
    )
    table, keys = bank.table(spec), np.arange(512)
    table.update(keys, {"a": np.zeros((512, 16), np.int64)})
    written, failures, stop = [0], [], threading.Event()

    def write() -> None:
        mine = connected().table("t")
        while not stop.is_set():
            number = written[0] + 1
            mine.update(keys, {"a": np.full((512, 16), number)})
            mine.push(keys, {"w": np.ones(512)})
            written[0] = number

    def read() -> None:
        mine, drawn = connected().table("t"), np.random.default_rng(0)
        while not stop.is_set():
            least = written[0]
            rows = mine.lookup(drawn.choice(keys, 64), fields=("a",))
            most = written[0] + 1
            if not rows.found.all() or (rows["a"] != rows["a"][:, :1]).any():
                failures.append("a row is missing or torn")
            if rows["a"].min() < least or rows["a"].max() > most:
                failures.append(f"{least} {rows['a'].min()} {rows['a'].max()} {most}")

    threads = [threading.Thread(target=one) for one in (write, read, read)]
    for thread in threads:
        thread.start()
    for number in range(12):
        spec = with_fields(spec, **{f"n{number}": Field((4,), init=normal(1.0))})
        bank.alter(spec)
        before = written[0]
        while written[0] < before + 2 and all(thread.is_alive() for thread in threads):
            pass
    stop.set()
    for thread in threads:
        thread.join()

    assert failures == []
    rows = bank.table("t").lookup(keys, metadata=("version",))
    assert written[0] > 20
    assert_array_equal(rows["a"], np.full((512, 16), written[0]))
    assert_array_equal(rows["w"], np.full(512, -written[0]))
    assert_array_equal(rows.version["w"], [written[0]] * 512)
