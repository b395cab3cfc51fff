"""Tests of `SnapshotStore`: what is read equals what was written, or an error says why not."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank.before_images import Room
from carls_jax.bank.interface import SnapshotIdentity
from carls_jax.bank.snapshots import SnapshotContent, SnapshotStore
from carls_jax.bank.specs import DTYPES, Field, TableSpec
from carls_jax.bank.table_image import TableImage
from carls_jax.errors import (
    BankError,
    BankIdentityError,
    InvalidInputError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
)
from carls_jax.keys import PADDING

BANK = "bank-1"
NAMES = {"sources": ["", "maker/0"], "clocks": ["main"]}


def an_identity(label: str = "step-1", *, created_at: float = 1.0) -> SnapshotIdentity:
    return SnapshotIdentity(BANK, label, uuid4().hex, created_at)


def an_image(
    name: str = "nodes", num_rows: int = 40, *, columns: dict[str, Any] | None = None
) -> TableImage:
    """Makes a table of random numbers whose rows lie in every slot but each third."""
    random = np.random.default_rng(num_rows)
    columns = columns or {
        "key": random.integers(1 << 40, size=4 * num_rows + 8),
        "value/x": random.random((4 * num_rows + 8, 4), np.float32),
    }
    keys = columns["key"]
    slots = np.arange(keys.size)
    slots = slots[slots % 3 != 0][:num_rows]
    columns["key"] = np.full_like(keys, PADDING)
    columns["key"][slots] = keys[slots]
    spec = TableSpec(name, {"x": Field((4,))})
    return TableImage(spec, num_rows, NAMES, columns, lock=threading.Lock(), room=Room())


def rows_in(image: TableImage) -> dict[str, Any]:
    """Returns the rows by column."""
    slots = np.flatnonzero(image.columns["key"] != PADDING)
    return {name: column[slots] for name, column in image.columns.items()}


def a_store(root: Path, **options: Any) -> SnapshotStore:
    return SnapshotStore(root, bank_id=BANK, **options)


def write(store: SnapshotStore, *images: TableImage, **options: Any) -> SnapshotIdentity:
    images = images or (an_image(),)
    return store.write(an_identity(**options), images, clocks={"main": 7}, sequence=9)


def assert_holds(content: SnapshotContent, *images: TableImage) -> None:
    """Compares bytes, so that NaN equals itself and -0.0 does not equal 0.0."""
    assert [table.spec for table in content.tables] == [image.spec for image in images]
    for table, image in zip(content.tables, images, strict=True):
        blocks = list(table.blocks())
        assert sum(block["key"].shape[0] for block in blocks) == image.num_rows
        for name, expected in rows_in(image).items() if blocks else ():
            found = np.concatenate([block[name] for block in blocks])
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()


def files_of(root: Path, identity: SnapshotIdentity) -> Path:
    return root / "snapshots" / "shard-00000" / identity.uuid


def data_files(root: Path, identity: SnapshotIdentity) -> list[Path]:
    return [one for one in (files_of(root, identity) / "arrays" / "d").iterdir() if one.is_file()]


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {"key": np.arange(300)}
    for dtype in (*DTYPES, "uint64"):
        for shape in ((), (3,), (2, 5)):
            columns[f"value/{dtype}/{shape}"] = random.integers(0, 2, (300, *shape)).astype(dtype)
    image = an_image(num_rows=70, columns=columns)
    store = a_store(tmp_path, group_bytes=4096)
    assert_holds(store.read(write(store, image)), image)


@settings(max_examples=15, deadline=None)
@given(
    num_rows=st.integers(0, 40),
    group_bytes=st.sampled_from([100, 500, 1 << 20]),
    width=st.integers(1, 40),
)
def test_any_table_in_any_groups_comes_back(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, group_bytes: int, width: int
) -> None:
    random = np.random.default_rng(width)
    columns = {
        "key": random.integers(1 << 62, size=900),
        "value/x": random.random((900, width)),
        "version/x": random.integers(1 << 30, size=900).astype(np.uint32),
    }
    image = an_image(num_rows=num_rows, columns=columns)
    store = a_store(tmp_path_factory.mktemp("bank"), group_bytes=group_bytes)
    assert_holds(store.read(write(store, image, an_image("other"))), image, an_image("other"))


def test_bits_that_compare_equal_or_not_at_all_come_back(tmp_path: Path) -> None:
    zeros = np.array([0.0, -0.0, np.nan, -np.inf, 5e-324, 0.0])
    image = an_image(num_rows=2, columns={"key": np.arange(6), "value/x": zeros})
    store = a_store(tmp_path)
    assert_holds(store.read(write(store, image)), image)


def test_tables_with_awkward_names_and_without_rows_come_back(tmp_path: Path) -> None:
    images = [
        an_image(name, rows) for name, rows in (("..", 3), ("a", 0), ("a/b", 5), ("a/b/c", 1))
    ]
    store = a_store(tmp_path / "a dir%20with ünusual name")
    assert_holds(store.read(write(store, *images)), *images)


def test_names_with_slashes_do_not_collide(tmp_path: Path) -> None:
    outer = {"key": np.arange(99), "b/key": np.arange(99) + 1}
    images = [an_image("a", 5, columns=outer), an_image("a/b", 6)]
    store = a_store(tmp_path)
    assert_holds(store.read(write(store, *images)), *images)


def test_what_is_no_array_comes_back(tmp_path: Path) -> None:
    written = write(a_store(tmp_path), an_image("a", 3), an_image("b", 4))
    content = a_store(tmp_path).read(written)
    assert content.identity == written
    assert (content.identity.num_rows, content.identity.created_at) == (7, 1.0)
    assert (content.clocks, content.sequence, content.shard_index) == ({"main": 7}, 9, 0)
    assert [table.num_rows for table in content.tables] == [3, 4]
    assert content.tables[0].names == NAMES


def test_a_bank_without_tables_has_snapshots(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    written = store.write(an_identity(), [], clocks={}, sequence=0)
    assert store.read(written).tables == []


def test_blocks_are_whole_rows_within_the_bound(tmp_path: Path) -> None:
    store = a_store(tmp_path, group_bytes=200)  # a row has 24 bytes
    (table,) = store.read(write(store, an_image(num_rows=20))).tables
    assert [block["key"].shape[0] for block in table.blocks()] == [8, 8, 4]


def test_a_row_may_be_larger_than_a_group(tmp_path: Path) -> None:
    store = a_store(tmp_path, group_bytes=1)
    assert_holds(store.read(write(store, an_image(num_rows=3))), an_image(num_rows=3))


def test_the_image_may_change_once_written(tmp_path: Path) -> None:
    image, expected = an_image(), an_image()

    def images() -> Iterator[TableImage]:
        yield image
        for column in image.columns.values():
            column[:] = 0

    store = a_store(tmp_path)
    written = store.write(an_identity(), images(), clocks={}, sequence=0)
    assert_holds(store.read(written), expected)


def test_snapshots_are_listed_oldest_first(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    written = [write(store, label=f"at-{time}", created_at=time) for time in (3.0, 1.0, 2.0)]
    assert store.list() == [written[1], written[2], written[0]]


def test_reading_an_absent_root_makes_nothing(tmp_path: Path) -> None:
    assert a_store(tmp_path / "bank").list() == []
    assert list(tmp_path.iterdir()) == []


def test_a_label_means_its_newest_snapshot(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    old, new = (write(store, label="best", created_at=time) for time in (1.0, 2.0))
    assert store.read("best").identity == new
    assert store.read(old).identity == store.read(old.uuid).identity == old


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with pytest.raises(SnapshotNotFoundError, match=r"'best' in .*; there are: none"):
        store.read("best")
    written = write(store, label="step-5")
    for wanted in ("best", "../..", "0" * 32, an_identity()):
        with pytest.raises(SnapshotNotFoundError, match=rf"there are: step-5 \({written.uuid}\)"):
            store.read(wanted)
    with pytest.raises(SnapshotNotFoundError, match="step-5"):
        store.delete("best")


def test_another_banks_snapshot_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write(a_store(tmp_path))
    other = SnapshotStore(tmp_path, bank_id="bank-2")
    for wanted in (written, written.uuid):
        with pytest.raises(BankIdentityError, match="is of bank bank-1; this is bank bank-2"):
            other.read(wanted)
    with pytest.raises(BankIdentityError):
        other.delete(written.uuid)
    with pytest.raises(BankIdentityError):
        other.write(written, [], clocks={}, sequence=0)
    assert other.list() == []
    assert "bank-1" in caplog.text
    a_store(tmp_path).verify(written)


def test_a_uuid_is_written_once(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    written = write(store)
    with pytest.raises(InvalidInputError, match="already"):
        store.write(written, [], clocks={}, sequence=0)
    assert_holds(store.read(written), an_image())


@pytest.mark.parametrize("uuid", ["", "../" * 10 + "ab", "A" * 32])
def test_a_uuid_that_is_none_is_refused(tmp_path: Path, uuid: str) -> None:
    with pytest.raises(InvalidInputError, match="32 digits"):
        a_store(tmp_path).write(SnapshotIdentity(BANK, "a", uuid), [], clocks={}, sequence=0)
    assert list(tmp_path.iterdir()) == []


def test_shards_share_a_root(tmp_path: Path) -> None:
    stores = [a_store(tmp_path, shard_index=index) for index in range(2)]
    identity, images = an_identity(), [an_image(num_rows=5), an_image(num_rows=6)]
    for store, image in zip(stores, images, strict=True):
        store.write(identity, [image], clocks={}, sequence=0)
    for store, image in zip(stores, images, strict=True):
        assert_holds(store.read(identity), image)
    stores[0].delete(identity.uuid)
    assert (stores[0].list(), stores[1].list()) == ([], [identity])


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    store = a_store(tmp_path, group_bytes=500)
    identities = [an_identity(created_at=time) for time in (1.0, 2.0, 3.0)]
    threads = [
        threading.Thread(
            target=store.write, args=(one, [an_image()]), kwargs={"clocks": {}, "sequence": 0}
        )
        for one in identities
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.list() == identities
    for one in identities:
        assert_holds(store.read(one), an_image())


def test_a_deleted_snapshot_gives_its_space_back(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    kept, deleted = write(store), write(store, created_at=2.0)
    store.delete(deleted.uuid)
    assert not files_of(tmp_path, deleted).exists()
    assert store.list() == [kept]
    store.verify(kept)


def test_the_newest_are_retained_and_those_to_keep(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    a, _, c, d = (write(store, created_at=time) for time in (1.0, 2.0, 3.0, 4.0))
    store.retain(2, keep={a.uuid})
    assert store.list() == [a, c, d]
    store.retain(5)
    assert store.list() == [a, c, d]
    with pytest.raises(InvalidInputError, match="max_snapshots=0"):
        store.retain(0)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path, group_bytes=500)
    old = write(store)

    def images() -> Iterator[TableImage]:
        yield an_image()
        raise RuntimeError("no further table")

    with pytest.raises(RuntimeError, match="no further table"):
        store.write(an_identity(), images(), clocks={}, sequence=0)
    assert store.list() == [old]
    assert [one.name for one in files_of(tmp_path, old).parent.iterdir()] == [old.uuid]


def test_a_disk_that_takes_no_more_is_a_bank_error(tmp_path: Path) -> None:
    store = a_store(tmp_path, group_bytes=1 << 20)
    old = write(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(BankError, match=r"cannot be written: .*File too large"):
            write(store, an_image(num_rows=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [one.name for one in files_of(tmp_path, old).parent.iterdir()] == [old.uuid]
    store.verify(old)


# Runs in a process of its own, which kills itself: when rows are read for the first or second time,
# which is before the first group and after it, or at an audit event of Python ("open" counts once
# the manifest has its name).
KILLED = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from carls_jax.bank.before_images import Room
from carls_jax.bank.interface import SnapshotIdentity
from carls_jax.bank.snapshots import SnapshotStore
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_image import TableImage

root, moment, uuid = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
seen = []

def see(event, arguments=()):
    if event == moment and (event != "open" or "os.rename" in seen):
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(event)

class Image(TableImage):
    def read(self, out):
        see(f"read {seen.count('read 0') and 1}")
        super().read(out)

store = SnapshotStore(root, bank_id="bank-1", group_bytes=64)
spec, columns = TableSpec("nodes", {"x": Field()}), {"key": np.arange(40)}
image = Image(spec, 40, {}, columns, lock=threading.Lock(), room=Room())
sys.addaudithook(see)
if moment == "shutil.rmtree":
    store.delete(uuid)
else:
    store.write(SnapshotIdentity("bank-1", "killed", uuid, 9.0), [image], clocks={}, sequence=10)
"""


