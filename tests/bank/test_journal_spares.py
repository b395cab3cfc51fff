"""Segments that are written over files of earlier ones."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from carls_jax.bank.journal import Journal
from carls_jax.bank.journal_segments import PAGE_BYTES, segment_path
from carls_jax.bank.journal_spares import MAX_SPARES, Spares
from carls_jax.errors import JournalCorruptError
from tests.bank.journals import a_change, names, numbers, open_journal

MODES = pytest.mark.parametrize("mode", ["process", "fsync"])


def add(journal: Journal, first: int, last: int) -> None:
    for sequence in range(first, last + 1):
        journal.append(a_change(sequence), sequence)
        journal.wait(sequence)


def reusing(directory: Path, *, mode: str = "process") -> Journal:
    """Returns a journal whose changes 12 to 14 are in a file that held changes 1 to 10."""
    journal = open_journal(directory, mode=mode)
    add(journal, 1, 10)
    first = os.stat(segment_path(directory, 1))
    journal.cut(9)
    add(journal, 11, 11)
    journal.cut(10)  # gives the first file up
    journal.cut(11)  # begins another
    add(journal, 12, 14)
    present = os.stat(segment_path(directory, 12))
    assert (present.st_ino, present.st_size) == (first.st_ino, first.st_size)
    return journal


@MODES
def test_a_needless_file_is_written_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    journal = reusing(tmp_path, mode=mode)
    assert journal.num_bytes < os.stat(segment_path(tmp_path, 12)).st_size
    # Nobody closed it, as after a crash.
    assert numbers(tmp_path, after=11) == [12, 13, 14]
    assert os.stat(segment_path(tmp_path, 12)).st_size == journal.num_bytes
    assert not caplog.records  # what was behind the last change is nobody's loss
    journal.close()


def test_a_file_ends_with_its_records_once_the_journal_was_closed(tmp_path: Path) -> None:
    journal = reusing(tmp_path)
    journal.close()
    assert os.stat(segment_path(tmp_path, 12)).st_size == journal.num_bytes
    assert numbers(tmp_path, after=11) == [12, 13, 14]


def test_files_that_follow_are_read_on(tmp_path: Path) -> None:
    journal = reusing(tmp_path)
    journal.cut(12)  # ends the present file, which holds needed changes, too
    add(journal, 15, 16)
    assert names(tmp_path) == [12, 15]
    assert numbers(tmp_path, after=12) == [13, 14, 15, 16]
    journal.close()


def test_a_file_without_a_change_is_no_obstacle(tmp_path: Path) -> None:
    journal = reusing(tmp_path)
    journal.cut(13)
    journal.cut(14)
    assert numbers(tmp_path, after=14) == []
    add(open_journal(tmp_path, after=14), 15, 15)
    assert numbers(tmp_path, after=14) == [15]
    journal.close()


def test_a_torn_record_is_told_from_what_was_there_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = reusing(tmp_path)
    end = journal.num_bytes
    write = os.pwritev
    torn = tmp_path / "torn"

    def stop_halfway(file: int, pieces: list[bytes], offset: int) -> int:
        write(file, [pieces[0][:30]], offset)
        torn.write_bytes(segment_path(tmp_path, 12).read_bytes())
        return write(file, pieces, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", stop_halfway)
        add(journal, 15, 15)
    journal.close()
    torn.replace(segment_path(tmp_path, 12))
    with caplog.at_level(logging.WARNING):
        assert numbers(tmp_path, after=11) == [12, 13, 14]
    assert "ends in a torn record" in caplog.text
    assert os.stat(segment_path(tmp_path, 12)).st_size == end


@pytest.mark.parametrize("is_last", [True, False])
def test_damage_is_damage(tmp_path: Path, is_last: bool) -> None:
    journal = reusing(tmp_path)
    if not is_last:
        journal.cut(12)
        add(journal, 15, 15)
    with segment_path(tmp_path, 12).open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\0" * 8)
    with pytest.raises(JournalCorruptError, match=rf"at byte {PAGE_BYTES}"):
        numbers(tmp_path, after=11)
    journal.close()


def test_a_start_deletes_what_the_process_before_it_had_spare(tmp_path: Path) -> None:
    journal = reusing(tmp_path)
    assert list(tmp_path.glob("*.spare"))
    assert numbers(tmp_path, after=11) == [12, 13, 14]
    open_journal(tmp_path, after=14).close()
    assert not list(tmp_path.glob("*.spare"))
    journal.close()


def test_there_are_only_so_many(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    for number in range(MAX_SPARES + 2):
        path = segment_path(tmp_path, number)
        path.touch()
        spares.give(path)
        assert not path.exists()
    assert len(list(tmp_path.iterdir())) == MAX_SPARES
    taken = {spares.take() for _ in range(MAX_SPARES)}
    assert taken == set(tmp_path.iterdir())
    assert spares.take() is None


def test_a_file_that_somebody_deleted_is_no_spare(tmp_path: Path) -> None:
    spares = Spares(tmp_path)
    spares.give(tmp_path / "gone.log")
    assert spares.take() is None
