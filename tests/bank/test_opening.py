from __future__ import annotations

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import ShardedBank, open_snapshot
from carls_jax.errors import BankIdentityError, InvalidInputError, SnapshotNotFoundError

NODES = carls.TableSpec("nodes", {"score": carls.Field()})


def keys_in(bank: carls.Bank) -> list[int]:
    return bank.table("nodes").to_numpy()["keys"].tolist()


@pytest.fixture
def root(tmp_path):
    """A bank's directory, in use, with two snapshots of label "a" and one of label "b"."""
    with carls.LocalBank(tmp_path) as bank:
        for key, label in enumerate(["a", "a", "b"]):
            bank.table(NODES).update([key], {"score": [0.5]}, step=key)
            bank.snapshot(label)
        yield tmp_path


def test_the_newest_snapshot_is_opened_while_the_bank_is_in_use(root):
    with open_snapshot(root) as bank:
        assert keys_in(bank) == [0, 1, 2]
        rows = bank.table("nodes").lookup([2])
        assert (rows["score"], rows.step["score"]) == (np.float32(0.5), 2)


def test_a_label_names_its_newest_snapshot_and_a_uuid_its_own(root):
    with open_snapshot(root, snapshot="a") as bank:
        assert keys_in(bank) == [0, 1]
    uuids = [path.name for path in (root / "snapshots" / "shard-00000").iterdir()]
    assert sorted(len(keys_in(open_snapshot(root, snapshot=uuid))) for uuid in uuids) == [1, 2, 3]


def test_the_directory_stays_as_it_is(root):
    half_written = root / "snapshots" / "shard-00000" / ("0" * 32)
    half_written.mkdir()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with open_snapshot(root) as bank:
        bank.table("nodes").delete([0])
        with pytest.raises(InvalidInputError, match="no root"):
            bank.snapshot("mine")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_shards_of_a_bank_are_opened_at_a_snapshot_that_all_have(tmp_path):
    roots = [tmp_path / "0", tmp_path / "1"]
    shards = [
        carls.LocalBank(root, bank_id="b", shard_index=index, num_shards=2)
        for index, root in enumerate(roots)
    ]
    with ShardedBank(shards) as bank:
        bank.table(NODES).update(np.arange(6), {"score": np.ones(6)})
        bank.snapshot("complete")
        bank.table(NODES).update(np.arange(9), {"score": np.ones(9)})
        shards[0].snapshot("incomplete")
    with open_snapshot(*roots) as bank:
        assert keys_in(bank) == list(range(6))
    with pytest.raises(SnapshotNotFoundError, match="'incomplete'; there are: complete"):
        open_snapshot(*roots, snapshot="incomplete")
    for wrong in (roots[:1], roots[::-1], [roots[0], roots[0]]):
        with pytest.raises(BankIdentityError, match="the directories of all shards"):
            open_snapshot(*wrong)


def test_what_is_no_bank_or_has_no_snapshot_is_an_error(tmp_path):
    with pytest.raises(InvalidInputError, match="nowhere is no bank's directory"):
        open_snapshot(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with carls.LocalBank(tmp_path), pytest.raises(SnapshotNotFoundError, match="none"):
        open_snapshot(tmp_path)
