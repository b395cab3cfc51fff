"""Tests of `export`: what NumPy reads is what the bank held, and an older file outlives a kill."""

from __future__ import annotations

import fcntl
import json
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import LocalBank
from carls_jax.bank.rows import METADATA
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import (
    BankError,
    InvalidInputError,
    SnapshotCorruptError,
    TableNotFoundError,
)
from carls_jax.snapshots.exporting import export
from carls_jax.snapshots.tables import Content, snapshot_content
from tests.bank.stored_rows import EMBEDDINGS, SOURCES, VOTES, fill, open_bank

NODES = carls.TableSpec("nodes", {"score": carls.Field((64,))})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives the directory of a bank of three shards with rows of every kind."""
    directory = tmp_path_factory.mktemp("bank")
    with open_bank([directory / str(index) for index in range(3)]) as bank:
        fill(bank)
    return directory


def content_of(root: Path, snapshot: str | None = None) -> Content:
    return snapshot_content(StoredBank(root), snapshot)


def test_numpy_reads_what_lookups_answer(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    assert export(content_of(root), path) == path.stat().st_size
    with np.load(path, allow_pickle=False) as data, carls.open_snapshot(root) as bank:
        table = "graph%2Fembeddings"
        rows = bank.table(EMBEDDINGS).lookup(data[f"{table}/key"], metadata=METADATA)
        assert rows.found.all()
        assert rows.found.size == 35
        for name in ("dense", "half", "small"):
            np.testing.assert_array_equal(data[f"{table}/value/{name}"], rows[name])
            for kind in ("version", "step", "updated_at"):
                np.testing.assert_array_equal(
                    data[f"{table}/{kind}/{name}"], rows.metadata[kind][name]
                )
            sources = data[f"{table}/sources"][data[f"{table}/source/{name}"]]
            np.testing.assert_array_equal(sources, rows.source[name].astype(str))
            clocks = data[f"{table}/clocks"][data[f"{table}/clock/{name}"]]
            written = rows.version[name] > 0
            np.testing.assert_array_equal(clocks[written], rows.clock[name].astype(str)[written])
        assert data[f"{table}/history/small/value"].shape == (35, 2, 4)
        assert data[f"{table}/history/small/value"].dtype == np.float32
        assert (data[f"{table}/pending/waiting/count"] > 0).any()
        votes = bank.table(VOTES).lookup(data["votes/key"], sources=SOURCES)
        author = [SOURCES.index(name) for name in data["votes/sources"][data["votes/author"]]]
        here = np.arange(len(author))
        np.testing.assert_array_equal(data["votes/value/vote"], votes["vote"][here, author])
        spec = carls.TableSpec.from_dict(json.loads(str(data[f"{table}/spec"])))
        assert spec.to_dict() == EMBEDDINGS.to_dict()
        about = json.loads(str(data["snapshot"]))
        assert (about["identity"]["label"], about["clocks"]["main"]) == ("full", 77)
        assert data["empty/key"].shape == (0,)
        assert data["empty/value/x"].shape == (0,)


def test_only_tables_that_were_chosen_are_written(root: Path, tmp_path: Path) -> None:
    export(content_of(root), tmp_path / "bank.npz", tables=["votes", "votes"])
    with np.load(tmp_path / "bank.npz") as data:
        assert {name.partition("/")[0] for name in data} == {"snapshot", "votes"}
    with pytest.raises(TableNotFoundError, match=r"no table 'vote' in .*@full; it has empty, "):
        export(content_of(root), tmp_path / "bank.npz", tables=["vote"])
    with pytest.raises(InvalidInputError, match=r"bank\.zip: give a name that ends with \.npz"):
        export(content_of(root), tmp_path / "bank.zip")
    assert [one.name for one in tmp_path.iterdir()] == ["bank.npz"]


def test_blocks_follow_one_another_across_a_limit_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 10 kB in place of 2 GiB, all that lies beyond it needs the larger form."""
    monkeypatch.setitem(SnapshotStore.__init__.__kwdefaults__, "group_bytes", 4096)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10_000)
    values = np.random.default_rng(0).random((500, 64), np.float32)
    with LocalBank(tmp_path / "bank") as bank:
        bank.table(NODES).update(np.arange(500), {"score": values})
        bank.snapshot("a")
    export(content_of(tmp_path / "bank"), tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
        extras = [one.extra[:2] for one in archive.infolist() if one.header_offset > 10_000]
        assert extras
        assert set(extras) == {b"\x01\x00"}
    with np.load(tmp_path / "a.npz") as data:
        np.testing.assert_array_equal(
            data["nodes/value/score"][np.argsort(data["nodes/key"])], values
        )


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """Gives the directory of a bank with 1 MB of rows, and beside it an older export."""
    with LocalBank(tmp_path / "bank") as bank:
        bank.table(NODES).update(np.arange(4000), {"score": np.ones((4000, 64))})
        bank.snapshot("a")
    (tmp_path / "old.npz").write_bytes(b"older")
    return tmp_path / "bank"


def test_a_full_disk_leaves_the_older_file(nodes: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(BankError, match=r"old\.npz cannot be written: .*File too large"):
            export(content_of(nodes), tmp_path / "old.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bank", "old.npz"]
    assert (tmp_path / "old.npz").read_bytes() == b"older"


def test_a_damaged_snapshot_leaves_the_older_file(nodes: Path, tmp_path: Path) -> None:
    content = content_of(nodes)
    for path in (nodes / "snapshots").rglob("arrays/d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(SnapshotCorruptError):
        export(content, tmp_path / "old.npz")
    assert (tmp_path / "old.npz").read_bytes() == b"older"


KILLED = """
import os, signal, sys
from pathlib import Path
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.snapshots import exporting, tables

def blocks(table, names):
    if "value/score" in names:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(table, names)

kept, tables.DecodedTable.blocks = tables.DecodedTable.blocks, blocks
exporting.export(tables.snapshot_content(StoredBank(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_kill_half_way_leaves_the_older_file_and_the_next_export_no_rest(
    nodes: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(nodes), str(tmp_path / "old.npz")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "old.npz").read_bytes() == b"older"
    assert (tmp_path / ".old.npz.partial").stat().st_size > 0
    export(content_of(nodes), tmp_path / "old.npz")
    with np.load(tmp_path / "old.npz") as data:
        assert data["nodes/key"].size == 4000
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bank", "old.npz"]


def test_two_exports_do_not_write_one_file(nodes: Path, tmp_path: Path) -> None:
    with (tmp_path / ".old.npz.partial").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InvalidInputError, match=r"old\.npz is being written by another export"):
            export(content_of(nodes), tmp_path / "old.npz")
    assert (tmp_path / "old.npz").read_bytes() == b"older"
