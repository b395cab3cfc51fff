from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carls_jax.bank.journal import Journal
from carls_jax.bank.journal_records import encode, num_bytes_of
from carls_jax.bank.journal_segments import PAGE_BYTES, segment_path
from carls_jax.errors import BankClosedError, BankStorageError, ConfigError, JournalCorruptError
from tests.bank.journals import a_change, begun, names, numbers, open_journal, recorded
from tests.bank.test_journal_writing import largest_file

RECORD_BYTES = num_bytes_of(encode(a_change(3), 3, mark=bytes(8), kept=2))
TWO_RECORDS = PAGE_BYTES + 2 * RECORD_BYTES
MODES = pytest.mark.parametrize("mode", ["process", "fsync"])


def add(journal: Journal, *sequences: int) -> None:
    for sequence in sequences:
        journal.append(a_change(sequence), sequence)


def fail(*_: Any) -> int:
    raise OSError(errno.EIO, "the disk failed")


# Appending


@MODES
def test_what_was_appended_is_there_before_anything_is_closed(tmp_path: Path, mode: str) -> None:
    journal = open_journal(tmp_path / "made" / "journal", mode=mode)
    add(journal, 1, 2)
    journal.wait(2)
    assert numbers(tmp_path / "made" / "journal") == [1, 2]
    journal.close()


def test_segments_end_beyond_their_length(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 7, max_segment_bytes=TWO_RECORDS) as journal:
        assert names(tmp_path) == [1, 3, 5, 7]
        assert journal.num_bytes == 4 * PAGE_BYTES + 7 * RECORD_BYTES
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


@MODES
def test_every_start_begins_a_segment(tmp_path: Path, mode: str) -> None:
    for first in (1, 4, 7):
        with recorded(tmp_path, first, first + 2, mode=mode):
            pass
    with recorded(tmp_path, 10, 9):
        pass
    with recorded(tmp_path, 10, 11) as journal:
        assert names(tmp_path) == [1, 4, 7, 10]
        assert journal.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert numbers(tmp_path) == list(range(1, 12))


def test_a_page_that_was_never_whole_is_written_again(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 3):
        pass
    segment_path(tmp_path, 4).write_bytes(b"CARLS")
    assert numbers(tmp_path) == [1, 2, 3]
    with recorded(tmp_path, 4, 4):
        assert numbers(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("after", [0, 3])
def test_changes_that_were_not_read_are_not_overwritten(tmp_path: Path, after: int) -> None:
    with recorded(tmp_path, after + 1, after + 2):
        pass
    with pytest.raises(JournalCorruptError, match=rf"though change {after} is said to be the last"):
        open_journal(tmp_path, after=after)
    assert numbers(tmp_path, after=after) == [after + 1, after + 2]


def test_a_mode_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="journal='always': allowed are process, fsync"):
        open_journal(tmp_path / "journal", mode="always")
    assert not (tmp_path / "journal").exists()


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 1) as journal:
        pass
    journal.close()
    with pytest.raises(BankClosedError, match="was closed"):
        add(journal, 2)
    assert numbers(tmp_path) == [1]


# Disks that are full or fail


def test_a_full_disk_refuses_a_change_and_keeps_the_others(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 2) as journal:
        with largest_file(TWO_RECORDS + RECORD_BYTES // 2):
            with pytest.raises(BankStorageError, match=r"change 3 was refused.*1\.log .*make room"):
                add(journal, 3)
            assert numbers(tmp_path) == [1, 2]
        assert journal.num_bytes == TWO_RECORDS
        add(journal, 3)
    assert numbers(tmp_path) == [1, 2, 3]


def test_a_segment_that_cannot_be_made_refuses_a_change(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 2, max_segment_bytes=TWO_RECORDS) as journal:
        with largest_file(PAGE_BYTES - 1), pytest.raises(BankStorageError, match=r"3\.log cannot"):
            add(journal, 3)
        assert names(tmp_path) == [1]
        add(journal, 3)
        assert names(tmp_path) == [1, 3]
    assert numbers(tmp_path) == [1, 2, 3]


# In a file system of 64 KiB, which is gone with the process.
ON_A_FULL_DISK = """
import sys
from pathlib import Path
from carls_jax.errors import BankStorageError
from tests.bank.journals import a_change, numbers, open_journal

def refused(call, *given):
    try:
        call(*given)
    except BankStorageError as error:
        return "No space left on device" in str(error)
    return False

directory = Path(sys.argv[1], "journal")
journal = open_journal(directory)
last = 0
while not refused(journal.append, a_change(last + 1), last + 1):
    last += 1
assert 100 < last < 900
assert numbers(directory) == list(range(1, last + 1))
assert refused(journal.cut, last - 1)  # there is no room for the page of another segment
assert numbers(directory) == list(range(1, last + 1))
journal.cut(last)
journal.append(a_change(last + 1), last + 1)
assert numbers(directory, after=last) == [last + 1]
"""


def test_a_snapshot_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*alone, mount], capture_output=True).returncode
    ):
        pytest.skip("this user may not mount a file system")
    command = f'{mount} && exec "{sys.executable}" -c "$1" {tmp_path}'
    subprocess.run([*alone, command, "sh", ON_A_FULL_DISK], check=True, timeout=60)


