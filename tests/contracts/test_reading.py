"""What a lookup, a scan and a history answer, asked of every kind of bank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax import errors
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.initializers import uniform
from carls_jax.bank.interface import Bank
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import DTYPES, Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.keys import string_keys

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


def test_a_lookup_of_unknown_keys_finds_nothing_and_gives_zeros(nodes: Table) -> None:
    rows = nodes.lookup(KEYS, metadata=METADATA)

    assert_array_equal(rows.keys, KEYS)
    assert not rows.found.any()
    assert not rows.present["embedding"].any()
    assert_array_equal(rows["embedding"], np.zeros((8, 2), np.float32), strict=True)
    assert_array_equal(rows["label"], np.zeros(8, np.int64), strict=True)
    assert_array_equal(rows.version["label"], [0] * 8)
    assert_array_equal(rows.step["label"], [-1] * 8)
    assert_array_equal(rows.updated_at["label"], [0.0] * 8)
    assert rows.source["label"].tolist() == [""] * 8
    assert rows.clock["label"].tolist() == [""] * 8
    assert rows.num_created == 0
    assert len(nodes) == 0


def test_a_lookup_creates_rows_when_asked(nodes: Table) -> None:
    rows = nodes.lookup(KEYS, create=True)

    assert rows.num_created == 8
    assert rows.found.all()
    assert_array_equal(rows["embedding"], np.full((8, 2), 8.0, np.float32))
    assert_array_equal(rows.step["embedding"], [-1] * 8)
    assert nodes.lookup(KEYS, create=True).num_created == 0
    assert len(nodes) == 8


def test_initial_values_depend_on_the_key_alone(bank: Bank) -> None:
    spec = TableSpec("random", fields={"x": Field((3,), init=uniform(-1.0, 1.0))}, seed=7)
    rows = bank.table(spec).lookup(KEYS, create=True)

    expected = spec.fields["x"].init.rows(
        np.array(KEYS), seed=7, field="x", shape=(3,), dtype=np.dtype(np.float32)
    )
    assert_array_equal(rows["x"], expected, strict=True)


def test_a_lookup_moves_only_the_fields_it_names(nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS, "confidence": np.ones(8)})

    rows = nodes.lookup(KEYS, fields=("label",), metadata=())

    assert list(rows.values) == ["label"]
    with pytest.raises(errors.FieldNotFoundError, match="did not ask for field 'confidence'"):
        rows["confidence"]
    with pytest.raises(errors.InvalidInputError, match=r"metadata=\('step',\)"):
        rows.step["label"]


def test_a_lookup_answers_a_repeated_key_each_time(nodes: Table) -> None:
    nodes.update([3, 1], {"label": [30, 10]})

    rows = nodes.lookup([3, 1, 3, 3], fields=("label",))

    assert_array_equal(rows["label"], [30, 10, 30, 30])


def test_padding_is_not_found_and_never_written(nodes: Table) -> None:
    assert nodes.update([-1, 3, -1], {"label": [7, 8, 9]}).num_created == 1
    assert nodes.push([-1, -1], {"embedding": np.ones((2, 2))}).num_created == 0
    assert nodes.delete([-1]) == 0

    rows = nodes.lookup(np.array([-1, 3], np.int32), create=True, metadata=METADATA)

    assert_array_equal(rows.found, [False, True])
    assert_array_equal(rows["label"], [0, 8])
    assert_array_equal(rows["embedding"], [[0, 0], [8, 8]])
    assert_array_equal(rows.version["label"], [0, 1])
    assert_array_equal(rows.step["label"], [-1, -1])
    assert rows.source["label"].tolist() == ["", "me"]
    assert rows.num_created == 0
    assert len(nodes) == 1


def test_a_lookup_of_padding_alone_is_answered(nodes: Table) -> None:
    rows = nodes.lookup([-1, -1], create=True)

    assert_array_equal(rows.found, [False, False])
    assert_array_equal(rows["embedding"], np.zeros((2, 2)))


def test_extreme_keys_are_ordinary_keys(nodes: Table) -> None:
    keys = [0, -2, 2**63 - 1, -(2**63), 2**40 + 1]
    nodes.update(keys, {"label": range(5)})

    assert_array_equal(nodes.lookup(keys, fields=("label",))["label"], range(5))


def test_rows_are_copies_of_the_callers_own(nodes: Table) -> None:
    keys, labels = np.array(KEYS), np.arange(8)
    nodes.update(keys, {"label": labels})
    labels[:] = 99

    rows = nodes.lookup(keys, fields=("label", "embedding"))
    rows["label"][:] = 77
    rows["embedding"][:] = 77

    assert_array_equal(nodes.lookup(KEYS, fields=("label",))["label"], range(8))


def test_string_keys_are_held_as_fingerprints(bank: Bank, specs: SimpleNamespace) -> None:
    words = bank.table(specs.words)
    words.update(["cat", "dog", ""], {"count": [1, 2, 3]})

    assert_array_equal(words.lookup(["", "dog", "eel"])["count"], [3, 2, 0])
    columns = words.to_numpy()
    assert_array_equal(columns["keys"], np.sort(string_keys(["cat", "dog", ""])))
    assert_array_equal(words.lookup(columns["keys"])["count"], columns["count"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_keeps_its_extremes(bank: Bank, dtype: str) -> None:
    table = bank.table(TableSpec("t", fields={"x": Field((), dtype=dtype)}))
    if dtype == "bool":
        extremes = np.array([True, False])
    else:
        info: Any = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
        extremes = np.array([info.min, info.max], dtype)
    table.update([3, 1], {"x": extremes})

    assert_array_equal(table.lookup([3, 1])["x"], extremes, strict=True)


def test_field_names_may_be_those_of_the_wire_and_hold_slashes(bank: Bank) -> None:
    names = ("keys", "found", "value", "step/x", "a/b")
    spec = TableSpec("odd", fields={name: Field((), dtype="int32") for name in names})
    table = bank.table(spec)
    table.update(KEYS, {name: np.full(8, number) for number, name in enumerate(names)}, step=4)

    rows = table.lookup(KEYS, metadata=("step", "version"))

    assert list(rows.values) == list(names)
    for number, name in enumerate(names):
        assert_array_equal(rows[name], [number] * 8)
        assert_array_equal(rows.step[name], [4] * 8)


def test_arrays_of_many_megabytes_pass(bank: Bank) -> None:
    spec = TableSpec("large", fields={"x": Field((128,)), "flag": Field((), dtype="bool")})
    table = bank.table(spec)
    keys = np.arange(20_001)
    values = np.random.default_rng(0).standard_normal((keys.size, 128), np.float32)
    table.update(keys, {"x": values, "flag": keys % 3 == 0})

    for _ in range(2):  # the second time the client knows how large the answer will be
        rows = table.lookup(keys)
        assert_array_equal(rows["x"], values, strict=True)
        assert_array_equal(rows["flag"], keys % 3 == 0, strict=True)


@pytest.mark.parametrize("block_rows", [1, 3, 8, 1000])
def test_a_scan_gives_each_row_once(nodes: Table, block_rows: int) -> None:
    nodes.update(KEYS, {"label": np.array(KEYS) * 10}, step=2)
    nodes.delete([4])

    blocks = list(nodes.scan(fields=("label",), block_rows=block_rows))

    keys = np.concatenate([rows.keys for rows in blocks])
    assert sorted(keys.tolist()) == [0, 1, 2, 3, 5, 6, 9]
    assert_array_equal(np.concatenate([rows["label"] for rows in blocks]), keys * 10)
    assert all(rows.found.all() and (rows.step["label"] == 2).all() for rows in blocks)
    assert max(rows.keys.size for rows in blocks) <= block_rows


def test_to_numpy_is_ordered_by_key(nodes: Table) -> None:
    nodes.update(KEYS, {"label": np.array(KEYS) * 10})

    columns = nodes.to_numpy()

    assert list(columns) == ["keys", "embedding", "label", "confidence"]
    assert_array_equal(columns["keys"], [0, 1, 2, 3, 4, 5, 6, 9], strict=True)
    assert_array_equal(columns["label"], [0, 10, 20, 30, 40, 50, 60, 90])
    assert_array_equal(columns["embedding"], np.full((8, 2), 8.0, np.float32), strict=True)


def test_an_empty_table_scans_to_nothing(nodes: Table) -> None:
    assert list(nodes.scan()) == []
    columns = nodes.to_numpy()
    assert columns["keys"].shape == (0,)
    assert columns["embedding"].shape == (0, 2)
    assert columns["label"].dtype == np.int64


def test_history_gives_the_last_writes_newest_first(bank: Bank, specs: SimpleNamespace) -> None:
    traces = bank.table(specs.traces)
    for step in (1, 2, 3):
        traces.update(KEYS, {"loss": np.array(KEYS) + step / 10}, step=step, source=f"job/{step}")
    traces.update([1], {"loss": [0.5]}, step=4, clock="other")

    three, unknown, one, padding = traces.history([3, 77, 1, -1], "loss")

    assert [(w.version, w.step, w.source, w.clock) for w in three] == [
        (3, 3, "job/3", "main"),
        (2, 2, "job/2", "main"),
    ]
    assert [float(w.value) for w in three] == [3.3, 3.2]
    assert [(w.version, w.step, w.source, w.clock) for w in one] == [
        (4, 4, "me", "other"),
        (3, 3, "job/3", "main"),
    ]
    assert all(w.updated_at > 0 for w in three + one)
    assert (unknown, padding) == ([], [])


def test_a_row_that_was_never_written_has_no_history(bank: Bank, specs: SimpleNamespace) -> None:
    traces = bank.table(specs.traces)
    traces.lookup([3, 1], create=True)

    assert traces.history([3, 1, 4], "loss") == [[], [], []]


def test_history_must_have_been_declared(nodes: Table) -> None:
    with pytest.raises(errors.InvalidInputError, match="declare it with"):
        nodes.history([3], "label")
    with pytest.raises(errors.InvalidInputError, match="keeps no history"):
        nodes.bank.history(pb.History(table="nodes", field="label"), np.array([3]))
