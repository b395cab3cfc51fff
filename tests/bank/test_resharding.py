"""Tests of `reshard`: onto another number of shards everything comes over, or nothing is left."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import LocalBank
from carls_jax.bank.resharding import reshard
from carls_jax.bank.root import kept_identity
from carls_jax.bank.rows import METADATA
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import (
    BankError,
    BankFullError,
    BankIdentityError,
    InvalidInputError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
)
from carls_jax.keys import shard_of
from tests.bank.stored_rows import (
    EMBEDDINGS,
    KEYS,
    LABELS,
    SOURCES,
    VOTES,
    fill,
    open_bank,
    rows_on_disk,
)

COUNTS = (1, 2, 3, 4)
NODES = carls.TableSpec("nodes", {"score": carls.Field((2,))}, max_rows=40)


def roots_in(directory: Path, count: int) -> list[Path]:
    return [directory / str(index) for index in range(count)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Gives the directories of banks of 1, 2, 3 and 4 shards, each with rows of every kind."""
    found = {}
    for count in COUNTS:
        found[count] = roots_in(tmp_path_factory.mktemp(f"of{count}"), count)
        with open_bank(found[count]) as bank:
            fill(bank)
    return found


@pytest.mark.parametrize("new", COUNTS)
@pytest.mark.parametrize("old", COUNTS)
def test_every_column_comes_over_bit_for_bit(
    filled: dict[int, list[Path]], tmp_path: Path, old: int, new: int
) -> None:
    roots = roots_in(tmp_path, new)
    written = reshard(filled[old], roots, snapshot="full")
    before, after = rows_on_disk(filled[old]), rows_on_disk(roots)
    assert sorted(after) == ["empty", "graph/embeddings", "labels", "votes"]
    assert after == before
    assert [len(after[name]) for name in sorted(after)] == [0, 35, 39, 69]
    assert any(
        np.frombuffer(row["pending/waiting/count"], np.int32)[0]
        for row in before["graph/embeddings"].values()
    )

    stored = StoredBank(*roots)
    assert stored.snapshots() == [written] == StoredBank(*filled[old]).snapshots()
    for index, store in enumerate(stored.stores):
        for table in store.read(written).tables:
            for block in table.blocks():
                assert (shard_of(block["key"], new) == index).all()


@pytest.mark.parametrize(("old", "new"), [(1, 3), (4, 2), (3, 4)])
def test_servers_on_the_new_directories_go_on_as_the_old_ones_would(
    filled: dict[int, list[Path]], tmp_path: Path, old: int, new: int
) -> None:
    with carls.open_snapshot(*filled[old], snapshot="full") as bank:
        expected = continued(bank)
    reshard(filled[old], roots_in(tmp_path, new), snapshot="full")
    with open_bank(roots_in(tmp_path, new)) as bank:
        assert bank.identity.num_shards == new
        assert bank.stats().clocks["main"] == 77
        assert continued(bank) == expected
        bank.snapshot("later")
        bank.restore("full")


def continued(bank: carls.Bank) -> list[bytes]:
    """Changes rows further, and returns what is found then."""
    bank.table(EMBEDDINGS).push(KEYS, {"dense": np.ones((39, 3))}, step=80, source="trainer")
    rows = bank.table(EMBEDDINGS).lookup(KEYS, metadata=METADATA)
    votes = bank.table(VOTES).lookup(KEYS, sources=SOURCES)
    labels = bank.table(LABELS).lookup([f"node {key}" for key in KEYS])
    arrays = [rows[name] for name in EMBEDDINGS.fields]
    arrays += [rows.version["dense"], rows.step["small"], rows.source["half"].astype(str)]
    arrays += [votes["vote"], votes["belief"], labels["label"]]
    history = bank.table(EMBEDDINGS).history(KEYS, "small")
    told = repr(
        [[(one.version, one.step, one.source, one.clock) for one in key] for key in history]
    )
    return [array.tobytes() for array in arrays] + [told.encode()]


