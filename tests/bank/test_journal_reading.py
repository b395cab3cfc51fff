from __future__ import annotations

import logging
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from carls_jax.bank import changes, journal_reading
from carls_jax.bank.journal import Journal, read_journal
from carls_jax.bank.journal_records import encode, num_bytes_of
from carls_jax.bank.journal_segments import PAGE_BYTES, segment_path
from carls_jax.errors import BankIdentityError, BankStorageError, JournalCorruptError
from tests.bank.journals import BY, a_change, numbers, open_journal, read_up, recorded

RECORD_BYTES = num_bytes_of(encode(a_change(3), 3, mark=bytes(8), kept=2))


def place_of(sequence: int, *, first: int = 1) -> int:
    """Where a record begins in the segment that begins with `first`."""
    return PAGE_BYTES + (sequence - first) * RECORD_BYTES


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x04
    path.write_bytes(data)


def two_segments(directory: Path) -> tuple[Path, Path]:
    """Records changes 1 to 3 and 4 to 6 in a segment each."""
    limit = place_of(4)
    with recorded(directory, 1, 6, max_segment_bytes=limit):
        pass
    return segment_path(directory, 1), segment_path(directory, 4)


def test_all_changes_come_back_in_order(tmp_path: Path) -> None:
    two_segments(tmp_path)
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert numbers(tmp_path, after=2) == [3, 4, 5, 6]
    assert numbers(tmp_path, after=3) == [4, 5, 6]
    assert numbers(tmp_path, after=6) == []
    assert numbers(tmp_path, after=9) == []


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read_up(tmp_path / "nowhere") == []
    assert read_up(tmp_path) == []


def test_a_file_that_a_snapshot_made_needless_is_not_read(tmp_path: Path) -> None:
    first, _ = two_segments(tmp_path)
    first.write_bytes(b"anything")
    assert numbers(tmp_path, after=3) == [4, 5, 6]


# The end of the last file


def test_cut_at_any_byte_the_whole_records_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, last = two_segments(tmp_path)
    data = last.read_bytes()
    in_page = [0, 1, 9, 100, PAGE_BYTES - 1]
    for length in [*in_page, *range(PAGE_BYTES, len(data))]:
        last.write_bytes(data[:length])
        caplog.clear()
        num_whole = max(0, length - PAGE_BYTES) // RECORD_BYTES
        expected = [1, 2, 3, *range(4, 4 + num_whole)]

        assert numbers(tmp_path) == expected

        torn_bytes = length - place_of(4 + num_whole, first=4)
        assert len(caplog.messages) == (torn_bytes > 0)
        if torn_bytes > 0:
            assert f"cut off {torn_bytes} bytes after change {3 + num_whole};" in caplog.text
            assert last.stat().st_size == place_of(4 + num_whole, first=4)
        caplog.clear()
        assert numbers(tmp_path) == expected
        assert caplog.messages == []


def test_a_torn_tail_of_zeros_is_cut_off(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 3):
        pass
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes() + bytes(3 << 20))
    assert numbers(tmp_path) == [1, 2, 3]
    assert path.stat().st_size == place_of(4)


def test_what_was_cut_off_stays_so_if_power_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that another one follows must not end in a torn record."""
    synced = []
    path = segment_path(tmp_path, 1)
    with recorded(tmp_path, 1, 3):
        pass
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    os.truncate(path, place_of(4) - 1)
    assert numbers(tmp_path) == [1, 2]
    assert synced == [place_of(3)]


def test_a_file_begins_without_a_page_only_at_the_end(tmp_path: Path) -> None:
    first, last = two_segments(tmp_path)
    last.write_bytes(b"")
    assert numbers(tmp_path) == [1, 2, 3]
    segment_path(tmp_path, 4).write_bytes(b"")
    segment_path(tmp_path, 5).write_bytes(b"")
    with pytest.raises(JournalCorruptError, match=r"4\.log is cut off"):
        read_up(tmp_path)
    assert first.exists()


# Damage elsewhere


def test_any_altered_byte_is_told(tmp_path: Path) -> None:
    """Of the last record it looks like a torn tail; else it stops the start, and says where."""
    for path, first, last in zip(two_segments(tmp_path), (1, 4), (3, 6), strict=True):
        data = path.read_bytes()
        for place in range(PAGE_BYTES, len(data)):
            damage(path, place)
            hit = first + (place - PAGE_BYTES) // RECORD_BYTES
            if hit == 6:
                assert numbers(tmp_path) == [1, 2, 3, 4, 5]
            else:
                what = f"{path.name} at byte {place_of(hit, first=first)}, where change {hit} "
                with pytest.raises(JournalCorruptError, match=what):
                    read_up(tmp_path)
                assert (path.stat().st_size, last) == (len(data), first + 2)
            path.write_bytes(data)


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    for path in two_segments(tmp_path):
        data = path.read_bytes()
        for place in (0, 8, 20, 300, PAGE_BYTES - 1):
            damage(path, place)
            with pytest.raises(JournalCorruptError, match=f"{path.name} is damaged in its first"):
                read_up(tmp_path)
            path.write_bytes(data)


def test_changes_before_the_damage_are_given_first(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 3):
        pass
    damage(segment_path(tmp_path, 1), place_of(2) + 50)
    reading = read_journal(tmp_path, bank_id="b", shard_index=1, after=0)
    assert next(reading)[0] == 1
    with pytest.raises(JournalCorruptError, match="change 3 at byte"):
        next(reading)


def test_the_way_out_works(tmp_path: Path) -> None:
    first, last = two_segments(tmp_path)
    damage(first, place_of(2) + 50)
    with pytest.raises(JournalCorruptError, match="truncate -s") as raised:
        read_up(tmp_path)
    assert f"truncate -s {place_of(2)} {first}" in str(raised.value)
    os.truncate(first, place_of(2))
    last.rename(tmp_path / "moved")
    assert numbers(tmp_path) == [1]
    open_journal(tmp_path, after=1).append(a_change(2), 2)
    assert numbers(tmp_path) == [1, 2]


def test_a_record_is_found_wherever_pieces_of_the_file_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of the record behind the damage may lie across two pieces that are searched."""
    with recorded(tmp_path, 1, 3):
        pass
    damage(segment_path(tmp_path, 1), place_of(2) + 50)
    for num_bytes in range(8, 64):
        monkeypatch.setattr(journal_reading, "_SCANNED_BYTES", num_bytes)
        with pytest.raises(JournalCorruptError, match=f"change 3 at byte {place_of(3)} was"):
            read_up(tmp_path)


