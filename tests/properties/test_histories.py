"""The same changes, applied in the same order, give the same bank, bit for bit.

Changes are kept as bytes, as a journal would keep them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author
from carls_jax.bank.initializers import normal, uniform
from carls_jax.bank.interface import SnapshotIdentity
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.schedules import schedule
from carls_jax.bank.shard import Shard
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import BankFullError, CarlsError, InvalidInputError, SpecMismatchError

RATE = schedule("cosine_decay", init_value=0.3, decay_steps=9)
ADAM = optimizer("adam", learning_rate=RATE, clip_row_norm=2.0)
ADAGRAD = optimizer("adagrad", learning_rate=0.1)
FIELDS = {
    "w": Field((3,), init=uniform(-1.0, 1.0), optimizer=ADAM, history=2),
    "a": Field((2,), init=normal(0.1), optimizer=ADAGRAD, dtype="float64", group="g"),
    "b": Field(optimizer=ADAGRAD, group="g"),
    "n": Field(dtype="int32", history=3),
    "l": Field((2,), optimizer=ADAM, history=2, lazy=Lazy(clip_row_norm=9.0, reject_above=2.0)),
}
SPECS = [
    TableSpec("plain", FIELDS, max_rows=12),
    TableSpec("said", FIELDS, per_source=True, max_rows=20),
]
FIRST = [changes.create_table(spec) for spec in SPECS]
ADDED = {
    "m": Field((2,), init=normal(1.0), optimizer=ADAGRAD, lazy=Lazy()),
    "c": Field((3,), init=uniform(0.0, 1.0), compact="bfloat16", group="h", history=2),
}
# What alters a table: other hyper-parameters, added fields, another number of rows.
OTHERS: list[dict[str, Any]] = [
    {
        "fields": {
            **FIELDS,
            "b": Field(optimizer=optimizer("adagrad", learning_rate=9.0), group="g"),
        }
    },
    {"fields": {**FIELDS, "m": ADDED["m"]}},
    {"fields": {**FIELDS, **ADDED}},
    {"max_rows": 14},
    {"fields": {**FIELDS, **ADDED}, "max_rows": 9},
]

# A header and the arrays, each as dtype, shape and bytes.
Kept = tuple[bytes, dict[str, tuple[str, tuple[int, ...], bytes]]]


def kept(change: Change) -> Kept:
    arrays = {"": change.keys, **change.values}
    return change.header.SerializeToString(deterministic=True), {
        name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()
    }


def read_back(one: Kept) -> Change:
    header, arrays = one
    values = {
        name: np.frombuffer(data, dtype).reshape(shape)
        for name, (dtype, shape, data) in arrays.items()
    }
    return Change(pb.Change.FromString(header), values.pop(""), values)


@st.composite
def any_change(draw: st.DrawFn) -> Change:
    table = draw(st.sampled_from(["plain", "said"]))
    keys = np.array(draw(st.lists(st.integers(-1, 15), min_size=1, max_size=6)), np.int64)
    generator = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    by = author(
        step=draw(st.integers(-1, 9)),
        clock=draw(st.sampled_from(["main", "other"])),
        source=draw(st.sampled_from(["ann", "bob"])),
        updated_at=draw(st.floats(1.0, 9.0)),
    )
    groups = draw(st.sets(st.sampled_from([("w",), ("a", "b"), ("n",), ("l",)]), min_size=1))
    names = [name for group in sorted(groups) for name in group]
    values = {
        name: (generator.standard_normal((keys.size, *FIELDS[name].shape)) * 10).astype(
            FIELDS[name].dtype
        )
        for name in names
    }
    gradients = {name: values[name] for name in names if name != "n"} or {
        "w": np.ones((keys.size, 3), np.float32)
    }
    kinds: dict[str, Any] = {
        "create": lambda: changes.create_rows(table, keys, by=by),
        "update": lambda: changes.update(
            table,
            keys,
            values,
            by=by,
            if_newer=draw(st.sampled_from([False, True, names[:1], names])),
            blend=0.0 if "n" in names else draw(st.sampled_from([0.0, 0.3, 0.9])),
        ),
        "alter": lambda: changes.alter(
            replace(SPECS[table == "said"], **draw(st.sampled_from(OTHERS)))
        ),
        "push": lambda: changes.push(
            table,
            keys,
            gradients,
            by=by,
            combine=draw(st.sampled_from(["sum", "mean"])),
            create=draw(st.booleans()),
        ),
        "delete": lambda: changes.delete(table, keys, by=by),
        "flush": lambda: changes.flush(table, keys, ["l"], by=by),
        "advance": lambda: changes.advance(by=by),
    }
    return kinds[draw(st.sampled_from(list(kinds)))]()


histories = st.lists(any_change(), min_size=1, max_size=25).map(
    lambda more: [kept(change) for change in [*FIRST, *more]]
)


def apply_all(shard: Shard, history: list[Kept]) -> list[str]:
    """Applies changes, of which some are refused, and returns all that was answered."""
    answers = []
    for one in history:
        try:
            answers.append(str(shard.apply(read_back(one))))
        except (BankFullError, SpecMismatchError, InvalidInputError) as error:
            answers.append(repr(error))
    return answers


def state_of(shard: Shard) -> dict[str, Any]:
    """Returns all that a shard keeps, each row's columns as bytes; slots do not count."""
    with shard.frozen() as (images, clocks, sequence, clients):
        state: dict[str, Any] = {"clocks": clocks, "sequence": sequence, "clients": clients}
        for image in images:
            columns = {
                name: np.empty((image.num_rows, *column.shape[1:]), column.dtype)
                for name, column in image.columns.items()
            }
            image.read(columns)
            order = np.lexsort([columns.get("author", columns["key"]), columns["key"]])
            rows = {name: column[order].tobytes() for name, column in columns.items()}
            state[image.spec.name] = (image.spec, image.num_rows, image.names, rows)
    return state