def test_a_segment_that_was_emptied_takes_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(tmp_path, 1, 3) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", fail)
            with pytest.raises(BankStorageError, match=r"4\.log cannot be made"):
                journal.cut(3)
            with pytest.raises(BankStorageError, match=r"4\.log cannot be made"):
                add(journal, 4)
        assert numbers(tmp_path, after=3) == []
        add(journal, 4)
        assert names(tmp_path) == [1, 4]
        assert numbers(tmp_path, after=3) == [4]
        journal.cut(3)
        assert names(tmp_path) == [4]


def test_an_error_of_the_disk_refuses_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(tmp_path, 1, 1) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", fail)
            with pytest.raises(BankStorageError, match="the disk failed"):
                add(journal, 2)
        add(journal, 2)
    assert numbers(tmp_path) == [1, 2]


def test_a_file_that_cannot_be_put_back_is_written_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        journal = open_journal(tmp_path)
        add(journal, 1)
        patched.setattr(os, "ftruncate", fail)
        with largest_file(PAGE_BYTES + RECORD_BYTES + 9), pytest.raises(BankStorageError):
            add(journal, 2)
    with pytest.raises(BankStorageError, match="is given up, since the disk failed"):
        add(journal, 2)
    assert numbers(tmp_path) == [1]
    with pytest.raises(BankStorageError, match="is given up"):
        journal.close()


# Group commit