def test_many_blocks_are_cut_and_joined_rightly(
    filled: dict[int, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = roots_in(tmp_path / "first", 3), roots_in(tmp_path / "second", 4)
    for old, new, group_bytes in ((filled[2], first, 500), (first, second, 900)):
        options = SnapshotStore.__init__.__kwdefaults__
        monkeypatch.setitem(options, "group_bytes", group_bytes)
        reshard(old, new, snapshot="full")
    stored = StoredBank(*first)
    tables = stored.stores[0].read(stored.find("full")).tables
    assert max(len(list(table.blocks())) for table in tables) > 3
    assert rows_on_disk(second) == rows_on_disk(first) == rows_on_disk(filled[2])


def test_old_directories_are_only_read_and_may_be_in_use(tmp_path: Path) -> None:
    roots = roots_in(tmp_path, 2)
    with open_bank(roots) as bank:
        fill(bank)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        reshard(roots, [tmp_path / "new"], snapshot="full")
        after = {path: path.stat().st_mtime_ns for root in roots for path in root.rglob("*")}
        assert after.items() <= before.items()


@pytest.fixture
def nodes(tmp_path: Path) -> list[Path]:
    """Gives the directories of a bank of two shards with a table that holds 40 rows a shard."""
    roots = roots_in(tmp_path / "old", 2)
    with open_bank(roots) as bank:
        bank.table(NODES).update(np.arange(50), {"score": np.ones((50, 2))})
        bank.snapshot("full")
    return roots


def assert_nothing_is_left(directory: Path) -> None:
    assert not directory.exists() or not list(directory.rglob("*"))


def test_more_rows_than_a_shard_may_hold_are_refused(nodes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BankFullError, match=r"'nodes' would have 50 rows on one shard, .* 40"):
        reshard(nodes, [tmp_path / "new" / "0"], snapshot="full")
    assert_nothing_is_left(tmp_path / "new" / "0")


def test_a_damaged_snapshot_leaves_nothing(nodes: list[Path], tmp_path: Path) -> None:
    for path in (nodes[1] / "snapshots").rglob("arrays/d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    (tmp_path / "new" / "1").mkdir(parents=True)
    with pytest.raises(SnapshotCorruptError, match="column 'key' of table 'nodes'"):
        reshard(nodes, roots_in(tmp_path / "new", 3), snapshot="full")
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["1"]
    assert_nothing_is_left(tmp_path / "new" / "1")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with LocalBank(tmp_path / "old") as bank:
        table = bank.table(carls.TableSpec("nodes", {"score": carls.Field((64,))}))
        table.update(np.arange(4000), {"score": np.ones((4000, 64))})
        bank.snapshot("full")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(BankError, match="cannot be written"):
            reshard([tmp_path / "old"], roots_in(tmp_path / "new", 2), snapshot="full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_nothing_is_left(tmp_path / "new")


KILLED = """
import os, signal, sys
from pathlib import Path
from carls_jax.bank.resharding import reshard
from carls_jax.bank import snapshots

kept = snapshots.SnapshotStore.write
def write(store, *args, **options):
    identity = kept(store, *args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
snapshots.SnapshotStore.write = write
reshard(sys.argv[1].split(","), sys.argv[2].split(","), snapshot="full")
"""


def test_no_bank_starts_from_what_a_kill_has_left(nodes: list[Path], tmp_path: Path) -> None:
    new = roots_in(tmp_path / "new", 3)
    command = [sys.executable, "-c", KILLED, ",".join(map(str, nodes)), ",".join(map(str, new))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list((new[0] / "snapshots").rglob("manifest.json"))
    assert not any(map(kept_identity, new))
    with pytest.raises(BankIdentityError, match=r"bank\.json, which says of which bank, is miss"):
        open_bank(new)
    with pytest.raises(InvalidInputError, match="0 is not empty"):
        reshard(nodes, new, snapshot="full")


def test_wrong_directories_are_refused_before_anything_is_made(
    nodes: list[Path], tmp_path: Path
) -> None:
    new = tmp_path / "new"
    (tmp_path / "file").touch()
    for old, wanted, error, match in (
        (nodes, [], InvalidInputError, "give different directories"),
        (nodes, [new, new], InvalidInputError, "give different directories"),
        (nodes, [nodes[0]], InvalidInputError, "0 is not empty: give"),
        (nodes, [tmp_path / "file"], InvalidInputError, "is a file"),
        (nodes[:1], [new], BankIdentityError, "all shards of one bank"),
        ([new], [new / "a"], InvalidInputError, "new is no bank's directory"),
    ):
        with pytest.raises(error, match=match):
            reshard(old, wanted, snapshot="full")
    with pytest.raises(SnapshotNotFoundError, match="no complete snapshot 'half'; there are: full"):
        reshard(nodes, [new], snapshot="half")
    assert_nothing_is_left(new)


def test_rows_on_a_shard_that_is_not_theirs_are_corrupt(nodes: list[Path], tmp_path: Path) -> None:
    with LocalBank(tmp_path / "odd", bank_id="b" * 32, num_shards=2) as bank:
        bank.table(NODES).update(np.arange(40), {"score": np.ones((40, 2))})
        uuid = StoredBank(*nodes).find().uuid
        bank.snapshot("full", uuid=uuid)
    with pytest.raises(SnapshotCorruptError, match="shard 0 of 2 holds rows of table 'nodes'"):
        reshard([tmp_path / "odd", nodes[1]], [tmp_path / "new"], snapshot="full")
    assert_nothing_is_left(tmp_path / "new")
