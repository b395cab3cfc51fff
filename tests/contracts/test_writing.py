"""What updates, pushes, loads and deletions do, asked of every kind of bank."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax import errors
from carls_jax.bank.interface import Bank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table

KEYS = [3, 1, 4, 0, 5, 9, 2, 6]  # on all shards


def test_an_update_creates_rows_and_notes_who_wrote_what_when(nodes: Table) -> None:
    before = time.time()
    applied = nodes.update(KEYS, {"label": KEYS}, step=12, clock="student", source="maker/0")
    after = time.time()

    assert (applied.num_created, applied.num_kept) == (8, 0)
    assert applied.unknown_keys.size == 0
    rows = nodes.lookup(KEYS, metadata=METADATA)
    assert_array_equal(rows["label"], KEYS)
    assert_array_equal(rows.version["label"], [1] * 8)
    assert_array_equal(rows.step["label"], [12] * 8)
    assert rows.source["label"].tolist() == ["maker/0"] * 8
    assert rows.clock["label"].tolist() == ["student"] * 8
    assert (before <= rows.updated_at["label"]).all()
    assert (rows.updated_at["label"] <= after).all()
    # The other fields were created, not written.
    assert_array_equal(rows.version["embedding"], [0] * 8)
    assert_array_equal(rows.step["embedding"], [-1] * 8)
    assert rows.source["embedding"].tolist() == [""] * 8


def test_changes_have_growing_numbers(nodes: Table) -> None:
    first = nodes.update([3], {"label": [1]}).sequence
    assert nodes.update([3], {"label": [1]}).sequence > first


def test_of_a_repeated_key_the_last_value_stays(nodes: Table) -> None:
    assert nodes.update([3, 1, 3, 4], {"label": [1, 2, 3, 4]}).num_created == 3

    rows = nodes.lookup([3, 1, 4], metadata=("version",))

    assert_array_equal(rows["label"], [3, 2, 4])
    assert_array_equal(rows.version["label"], [1, 1, 1])


def test_if_newer_keeps_what_has_a_higher_step(nodes: Table) -> None:
    nodes.update([3, 1], {"label": [1, 1]}, step=10)
    nodes.update([4], {"label": [1]}, step=5)

    applied = nodes.update([3, 4, 9], {"label": [2, 2, 2]}, step=7, if_newer=True)

    assert (applied.num_kept, applied.num_created) == (1, 1)
    assert_array_equal(nodes.lookup([3, 4, 9])["label"], [1, 2, 2])
    tie = nodes.update([3], {"label": [3]}, step=10, if_newer=True)
    assert tie.num_kept == 0
    assert_array_equal(nodes.lookup([3])["label"], [3])


def test_if_newer_compares_steps_of_one_clock_only(nodes: Table) -> None:
    nodes.update([3], {"label": [1]}, step=10, clock="teacher")

    assert nodes.update([3], {"label": [2]}, step=1, if_newer=True).num_kept == 0
    assert_array_equal(nodes.lookup([3])["label"], [2])


def test_if_newer_of_some_fields_keeps_these_alone(nodes: Table) -> None:
    nodes.update(KEYS, {"label": [1] * 8, "confidence": [1] * 8}, step=10)

    values = {"label": [2] * 8, "confidence": [2] * 8}
    assert nodes.update(KEYS, values, step=7, if_newer=("label",)).num_kept == 8

    rows = nodes.lookup(KEYS)
    assert_array_equal(rows["label"], [1] * 8)
    assert_array_equal(rows["confidence"], [2] * 8)
    for wrong in ("label", ("embedding",)):
        with pytest.raises(errors.InvalidInputError, match="if_newer="):
            nodes.update(KEYS, values, if_newer=wrong)


def test_an_update_may_blend(nodes: Table) -> None:
    nodes.update(KEYS[:4], {"confidence": [8] * 4}, step=1)

    applied = nodes.update(KEYS, {"confidence": [4] * 8}, step=2, blend=0.75)

    assert applied.num_created == 4
    rows = nodes.lookup(KEYS, metadata=("step", "version"))
    assert_array_equal(rows["confidence"], [7] * 4 + [4] * 4)
    assert_array_equal(rows.version["confidence"], [2] * 4 + [1] * 4)
    assert_array_equal(rows.step["confidence"], [2] * 8)
    with pytest.raises(errors.DtypeError, match=r"blend=0\.5: field 'label'"):
        nodes.update(KEYS, {"label": [1] * 8}, blend=0.5)
    with pytest.raises(errors.InvalidInputError, match=r"blend=1\.0"):
        nodes.update(KEYS, {"confidence": [1] * 8}, blend=1.0)


def test_fields_of_a_group_are_written_together(bank: Bank) -> None:
    fields = {name: Field((), dtype="int32", group="both") for name in ("a", "b")}
    table = bank.table(TableSpec("grouped", fields=fields))
    table.update([3, 1], {"a": [1, 2], "b": [3, 4]}, step=6)

    rows = table.lookup([3, 1], metadata=("version", "step"))
    assert_array_equal(rows.version["a"], rows.version["b"])
    assert_array_equal(rows.step["a"], [6, 6])
    with pytest.raises(errors.InvalidInputError, match="b is missing"):
        table.update([3], {"a": [9]})


def test_a_push_applies_the_optimizer(nodes: Table) -> None:
    gradients = np.array([[1, 2], [3, 4]], np.float32)
    applied = nodes.push([3, 1], {"embedding": gradients}, step=20)

    rows = nodes.lookup([3, 1], metadata=("step", "version", "source"))
    assert applied.num_created == 2
    assert_array_equal(rows["embedding"], [[7.5, 7], [6.5, 6]])  # 8 - 0.5 gradient
    assert_array_equal(rows.step["embedding"], [20, 20])
    assert_array_equal(rows.version["embedding"], [1, 1])
    assert rows.source["embedding"].tolist() == ["me", "me"]


@pytest.mark.parametrize(("combine", "expected"), [("sum", 5.0), ("mean", 6.5)])
def test_gradients_of_a_repeated_key_are_combined(
    nodes: Table, combine: Any, expected: float
) -> None:
    gradients = np.array([[2, 2], [1, 1], [4, 4]], np.float32)
    nodes.push([3, 1, 3], {"embedding": gradients}, combine=combine)

    rows = nodes.lookup([3, 1])
    assert_array_equal(rows["embedding"], [[expected] * 2, [7.5, 7.5]])


def test_a_push_reports_unknown_keys_and_updates_the_others(nodes: Table) -> None:
    nodes.lookup([3], create=True)

    applied = nodes.push([9, 3, 1, 9], {"embedding": np.ones((4, 2))}, create=False)

    assert_array_equal(applied.unknown_keys, [1, 9], strict=True)
    assert applied.num_created == 0
    rows = nodes.lookup([3, 1, 9])
    assert_array_equal(rows.found, [True, False, False])
    assert_array_equal(rows["embedding"][0], [7.5, 7.5])


def test_the_state_of_an_optimizer_is_kept_per_row(bank: Bank) -> None:
    adagrad = optimizer("adagrad", learning_rate=1.0, initial_accumulator_value=0.0)
    table = bank.table(TableSpec("t", fields={"x": Field((1,), optimizer=adagrad)}))

    table.push([3, 1], {"x": [[3.0], [4.0]]})
    table.push([3], {"x": [[4.0]]})

    # 3: -3/√9 - 4/√(9+16) = -1.8; 1: -4/√16 = -1.
    np.testing.assert_allclose(table.lookup([3, 1])["x"], [[-1.8], [-1.0]], rtol=1e-6)


def test_deleted_rows_are_gone(nodes: Table) -> None:
    nodes.update(KEYS, {"label": KEYS})

    assert nodes.delete([3, 1, 3, 77]) == 2
    assert nodes.delete([3]) == 0
    assert_array_equal(nodes.lookup([3, 4, 1]).found, [False, True, False])
    assert len(nodes) == 6
    # Created again, a row has its initial values.
    assert_array_equal(nodes.lookup([3], create=True)["label"], [0])


def test_load_writes_in_blocks(nodes: Table) -> None:
    keys = np.arange(70_000)

    assert nodes.load(keys, {"label": keys * 2, "confidence": keys / 2}) == 70_000
    assert nodes.load([3], {"label": [0]}) == 0
    columns = nodes.to_numpy(fields=("label", "confidence"))
    assert_array_equal(columns["keys"], keys)
    assert_array_equal(columns["label"][4:], keys[4:] * 2)
    assert_array_equal(columns["confidence"], (keys / 2).astype(np.float32))