def through_a_snapshot(shard: Shard, directory: str) -> SnapshotContent:
    store = SnapshotStore(Path(directory), bank_id="b")
    identity = SnapshotIdentity("b", "s", "0" * 32)
    with shard.frozen() as (images, clocks, sequence, clients):
        store.write(identity, images, clocks=clocks, sequence=sequence, clients=clients)
    return store.read(identity)


@settings(max_examples=60, deadline=None)
@given(histories)
def test_the_same_changes_give_the_same_bank(history: list[Kept]) -> None:
    first, second = Shard(), Shard()
    assert apply_all(first, history) == apply_all(second, history)
    assert state_of(first) == state_of(second)
    for name, stats in first.stats().tables.items():
        assert stats == second.stats().tables[name]


@settings(max_examples=40, deadline=None)
@given(histories, st.data())
def test_a_snapshot_in_the_middle_makes_no_difference(history: list[Kept], data: Any) -> None:
    middle = data.draw(st.integers(len(FIRST), len(history)))
    straight, restored = Shard(), Shard()
    answers = apply_all(straight, history)

    before = Shard()
    apply_all(before, history[:middle])
    with tempfile.TemporaryDirectory() as directory:
        restored.replaced_by(through_a_snapshot(before, directory))
    assert state_of(restored) == state_of(before)

    assert apply_all(restored, history[middle:]) == answers[middle:]
    assert state_of(restored) == state_of(straight)


@settings(max_examples=40, deadline=None)
@given(histories)
def test_a_change_that_is_refused_leaves_no_trace(history: list[Kept]) -> None:
    """Whatever is refused in between, the bank is as if it had never been asked."""
    refused = [
        changes.update("plain", np.array([1]), {"n": np.array([1.5])}, by=author()),
        changes.push("plain", np.arange(50), {"w": np.ones((50, 3), np.float32)}, by=author()),
        changes.create_rows("said", np.array([3]), by=author()),
        changes.delete("nowhere", np.array([3]), by=author()),
    ]
    plain, disturbed = Shard(), Shard()
    answers = apply_all(plain, history)
    for one, answer in zip(history, answers, strict=True):
        for change in refused:
            try:
                disturbed.apply(change)
            except CarlsError:
                continue
            raise AssertionError(f"{change.kind} was not refused")
        assert apply_all(disturbed, [one]) == [answer]
    assert state_of(disturbed) == state_of(plain)
