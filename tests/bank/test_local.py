from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carls_jax.bank.local import LocalBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import (
    AddressInUseError,
    BankClosedError,
    BankIdentityError,
    InvalidInputError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
)

SPEC = TableSpec("t", {"x": Field()})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shard_index": 1}, "shard_index=1: allowed is 0 to num_shards-1=0"),
        ({"shard_index": -1, "num_shards": 2}, "shard_index=-1"),
        ({"max_snapshots": 0}, "max_snapshots=0: allowed is 1 and more"),
        ({"bank_id": "a b"}, "bank_id='a b'"),
        ({"source": "a b"}, "source='a b'"),
        ({"journal": "fsync"}, "journal='fsync': a bank without a root keeps none"),
    ],
)
def test_a_bank_that_cannot_be_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        LocalBank(**arguments)


def test_a_bank_without_a_root_is_a_new_one_each_time() -> None:
    with LocalBank() as first, LocalBank() as second:
        assert first.identity.bank_id != second.identity.bank_id
        assert first.snapshots() == []


def test_a_bank_with_a_root_is_the_same_again(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as bank:
        first = bank.identity
    with LocalBank(tmp_path) as bank:
        assert bank.identity == first
    with pytest.raises(BankIdentityError):
        LocalBank(tmp_path, bank_id="another")


def test_two_banks_do_not_share_a_root(tmp_path: Path) -> None:
    with LocalBank(tmp_path), pytest.raises(AddressInUseError):
        LocalBank(tmp_path)
    LocalBank(tmp_path).close()


def test_a_new_bank_removes_what_a_crash_left(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as bank:
        taken = bank.snapshot("s")
    directory = tmp_path / "snapshots" / "shard-00000"
    (directory / ("0" * 32)).mkdir()
    with LocalBank(tmp_path) as bank:
        assert bank.snapshots() == [taken]
    assert [path.name for path in directory.iterdir()] == [taken.uuid]


def test_the_oldest_snapshots_go(tmp_path: Path) -> None:
    with LocalBank(tmp_path, max_snapshots=2) as bank:
        taken = [bank.snapshot(label) for label in ("a", "b", "c")]
        assert bank.snapshots() == taken[1:]


def test_a_snapshot_that_is_damaged_or_missing_changes_nothing(tmp_path: Path) -> None:
    with LocalBank(tmp_path) as bank:
        table = bank.table(SPEC)
        table.update([1], {"x": [1.0]})
        taken = bank.snapshot("s")
        table.update([2], {"x": [2.0]})
        before = bank.identity
        with pytest.raises(SnapshotNotFoundError, match="there are: s"):
            bank.restore("other")
        arrays = tmp_path / "snapshots" / "shard-00000" / taken.uuid / "arrays"
        for path in arrays.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(SnapshotCorruptError):
            bank.restore(taken)
        assert bank.identity == before
        assert table.to_numpy()["keys"].tolist() == [1, 2]


def test_a_snapshot_is_of_one_instant(tmp_path: Path) -> None:
    """Two tables are written in turn; no snapshot has more rows of the second than of the first."""
    with LocalBank(tmp_path, max_snapshots=100) as bank:
        first, second = (bank.table(TableSpec(name, {"x": Field()})) for name in ("z", "a"))
        stop = threading.Event()

        def write() -> None:
            key = 0
            while not stop.is_set():
                for table in (first, second):
                    table.update([key], {"x": [1.0]}, step=key)
                key += 1

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            taken = [bank.snapshot(f"s{number}") for number in range(10)]
            stop.set()
            writing.result(30)
        for one in taken:
            # Two tables were made, and each row is one change.
            assert bank._store().read(one).sequence == 2 + one.num_rows
            bank.restore(one)
            stats = bank.stats()
            num_rows = [stats.tables[name].num_rows for name in ("z", "a")]
            assert num_rows in ([n := num_rows[1], n], [n + 1, n])
            assert sum(num_rows) == one.num_rows
            assert stats.clocks == ({"main": num_rows[0] - 1} if num_rows[0] else {})


def held_up(bank: LocalBank, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Returns an event that says that a snapshot is about to be written, and one that lets it."""
    writing, go_on = threading.Event(), threading.Event()
    store = bank._store()
    write = store.write

    def slow(*arguments: Any, **options: Any) -> Any:
        writing.set()
        assert go_on.wait(30)
        return write(*arguments, **options)

    monkeypatch.setattr(store, "write", slow)
    return writing, go_on


def test_changes_go_on_while_snapshots_are_written_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalBank(tmp_path) as bank, ThreadPoolExecutor(2) as pool:
        table = bank.table(SPEC)
        table.update([1], {"x": [1.0]})
        writing, go_on = held_up(bank, monkeypatch)
        first = pool.submit(bank.snapshot, "first")
        assert writing.wait(30)
        second = pool.submit(bank.snapshot, "second")
        table.update([1, 2], {"x": [7.0, 7.0]})
        with pytest.raises(TimeoutError):
            second.result(0.1)
        go_on.set()
        restored = []
        for taken in (first.result(30), second.result(30)):
            bank.restore(taken)
            restored.append(table.to_numpy()["x"].tolist())
        assert restored == [[1.0], [7.0, 7.0]]


def test_a_restore_waits_for_a_snapshot_which_it_does_not_alter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalBank(tmp_path) as bank, ThreadPoolExecutor(2) as pool:
        table = bank.table(SPEC)
        empty = bank.snapshot("empty")
        table.update([1], {"x": [1.0]})
        writing, go_on = held_up(bank, monkeypatch)
        taking = pool.submit(bank.snapshot, "full")
        assert writing.wait(30)
        table.update([1], {"x": [7.0]})
        restoring = pool.submit(bank.restore, empty)
        with pytest.raises(TimeoutError):
            restoring.result(0.1)
        go_on.set()
        restoring.result(30)
        assert table.to_numpy()["keys"].tolist() == []
        bank.restore(taking.result(30))
        assert table.lookup([1])["x"].tolist() == [1.0]


def test_closing_waits_for_a_snapshot_and_frees_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = LocalBank(tmp_path)
    bank.table(SPEC).update([1], {"x": [1.0]})
    shard = weakref.ref(bank._open())
    writing, go_on = held_up(bank, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        taking = pool.submit(bank.snapshot, "s")
        assert writing.wait(30)
        closing = pool.submit(bank.close)
        with pytest.raises(TimeoutError):
            closing.result(0.1)
        go_on.set()
        taken = taking.result(30)
        closing.result(30)
    del taking, closing
    gc.collect()
    assert shard() is None
    with pytest.raises(BankClosedError):
        bank.table(SPEC)
    with LocalBank(tmp_path) as again:
        assert again.snapshots() == [taken]


def test_what_a_caller_does_to_its_arrays_later_is_its_own_affair() -> None:
    with LocalBank() as bank:
        table = bank.table(SPEC)
        keys, values = np.array([1, 2]), np.array([1, 2], np.float32)
        table.update(keys, {"x": values})
        keys[:], values[:] = 9, np.nan
        assert table.lookup([1, 2])["x"].tolist() == [1.0, 2.0]


def test_a_bank_shows_whose_it_is() -> None:
    with LocalBank(source="me") as bank:
        assert repr(bank) == "<LocalBank source='me'>"