def kill(root: Path, moment: str, uuid: str) -> None:
    """Writes (or deletes) a snapshot in another process, which is killed at that moment."""
    command = [sys.executable, "-c", KILLED, str(root), moment, uuid]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["read 0", "read 1", "os.rename"])
def test_a_kill_during_a_write_leaves_the_older_snapshot(tmp_path: Path, moment: str) -> None:
    store, killed = a_store(tmp_path), an_identity()
    old = write(store)
    kill(tmp_path, moment, killed.uuid)
    assert files_of(tmp_path, killed).exists()
    assert store.list() == [old]
    assert_holds(store.read(old), an_image())
    with pytest.raises(SnapshotNotFoundError):
        store.read(killed)
    new = write(store, created_at=2.0)
    assert not files_of(tmp_path, killed).exists()
    assert store.list() == [old, new]


def test_a_kill_after_the_manifest_was_named_leaves_both(tmp_path: Path) -> None:
    store, killed = a_store(tmp_path), an_identity()
    old = write(store)
    kill(tmp_path, "open", killed.uuid)
    assert [one.uuid for one in store.list()] == [old.uuid, killed.uuid]
    store.verify(killed.uuid)


def test_a_kill_during_a_deletion_leaves_an_orphan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = a_store(tmp_path)
    kept, deleted = write(store), write(store)
    kill(tmp_path, "shutil.rmtree", deleted.uuid)
    assert files_of(tmp_path, deleted).exists()
    assert store.list() == [kept]
    store.remove_orphans()
    assert deleted.uuid in caplog.text
    assert not files_of(tmp_path, deleted).exists()
    store.verify(kept)


