from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from carls_jax.bank.root import BankRoot, kept_identity
from carls_jax.errors import AddressInUseError, BankIdentityError


def open_root(
    path: Path, bank_id: str | None = None, *, shard_index: int = 0, num_shards: int = 1
) -> BankRoot:
    return BankRoot(path, bank_id=bank_id, shard_index=shard_index, num_shards=num_shards)


def test_a_new_directory_gets_an_identity_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "made" / "root"
    first = open_root(path)
    first.close()
    again = open_root(path)
    assert again.bank_id == first.bank_id
    again.close()
    assert kept_identity(path) == {"bank_id": first.bank_id, "shard_index": 0, "num_shards": 1}
    assert sorted(os.listdir(path)) == ["bank.json", "lock"]


def test_an_identity_may_be_given(tmp_path: Path) -> None:
    open_root(tmp_path, "b", shard_index=1, num_shards=3).close()
    assert open_root(tmp_path, shard_index=1, num_shards=3).bank_id == "b"


@pytest.mark.parametrize(
    ("bank_id", "shard_index", "num_shards"), [("c", 1, 3), ("b", 0, 3), (None, 0, 1), ("b", 1, 4)]
)
def test_the_directory_of_another_bank_or_shard_is_refused(
    tmp_path: Path, bank_id: str | None, shard_index: int, num_shards: int
) -> None:
    open_root(tmp_path, "b", shard_index=1, num_shards=3).close()
    with pytest.raises(BankIdentityError, match=r"shard 1 of 3 of bank b, not to shard") as raised:
        open_root(tmp_path, bank_id, shard_index=shard_index, num_shards=num_shards)
    # Who is refused does not keep it locked, though the error holds the object.
    assert raised.traceback
    open_root(tmp_path, "b", shard_index=1, num_shards=3)


@pytest.mark.parametrize("text", ["", "{", "3", "[1]"])
def test_a_directory_that_does_not_say_whose_it_is_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bank.json").write_text(text)
    with pytest.raises(BankIdentityError, match="does not say whose it is"):
        open_root(tmp_path)


# One at a time


def test_a_directory_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    root = open_root(tmp_path)
    with pytest.raises(AddressInUseError, match=f"in use by process {os.getpid()}: close that"):
        open_root(tmp_path)
    root.close()
    root.close()
    open_root(tmp_path)


def test_a_root_that_nobody_holds_any_more_is_free(tmp_path: Path) -> None:
    open_root(tmp_path)
    gc.collect()
    open_root(tmp_path)


HOLD = """
import sys
from pathlib import Path
from carls_jax.bank.root import BankRoot
root = BankRoot(Path(sys.argv[1]), bank_id=None, shard_index=0, num_shards=1)
print("held", flush=True)
sys.stdin.read()
"""


FORK = """
import os, sys
from pathlib import Path
from carls_jax.bank.root import BankRoot
root = BankRoot(Path(sys.argv[1]), bank_id=None, shard_index=0, num_shards=1)
if child := os.fork():
    root.close()
    BankRoot(Path(sys.argv[1]), bank_id=None, shard_index=0, num_shards=1)
    print("free", flush=True)
else:
    sys.stdin.read()
"""


def test_a_fork_does_not_keep_a_directory_that_was_given_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "free\n"


def test_a_killed_process_leaves_its_directory_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(AddressInUseError, match=f"process {process.pid}:"):
            open_root(tmp_path)
        process.kill()
        process.wait(30)
    open_root(tmp_path)


def test_a_root_that_lost_its_identity_does_not_take_a_new_one(tmp_path: Path) -> None:
    open_root(tmp_path).close()
    (tmp_path / "snapshots").mkdir()
    for lose in (lambda path: path.write_text("{}"), Path.unlink):
        lose(tmp_path / "bank.json")
        with pytest.raises(BankIdentityError, match=r"holds snapshots, but bank.json"):
            open_root(tmp_path)