def test_a_missing_file_is_a_gap(tmp_path: Path) -> None:
    first, last = two_segments(tmp_path)
    first.rename(tmp_path / "moved")
    with pytest.raises(JournalCorruptError, match=r"begins with change 4: changes 1 to 3 are miss"):
        read_up(tmp_path)
    (tmp_path / "moved").rename(first)
    last.rename(segment_path(tmp_path, 5))
    with pytest.raises(JournalCorruptError, match=r"5\.log does not follow .* before change 4:"):
        read_up(tmp_path)


def test_a_record_out_of_its_turn_is_told(tmp_path: Path) -> None:
    with recorded(tmp_path, 1, 3):
        pass
    path = segment_path(tmp_path, 1)
    data = path.read_bytes()
    path.write_bytes(data[: place_of(2)] + data[place_of(3) :])
    with pytest.raises(JournalCorruptError, match=r"where change 2 begins, holds change 3\. Put"):
        read_up(tmp_path)


def test_the_journal_of_another_bank_or_shard_is_refused(tmp_path: Path) -> None:
    two_segments(tmp_path)
    for bank_id, shard_index in (("c", 1), ("b", 0)):
        with pytest.raises(BankIdentityError, match="is the journal of shard 1 of bank b"):
            next(read_journal(tmp_path, bank_id=bank_id, shard_index=shard_index, after=0))


def test_a_disk_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "failed")

    with recorded(tmp_path, 1, 3):
        pass
    monkeypatch.setattr(journal_reading, "read_head", fail)
    with pytest.raises(BankStorageError, match=r"1\.log cannot be read at byte 4096"):
        read_up(tmp_path)


# What was not on the disk when power was lost


def synced_up_to_two(directory: Path) -> Path:
    """Records changes 1 to 5, of which the first two were waited for, in mode "fsync"."""
    with recorded(directory, 1, 2, mode="fsync") as journal:
        journal.wait(2)
        for number in (3, 4, 5):
            journal.append(a_change(number), number)
    return segment_path(directory, 1)


def lose(path: Path, sequence: int) -> None:
    """Has the disk hold zeros in the place of a record."""
    data = bytearray(path.read_bytes())
    data[place_of(sequence) : place_of(sequence + 1)] = bytes(RECORD_BYTES)
    path.write_bytes(data)


def test_records_that_were_not_waited_for_may_be_lost_in_any_order(tmp_path: Path) -> None:
    path = synced_up_to_two(tmp_path)
    lose(path, 4)
    assert numbers(tmp_path) == [1, 2, 3]
    assert path.stat().st_size == place_of(4)


def test_a_record_that_was_on_the_disk_is_not_taken_for_torn(tmp_path: Path) -> None:
    lose(synced_up_to_two(tmp_path), 2)
    with pytest.raises(JournalCorruptError, match=r"change 3 at byte .* was written when"):
        read_up(tmp_path)


# Other machines


def test_another_machine_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two_segments(tmp_path)
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert caplog.messages == []
    now = {**journal_reading.this_machine(), "numpy": "0.1"}
    monkeypatch.setattr(journal_reading, "this_machine", lambda: now)
    with caplog.at_level(logging.WARNING):
        assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6]
    (message,) = caplog.messages
    assert f"(numpy was {np.__version__} and is 0.1): what is replayed is not bitwise" in message


# Memory


def test_reading_keeps_one_record_in_memory(tmp_path: Path) -> None:
    gradients = np.ones((1024, 128), np.float32)
    keys = np.arange(1024)
    change = changes.push("t", keys, {"w": gradients}, by=BY)
    journal: Journal = open_journal(tmp_path)
    for sequence in range(1, 41):
        journal.append(change, sequence)
    journal.close()
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_journal(tmp_path, bank_id="b", shard_index=1, after=0)) == 40
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A payload, the arrays made of it, and those of the change before.
    assert peak < 4 * gradients.nbytes