class Disk:
    """Counts what is synced, and lets a test hold or fail a sync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_syncs = 0
        self.before: Callable[[int], None] = lambda num_syncs: None
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, file: int) -> None:
        self.num_syncs += 1
        self.before(self.num_syncs)
        self._real(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_what_is_not_waited_for_is_not_synced(tmp_path: Path, disk: Disk) -> None:
    with recorded(tmp_path, 1, 3) as journal:
        journal.wait(3)
    assert disk.num_syncs == 0
    with recorded(tmp_path, 4, 6, mode="fsync") as journal:
        assert disk.num_syncs == 1  # its page
        journal.wait(5)
        journal.wait(6)
        journal.wait(4)
        assert disk.num_syncs == 2
        add(journal, 7)
    assert disk.num_syncs == 3


def test_one_sync_is_for_all_who_wait(tmp_path: Path, disk: Disk) -> None:
    journal = open_journal(tmp_path, mode="fsync")
    disk.num_syncs = 0
    is_syncing, may_end = threading.Event(), threading.Event()

    def hold_the_first(num_syncs: int) -> None:
        if num_syncs == 1:
            is_syncing.set()
            assert may_end.wait(20)

    disk.before = hold_the_first
    add(journal, 1)
    first = begun(journal.wait, 1)
    assert is_syncing.wait(20)
    begun(add, journal, *range(2, 16)).result(20)  # nobody who appends waits for a sync
    others = [begun(journal.wait, number) for number in range(2, 16)]
    assert not first.done()
    may_end.set()
    for one in [first, *others]:
        one.result(20)
    assert disk.num_syncs == 2
    journal.close()
    assert disk.num_syncs == 2


def test_many_threads_need_few_syncs_and_lose_nothing(tmp_path: Path, disk: Disk) -> None:
    with recorded(tmp_path, 1, 0, mode="fsync", max_segment_bytes=20 * TWO_RECORDS) as journal:
        numbering, sequences = threading.Lock(), itertools.count(1)
        acknowledged = []
        all_have_appended = threading.Barrier(32)

        def push() -> None:
            for _ in range(20):
                with numbering:
                    sequence = next(sequences)
                    add(journal, sequence)
                all_have_appended.wait(20)
                journal.wait(sequence)
                acknowledged.append(sequence)
                if sequence % 100 == 0:
                    journal.cut(sequence - 50)

        for one in [begun(push) for _ in range(32)]:
            one.result(60)
    assert sorted(acknowledged) == list(range(1, 641))
    # Alone, each would sync once, and each segment twice.
    assert disk.num_syncs <= 640 // 4
    assert names(tmp_path)[0] > 1
    assert numbers(tmp_path, after=550) == list(range(551, 641))


def test_a_sync_that_failed_is_never_tried_again(tmp_path: Path, disk: Disk) -> None:
    journal = open_journal(tmp_path, mode="fsync")
    add(journal, 1)
    journal.wait(1)
    add(journal, 2, 3)
    before = disk.num_syncs
    disk.before = fail
    for sequence in (2, 3):
        with pytest.raises(BankStorageError, match="is given up, since the disk failed: "):
            journal.wait(sequence)
    with pytest.raises(BankStorageError, match="is given up"):
        add(journal, 4)
    with pytest.raises(BankStorageError, match="is given up"):
        journal.cut(1)
    journal.wait(1)
    with pytest.raises(BankStorageError, match="is given up"):
        journal.close()
    assert disk.num_syncs == before + 1
    assert numbers(tmp_path) == [1, 2, 3]


def test_all_who_wait_hear_that_a_sync_failed(tmp_path: Path, disk: Disk) -> None:
    journal = open_journal(tmp_path, mode="fsync")
    add(journal, *range(1, 9))
    are_waiting = threading.Barrier(8)

    def wait(sequence: int) -> None:
        are_waiting.wait(20)
        journal.wait(sequence)

    disk.before = fail
    for one in [begun(wait, number) for number in range(1, 9)]:
        with pytest.raises(BankStorageError, match="is given up"):
            one.result(20)


def test_a_cut_waits_for_the_sync_under_way(tmp_path: Path, disk: Disk) -> None:
    """So that no file is closed, or believed to be on the disk, while another thread syncs it."""
    with recorded(tmp_path, 1, 2, mode="fsync") as journal:
        disk.num_syncs = 0
        is_syncing, may_fail = threading.Event(), threading.Event()

        def hold_and_fail(num_syncs: int) -> None:
            if num_syncs == 1:
                is_syncing.set()
                assert may_fail.wait(20)
                fail()

        disk.before = hold_and_fail
        first = begun(journal.wait, 1)
        assert is_syncing.wait(20)
        add(journal, 3)
        cutting = begun(journal.cut, 1)
        may_fail.set()
        for one in (first, cutting):
            with pytest.raises(BankStorageError, match="is given up"):
                one.result(20)
        assert disk.num_syncs == 1
        assert names(tmp_path) == [1]
        with pytest.raises(BankStorageError, match="is given up"):
            journal.close()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_segment_begins_only_when_the_disk_has_the_one_before(
    tmp_path: Path, disk: Disk, failing: int
) -> None:
    journal = open_journal(tmp_path, mode="fsync", max_segment_bytes=TWO_RECORDS)
    add(journal, 1, 2)
    disk.num_syncs = 0
    disk.before = lambda num_syncs: fail() and None if num_syncs == failing else None
    with pytest.raises(BankStorageError, match="is given up"):
        add(journal, 3)
    # Of the two syncs, the first is of the old segment, and the second of the page.
    assert names(tmp_path) == ([1] if failing == 1 else [1, 3])
    assert numbers(tmp_path) == [1, 2]


def test_a_directory_that_cannot_be_synced_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path, mode="fsync", max_segment_bytes=TWO_RECORDS)
    add(journal, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(BankStorageError, match="is given up"):
            add(journal, 3)
    with pytest.raises(BankStorageError, match="is given up"):
        add(journal, 3)


# Cutting


@MODES
def test_a_cut_deletes_what_a_snapshot_holds(tmp_path: Path, mode: str) -> None:
    with recorded(tmp_path, 1, 7, mode=mode, max_segment_bytes=TWO_RECORDS) as journal:
        journal.cut(1)
        assert names(tmp_path) == [1, 3, 5, 7]
        journal.cut(4)
        assert names(tmp_path) == [5, 7]
        assert journal.num_bytes == 2 * PAGE_BYTES + 3 * RECORD_BYTES
        journal.cut(4)
        assert numbers(tmp_path, after=4) == [5, 6, 7]
        add(journal, 8, 9)
        assert numbers(tmp_path, after=4) == [5, 6, 7, 8, 9]


@MODES
def test_a_cut_of_everything_gives_all_space_back(tmp_path: Path, mode: str) -> None:
    with recorded(tmp_path, 1, 3, mode=mode, max_segment_bytes=TWO_RECORDS) as journal:
        journal.cut(3)
        assert names(tmp_path) == [4]
        assert journal.num_bytes == PAGE_BYTES
        journal.cut(3)
        assert names(tmp_path) == [4]
        add(journal, 4)
        assert numbers(tmp_path, after=3) == [4]


def test_a_segment_that_is_partly_needless_goes_with_the_next_cut(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 5) as journal:
        journal.cut(3)
        add(journal, 6)
        assert names(tmp_path) == [1, 6]
        assert numbers(tmp_path, after=3) == [4, 5, 6]
        journal.cut(5)
        assert names(tmp_path) == [6]


def test_what_an_earlier_process_left_is_cut_too(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 5, max_segment_bytes=TWO_RECORDS):
        pass
    with recorded(tmp_path, 6, 6) as journal:
        journal.cut(4)
        assert names(tmp_path) == [5, 6]
        journal.cut(5)
        assert names(tmp_path) == [6]


def test_a_file_that_cannot_be_given_up_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(tmp_path, 1, 5, max_segment_bytes=TWO_RECORDS) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", fail)
            with pytest.raises(BankStorageError, match=r"1\.log cannot be given up"):
                journal.cut(4)
        assert numbers(tmp_path) == [1, 2, 3, 4, 5]
        journal.cut(4)
        assert names(tmp_path) == [5]


@MODES
def test_a_crash_at_any_instant_loses_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Before each call that alters files they are copied, and read as after a crash."""
    directory = tmp_path / "journal"
    instants: list[tuple[Path, int, int]] = []
    appended, covered = 0, 0

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            copy = tmp_path / str(len(instants))
            if directory.exists():
                shutil.copytree(directory, copy)
            instants.append((copy, appended, covered))
            return function(*given, **more)

        return call

    with monkeypatch.context() as patched:
        for name in ("open", "pwritev", "ftruncate", "unlink", "rename", "fdatasync", "fsync"):
            patched.setattr(os, name, watched(getattr(os, name)))
        patched.setattr(Path, "unlink", watched(Path.unlink))
        journal = open_journal(directory, mode=mode, max_segment_bytes=TWO_RECORDS)
        for sequence in range(1, 8):
            add(journal, sequence)
            appended = sequence
        for covered in (4, 7):  # a snapshot was committed, and then
            journal.cut(covered)
        add(journal, 8)
    assert len(instants) > 15
    for copy, last, after in instants:
        assert numbers(copy, after=after) == list(range(after + 1, last + 1))
        with recorded(copy, last + 1, last + 2):
            assert numbers(copy, after=after) == list(range(after + 1, last + 3))
    journal.close()


# A killed process

WRITER = """
import itertools, sys
from pathlib import Path
from tests.bank.journals import a_change, open_journal
journal = open_journal(Path(sys.argv[1]), mode=sys.argv[2], max_segment_bytes=20_000)
for sequence in itertools.count(1):
    journal.append(a_change(sequence), sequence)
    journal.wait(sequence)
    print(sequence, flush=True)
"""


@MODES
def test_a_killed_process_loses_nothing_that_it_said(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [next(process.stdout) for _ in range(300)]
        process.kill()
        said += list(process.stdout)
    last = int(said[-1] if said[-1].endswith("\n") else said[-2])
    assert last >= 300
    read = numbers(tmp_path)
    assert read == list(range(1, len(read) + 1))
    assert last <= len(read) <= last + 1
