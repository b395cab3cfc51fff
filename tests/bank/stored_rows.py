"""A small bank with rows of every kind, and what lies of them on disk, for bitwise comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import carls_jax as carls
from carls_jax.bank import LocalBank, ShardedBank, SnapshotIdentity
from carls_jax.bank.layout import names_in
from carls_jax.bank.stored_bank import StoredBank

EMBEDDINGS = carls.TableSpec(
    "graph/embeddings",
    {
        "dense": carls.Field((3,), optimizer=carls.optimizer("adam", learning_rate=0.1)),
        "half": carls.Field(
            (4,),
            compact="bfloat16",
            optimizer=carls.optimizer("adagrad", learning_rate=0.1),
            init=carls.init.normal(0.5),
        ),
        "small": carls.Field((4,), compact="int8", history=2),
        "waiting": carls.Field(
            (2,),
            optimizer=carls.optimizer("sgd", learning_rate=0.5),
            lazy=carls.Lazy(max_wait_s=3600.0),
        ),
    },
)
LABELS = carls.TableSpec("labels", {"label": carls.Field(dtype="int64", history=3)}, keys="str")
VOTES = carls.TableSpec(
    "votes",
    {"vote": carls.Field(dtype="int8"), "belief": carls.Field((2,), dtype="float64")},
    per_source=True,
)
EMPTY = carls.TableSpec("empty", {"x": carls.Field()})

KEYS = np.arange(-9, 30)
SOURCES = ("maker/0", "maker/1", "trainer")


def open_bank(roots: Sequence[Path], **options: Any) -> ShardedBank:
    """Opens a bank that has a shard in each directory."""
    shards = [
        LocalBank(root, bank_id="b" * 32, shard_index=index, num_shards=len(roots), **options)
        for index, root in enumerate(roots)
    ]
    return ShardedBank(shards, source="trainer")


def fill(bank: carls.Bank) -> SnapshotIdentity:
    """Writes rows of all kinds; shards learn sources and clocks in orders of their own."""
    random = np.random.default_rng(0)
    embeddings, labels = bank.table(EMBEDDINGS), bank.table(LABELS)
    votes = bank.table(VOTES)
    bank.table(EMPTY)
    for step in range(4):
        keys = random.permutation(KEYS)[:25]
        who = SOURCES[step % 3]
        gradients = {
            name: random.normal(size=(25, width))
            for name, width in (("dense", 3), ("half", 4), ("waiting", 2))
        }
        embeddings.push(keys, gradients, step=step, source=who, create=True)
        embeddings.update(
            keys[:12],
            {"small": random.normal(size=(12, 4))},
            step=step,
            source=who,
            clock=f"c{step}",
        )
        labels.update([f"node {key}" for key in keys], {"label": keys}, step=step, source=who)
        for source in random.permutation(SOURCES):
            some = random.permutation(keys)[:8]
            values = {"vote": some % 3, "belief": random.normal(size=(8, 2))}
            votes.update(some, values, step=step, source=str(source))
    embeddings.update([KEYS[0]], {"dense": [[-0.0, 1e-45, 3.4e38]]})
    embeddings.delete(KEYS[5:9])
    bank.advance(77)
    return bank.snapshot("full")


def rows_on_disk(roots: Sequence[Path], snapshot: str = "full") -> dict[str, dict[Any, Any]]:
    """Returns, by table and (key, author), the bytes of each column; numbers of names as names."""
    stored = StoredBank(*roots)
    found: dict[str, dict[Any, Any]] = {}
    for shard in stored.read(stored.find(snapshot)):
        for table in shard.tables:
            rows = found.setdefault(table.spec.name, {})
            for block in table.blocks():
                _add_rows(rows, block, table.names)
    return found


def _add_rows(rows: dict[Any, Any], block: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    for place, key in enumerate(block["key"].tolist()):
        row = {}
        for column, values in block.items():
            value, kind = values[place], names_in(column)
            if kind is None:
                row[column] = value.tobytes()
            else:
                row[column] = tuple(names[kind][number] for number in np.ravel(value))
        author = row.get("author", ("",))
        assert (key, author) not in rows
        rows[key, author] = row
