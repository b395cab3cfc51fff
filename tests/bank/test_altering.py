"""What altering a table does to its rows: nothing, but for what was asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import altering, changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.altering import check_alter
from carls_jax.bank.changes import author
from carls_jax.bank.initializers import constant, normal
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.limits import Limit
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.server import BankServer
from carls_jax.bank.shard import Shard
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    BankFullError,
    ConfigError,
    InvalidInputError,
    SpecMismatchError,
    TableNotFoundError,
)

SPEC = TableSpec(
    "t",
    {
        "w": Field((3,), init=normal(1.0), optimizer=optimizer("adam", learning_rate=0.1)),
        "l": Field((2,), optimizer=optimizer("sgd", learning_rate=1.0), lazy=Lazy(), history=2),
        "a": Field(dtype="int64", group="g"),
        "b": Field(compact=None, group="g"),
    },
    max_rows=500,
    seed=7,
)
SAID = TableSpec("said", {"x": Field((2,), init=normal(1.0))}, per_source=True, max_rows=900)
ADDED = {
    "new": Field((4,), init=normal(1.0), compact="int8", history=2),
    "pushed": Field(init=constant(2.0), optimizer=optimizer("adagrad", learning_rate=1.0)),
    "late": Field(optimizer=optimizer("sgd", learning_rate=1.0), lazy=Lazy()),
}


def with_fields(spec: TableSpec, **fields: Field) -> TableSpec:
    return replace(spec, fields={**spec.fields, **fields})


def with_rows(*specs: TableSpec) -> Shard:
    """Returns a shard of tables of which many rows were written in many ways, and some removed."""
    shard, random = Shard(), np.random.default_rng(0)
    for spec in specs:
        shard.apply(changes.create_table(spec))
        for step in range(6):
            keys = np.unique(random.integers(0, 200, 150))
            by = author(step=step, source=f"s{step % 3}", clock=f"c{step % 2}", updated_at=step + 1)
            some = np.array_split(keys, 3)
            if "x" in spec.fields:
                value = random.standard_normal((some[0].size, 2)).astype(np.float32)
                shard.apply(changes.update(spec.name, some[0], {"x": value}, by=by))
                shard.apply(changes.create_rows(spec.name, some[1], by=by))
            else:
                both = {"a": some[0] * step, "b": some[0].astype(np.float32)}
                shard.apply(changes.update(spec.name, some[0], both, by=by))
                for name in ("w", "l"):
                    shape = (some[1].size, *spec.fields[name].shape)
                    gradients = random.standard_normal(shape).astype(np.float32)
                    shard.apply(changes.push(spec.name, some[1], {name: gradients}, by=by))
            shard.apply(changes.delete(spec.name, some[2][:9], by=by))
    return shard


def rows_of(shard: Shard, name: str) -> dict[str, np.ndarray]:
    """Returns all columns of a table, by key and author."""
    table = shard.table(name)
    slots = table.live_slots()
    columns = {name: column[slots] for name, column in table.columns.items()}
    order = np.lexsort([columns.get("author", columns["key"]), columns["key"]])
    return {name: column[order] for name, column in columns.items()}


def assert_same_rows(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, column in one.items():
        assert column.tobytes() == other[name].tobytes(), name


HYPER = with_fields(
    SPEC,
    w=replace(SPEC.fields["w"], optimizer=optimizer("adam", learning_rate=9.0, b1=0.5, clip=1.0)),
    l=replace(SPEC.fields["l"], lazy=Lazy(max_wait_s=99.0, combine="sum")),
)
ALTERED = {
    "hyper-parameters": HYPER,
    "fields": with_fields(SPEC, **ADDED),
    "fields and hyper-parameters": with_fields(HYPER, **ADDED),
    "fields in front": replace(SPEC, fields={**ADDED, **SPEC.fields}),
    "fewer rows": replace(SPEC, max_rows=200),
    "more rows": replace(SPEC, max_rows=5000),
    "fields and fewer rows": replace(with_fields(SPEC, **ADDED), max_rows=200),
    "a limit": replace(SPEC, limit=Limit(max_rows=300)),
    "nothing": SPEC,
}


@pytest.mark.parametrize("spec", ALTERED.values(), ids=ALTERED)
def test_rows_stay_as_they_are(spec: TableSpec) -> None:
    shard = with_rows(SPEC)
    before, counts = rows_of(shard, "t"), shard.stats().tables["t"]
    sequence = shard.stats().sequence

    assert shard.apply(changes.alter(spec)).sequence == sequence + 1

    assert_same_rows(before, rows_of(shard, "t"))
    after = shard.stats().tables["t"]
    assert after.spec == spec
    assert (after.num_rows, after.counters) == (counts.num_rows, counts.counters)
    assert after.rows_written == counts.rows_written
    assert_array_equal(shard.table("t").find(before["key"]) >= 0, True)
    absent = np.setdiff1d(np.arange(300), before["key"])
    assert_array_equal(shard.table("t").find(absent), -1)


@pytest.mark.parametrize("spec", [SPEC, SAID], ids=lambda spec: spec.name)
def test_an_added_field_is_as_if_it_had_been_there_from_the_start(spec: TableSpec) -> None:
    wide = with_fields(spec, **ADDED)
    shard, straight = with_rows(spec), with_rows(wide)
    shard.apply(changes.alter(wide))
    assert_same_rows(rows_of(straight, spec.name), rows_of(shard, spec.name))
    assert rows_of(shard, spec.name).keys() == rows_of(straight, spec.name).keys()

    # And goes on as if: rows are found, reused, written and pushed to alike.
    for one in (shard, straight):
        by = author(step=9, source="s1", updated_at=20.0)
        keys = np.arange(150, 300)
        ones = np.ones(keys.size, np.float32)
        one.apply(changes.push(spec.name, keys, {"pushed": ones, "late": ones}, by=by))
        one.apply(changes.delete(spec.name, keys[:50], by=by))
        one.apply(changes.flush(spec.name, keys, ["late"], by=by))
        one.apply(changes.create_rows(spec.name, keys[:20], by=by))
    assert_same_rows(rows_of(straight, spec.name), rows_of(shard, spec.name))


def test_other_hyper_parameters_move_rows_from_then_on() -> None:
    fields = {"w": Field(optimizer=optimizer("adagrad", learning_rate=1.0))}
    shard, spec = Shard(), TableSpec("t", fields)
    shard.apply(changes.create_table(spec))
    ones = {"w": np.ones(1, np.float32)}
    table = shard.table("t")
    shard.apply(changes.push("t", np.array([1]), ones, by=author()))
    other = optimizer("adagrad", learning_rate=0.0, initial_accumulator_value=3.0)
    shard.apply(changes.alter(with_fields(spec, w=Field(optimizer=other))))
    assert shard.table("t") is table  # without being copied
    before = rows_of(shard, "t")["value/w"].tolist()

    shard.apply(changes.push("t", np.array([1, 2]), {"w": np.ones(2, np.float32)}, by=author()))

    rows = rows_of(shard, "t")
    assert rows["value/w"].tolist() == [*before, 0]
    np.testing.assert_allclose(rows["state/w/sum_of_squares"], [2.1, 4.0], rtol=1e-6)


def test_what_was_gathered_is_combined_as_the_table_says_when_it_is_applied() -> None:
    fields = {"w": Field(optimizer=optimizer("sgd", learning_rate=1.0), lazy=Lazy())}
    shard, spec = Shard(), TableSpec("t", fields)
    shard.apply(changes.create_table(spec))
    for _ in range(2):
        shard.apply(changes.push("t", np.array([1]), {"w": np.ones(1, np.float32)}, by=author()))
    summed = replace(fields["w"], lazy=Lazy(combine="sum"))
    shard.apply(changes.alter(with_fields(spec, w=summed)))
    rows = shard.lookup(pb.Lookup(table="t", fields=["w"]), np.array([1]))
    assert rows["w"].tolist() == [-2]


@pytest.mark.parametrize("added", [{}, {"new": Field()}], ids=["in place", "copied"])
def test_the_number_of_rows_is_bounded_anew(added: dict[str, Field]) -> None:
    """Up and down, also where rows that were removed have left gaps."""
    shard, spec = Shard(), TableSpec("t", {"n": Field()}, max_rows=8)
    shard.apply(changes.create_table(spec))
    shard.apply(changes.create_rows("t", np.arange(8), by=author()))
    shard.apply(changes.delete("t", np.arange(5), by=author()))
    shard.apply(changes.alter(replace(with_fields(spec, **added), max_rows=4)))
    with pytest.raises(BankFullError, match="3 of at most 4 rows; 2 more"):
        shard.apply(changes.create_rows("t", np.arange(2), by=author()))
    shard.apply(changes.create_rows("t", np.arange(1), by=author()))

    shard.apply(changes.alter(replace(with_fields(spec, **added), max_rows=9)))
    shard.apply(changes.create_rows("t", np.arange(9), by=author()))
    assert rows_of(shard, "t")["key"].tolist() == [*range(9)]
    with pytest.raises(BankFullError, match="9 of at most 9"):
        shard.apply(changes.create_rows("t", np.array([99]), by=author()))


def field(name: str, **arguments: Any) -> dict[str, Any]:
    return {"fields": {**SPEC.fields, name: replace(SPEC.fields[name], **arguments)}}


REFUSED = [
    (dict(fields={name: SPEC.fields[name] for name in ("w", "l")}), "'a' is missing.*'b' is"),
    (field("w", shape=(4,)), r"shape of field 'w' is \(3,\), given \(4,\): add a field of another"),
    (field("a", dtype="int32"), "dtype of field 'a'"),
    (field("w", compact="int8"), "compact of field 'w'"),
    (field("w", init=constant(1.0)), "init of field 'w'"),
    (field("w", history=2), "history of field 'w'"),
    (field("w", group="other"), "group of field 'w'"),
    (field("w", optimizer=optimizer("sgd", learning_rate=0.1)), "optimizer .* 'adam', given 'sgd'"),
    (field("l", lazy=None), "lazy of field 'l' is 'on', given 'off'"),
    (dict(fields={**SPEC.fields, "c": Field(group="g")}), "c would join group 'g'"),
    (dict(keys="str"), "keys is 'int', given 'str': make a table of another name, and load"),
    (dict(per_source=True), "per_source is False"),
    (dict(seed=8), "seed is 7, given 8"),
]


@pytest.mark.parametrize(("other", "message"), REFUSED)
def test_what_would_be_another_table_is_refused(other: Any, message: str, unchanged: Any) -> None:
    shard = with_rows(SPEC)
    with unchanged(shard), pytest.raises(SpecMismatchError, match=message):
        shard.apply(changes.alter(replace(SPEC, **other)))


def test_rows_that_are_there_have_room(unchanged: Any) -> None:
    shard = with_rows(SPEC)
    num_rows = shard.table("t").num_rows
    with unchanged(shard), pytest.raises(InvalidInputError, match=f"has {num_rows} rows: delete"):
        shard.apply(changes.alter(replace(SPEC, max_rows=num_rows - 1)))
    shard.apply(changes.alter(replace(SPEC, max_rows=num_rows)))


@pytest.mark.parametrize("added", [{}, ADDED], ids=["in place", "copied"])
def test_a_limit_that_allows_no_row_is_refused(added: dict[str, Field], unchanged: Any) -> None:
    shard = with_rows(SPEC)
    spec = replace(with_fields(SPEC, **added), limit=Limit(max_bytes=10))
    with unchanged(shard), pytest.raises(ConfigError, match="max_bytes=10"):
        shard.apply(changes.alter(spec))


def test_a_table_that_is_not_there_is_not_altered() -> None:
    with pytest.raises(TableNotFoundError, match="no table 't'"):
        Shard().apply(changes.alter(SPEC))


def test_the_table_and_the_spec_have_one_name() -> None:
    change = changes.alter(SPEC)
    change.header.table = "said"
    with pytest.raises(InvalidInputError, match="the spec is of table 't'"):
        with_rows(SAID).apply(change)


def test_a_spec_is_checked_without_a_table() -> None:
    check_alter(SPEC, HYPER, num_rows=500)


def test_a_reader_that_began_before_sees_what_was_made_for_it(monkeypatch: Any) -> None:
    """Its flush, or the rows created for it, went to the new table: it reads that one."""
    shard = Shard()
    fields = {"w": Field(optimizer=optimizer("sgd", learning_rate=1.0), lazy=Lazy())}
    spec = TableSpec("t", fields)
    shard.apply(changes.create_table(spec))
    shard.apply(changes.push("t", np.array([1]), {"w": np.ones(1, np.float32)}, by=author()))
    apply, wide = shard.apply, with_fields(spec, new=Field())

    def altered_before(change: Any) -> Any:
        monkeypatch.setattr(shard, "apply", apply)
        shard.apply(changes.alter(wide))
        return apply(change)

    monkeypatch.setattr(shard, "apply", altered_before)
    assert shard.lookup(pb.Lookup(table="t", fields=["w"]), np.array([1]))["w"].tolist() == [-1]

    wide = with_fields(wide, newer=Field())
    monkeypatch.setattr(shard, "apply", altered_before)
    rows = shard.lookup(pb.Lookup(table="t", fields=["w"], create=True), np.array([2]))
    assert (rows.found.tolist(), rows.num_created) == ([True], 1)


def test_what_waits_for_a_table_alters_the_new_one() -> None:
    shard = with_rows(SPEC)
    table = shard.table("t")
    made = [changes.alter(with_fields(SPEC, **ADDED))] + [
        changes.create_rows("t", np.array([1000 + number]), by=author()) for number in range(4)
    ]
    with table.writer:
        threads = [threading.Thread(target=shard.apply, args=(change,)) for change in made]
        for thread in threads:
            thread.start()
        while not all(thread.is_alive() for thread in threads):
            pass
    for thread in threads:
        thread.join()
    assert shard.table("t") is not table
    assert (shard.table("t").find(1000 + np.arange(4)) >= 0).all()


def test_a_snapshot_that_waited_is_of_the_new_table(monkeypatch: Any) -> None:
    """It holds the new table still, and not the one for which it waited."""
    shard, held = with_rows(SPEC), []

    def freeze() -> None:
        with shard.frozen() as frozen:
            held.append(frozen[0][0].spec)

    def images(*arguments: Any) -> Any:
        held.extend(table.writer.locked() for table in shard._tables.values())
        return Shard._images(shard, *arguments)

    monkeypatch.setattr(shard, "_images", images)
    freezing, prepare = threading.Thread(target=freeze), altering.prepare

    def with_a_snapshot(*arguments: Any, **more: Any) -> Any:
        freezing.start()
        while not shard._outline.locked():
            pass
        return prepare(*arguments, **more)

    monkeypatch.setattr(altering, "prepare", with_a_snapshot)
    wide = with_fields(SPEC, **ADDED)
    shard.apply(changes.alter(wide))
    freezing.join()
    assert held == [True, wide]


def test_a_snapshot_that_is_being_read_stays_of_its_instant() -> None:
    shard = with_rows(SPEC)
    before = rows_of(shard, "t")
    with shard.frozen() as frozen:
        shard.apply(changes.alter(with_fields(SPEC, **ADDED)))
        shard.apply(changes.delete("t", before["key"], by=author()))
        (image,) = frozen[0]
        rows = {
            name: np.empty((image.num_rows, *column.shape[1:]), column.dtype)
            for name, column in image.columns.items()
        }
        image.read(rows)
    assert image.spec == SPEC
    order = np.argsort(rows["key"])
    assert_same_rows(before, {name: column[order] for name, column in rows.items()})
    assert shard.table("t").num_rows == 0


def test_a_scan_goes_on_where_it_was() -> None:
    shard = with_rows(SPEC)
    request = pb.Scan(table="t", fields=["a"], num_rows=20)
    keys = []
    for number in range(100):
        rows, request.start = shard.scan(request)
        keys += rows.keys.tolist()
        if not request.start:
            break
        fields = {f"n{number}": Field()}
        shard.apply(changes.alter(with_fields(shard.table("t").spec, **fields)))
    assert sorted(keys) == rows_of(shard, "t")["key"].tolist()
    assert number > 3


def test_zeros_that_were_never_written_take_no_memory() -> None:
    spec = TableSpec("t", {"n": Field(dtype="int64"), "wide": Field((1024,))})
    shard = Shard()
    shard.apply(changes.create_table(spec))
    keys = np.arange(20_000)
    shard.apply(changes.update("t", keys, {"n": keys}, by=author()))
    shard.apply(changes.alter(with_fields(spec, new=Field((1024,)))))
    memory = shard.table("t").memory
    if memory.is_shared:
        assert (
            os.fstat(memory.descriptor).st_blocks * 512 < 16 << 20
        )  # the wide ones are 80 MB each


# A process that reads in the bank's memory. Rows are written over and over with growing numbers.
READER = """
import sys
import numpy as np
from carls_jax.bank.connect import connect