def assert_corrupt(store: SnapshotStore, snapshot: SnapshotIdentity, match: str) -> None:
    with pytest.raises(SnapshotCorruptError, match=match):
        store.verify(snapshot)


def test_a_changed_byte_is_found_in_its_column(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    image, other = an_image(num_rows=100), write(store)
    written = write(store, image)
    needle = rows_in(image)["value/x"].tobytes()
    (path,) = (one for one in data_files(tmp_path, written) if needle in one.read_bytes())
    content = bytearray(path.read_bytes())
    content[content.index(needle) + 50] ^= 1
    path.write_bytes(content)
    assert_corrupt(
        store,
        written,
        rf"column 'value/x' of table 'nodes' in file://.*{written.uuid}/arrays/ has checksum "
        rf"0x\w{{8}} in its rows 0 to 99, expected 0x\w{{8}} \(in d/{path.name}\)$",
    )
    store.verify(other)


def test_sound_blocks_are_read_until_the_damaged_one(tmp_path: Path) -> None:
    image = an_image(num_rows=64)
    store = a_store(tmp_path, group_bytes=1000)
    written = write(store, image)
    keys = rows_in(image)["key"]
    needle = keys[40:].tobytes()[:24]
    (path,) = (one for one in data_files(tmp_path, written) if needle in one.read_bytes())
    path.write_bytes(path.read_bytes().replace(needle, bytes(24)))
    (table,) = store.read(written).tables
    blocks = table.blocks()
    np.testing.assert_array_equal(next(blocks)["key"], keys[:32])
    with pytest.raises(SnapshotCorruptError, match=r"'key' .* rows 32 to 63"):
        next(blocks)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-2000])]
)
def test_no_data_file_can_be_lost_or_cut_unnoticed(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = a_store(tmp_path, group_bytes=1 << 15)
    written = write(store, an_image(num_rows=3000))  # 24 bytes a row: three groups
    arrays = files_of(tmp_path, written) / "arrays"
    saved = shutil.copytree(arrays, tmp_path / "saved")
    damaged = [one for one in data_files(tmp_path, written) if one.stat().st_size > 10_000]
    assert len(damaged) >= 3
    for path in damaged:
        damage(path)
        assert_corrupt(store, written, "table 'nodes'")
        shutil.rmtree(arrays)
        shutil.copytree(saved, arrays)
    store.verify(written)


def test_a_lost_database_is_corrupt(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    written = write(store)
    database = files_of(tmp_path, written) / "arrays" / "manifest.ocdbt"
    database.write_bytes(database.read_bytes()[:20])
    assert_corrupt(store, written, r"'key' .* cannot be opened: .*manifest\.ocdbt")
    shutil.rmtree(database.parent)
    assert_corrupt(store, written, "'key' .* cannot be opened: .*does not exist$")


def set_sequence(manifest: dict[str, Any]) -> None:
    manifest["snapshot"]["sequence"] += 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_sequence, "does not have its checksum"),
        (lambda manifest: manifest.update(format_version=99), "has format version 99; .* reads 2"),
        (lambda manifest: manifest.pop("snapshot"), "is no manifest: KeyError"),
    ],
)
def test_a_changed_manifest_is_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    store = a_store(tmp_path)
    written = write(store)
    path = files_of(tmp_path, written) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert_corrupt(store, written, match)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\xff"])
def test_a_garbage_manifest_is_logged_and_not_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    store = a_store(tmp_path)
    kept, damaged = write(store), write(store)
    path = files_of(tmp_path, damaged) / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    assert store.list() == [kept]
    assert caplog.record_tuples[0][1] == logging.WARNING
    assert str(path) in caplog.text
    assert_corrupt(store, damaged, f"{path} is no manifest")
    with pytest.raises(SnapshotCorruptError, match=f"damaged: {damaged.uuid}"):
        store.read("a label that may have been its")
    write(store, created_at=2.0)
    assert path.exists()  # damaged is not half-written: only `delete` removes it
    store.delete(damaged.uuid)
    assert not path.parent.exists()


def test_a_snapshot_in_the_wrong_place_is_corrupt(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    written, other = write(store), an_identity()
    shutil.copytree(files_of(tmp_path, written), files_of(tmp_path, other))
    assert_corrupt(store, other, f"holds snapshot {written.uuid} of shard 0")