with connect(sys.argv[1]) as client:
    table, keys = client.table("wide"), np.arange(64)
    num_torn = num_missing = num_older = num_shared = 0
    newest, tables = np.zeros(64, np.int64), {}
    print("ready", flush=True)
    while len(tables) < 8 or newest.min() < 50:
        rows = table.lookup(keys, fields=("x",))
        num_missing += int(not rows.found.all())
        num_torn += int((rows["x"] != rows["x"][:, :1]).any())
        num_older += int((rows["x"][:, 0] < newest).any())
        newest = rows["x"][:, 0]
        tables |= {id(one): one for one in client._shared._tables.values()}
    print(num_torn, num_missing, num_older, flush=True)
"""


def test_another_process_that_reads_the_memory_goes_on_in_the_new_one(tmp_path: Path) -> None:
    keys, spec = np.arange(64), TableSpec("wide", {"x": Field((512,), dtype="int64")})
    with LocalBank() as bank, BankServer(bank, f"unix:{tmp_path}/s") as server:
        table = bank.table(spec)
        if not bank.share("wide")[1].is_shared:
            pytest.skip("this system shares no memory")
        table.update(keys, {"x": np.zeros((64, 512), np.int64)})
        command = [sys.executable, "-c", READER, server.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reading:
            assert reading.stdout is not None
            assert reading.stdout.readline() == "ready\n"
            answers: list[str] = []
            waiting = threading.Thread(target=lambda: answers.append(reading.stdout.readline()))
            waiting.start()
            number = 0
            while waiting.is_alive() and number < 20_000:
                for _ in range(10):
                    number += 1
                    table.update(keys, {"x": np.full((64, 512), number)})
                spec = with_fields(spec, **{f"n{number}": Field()}) if number < 2000 else spec
                table = bank.alter(spec)
            if number >= 20_000:
                reading.kill()  # it stays in the memory that it had first
            waiting.join()
            assert answers == ["0 0 0\n"]
            assert reading.wait(20) == 0
