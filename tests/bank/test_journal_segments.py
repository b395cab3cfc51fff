from __future__ import annotations

from pathlib import Path

import pytest

from carls_jax.bank.journal_segments import (
    PAGE_BYTES,
    Page,
    SegmentFile,
    differences,
    read_page,
    segment_files,
    segment_path,
    this_machine,
)
from carls_jax.errors import BankIdentityError, InvalidInputError, JournalCorruptError

PAGE = Page("b", 1, 5, "00" * 8, {"numpy": "2.0", "cpu features": "avx,sse"}, False)


def written(directory: Path, data: bytes, *, first: int = 5) -> SegmentFile:
    path = segment_path(directory, first)
    path.write_bytes(data)
    return SegmentFile(path, first)


def test_a_page_comes_back_as_it_was(tmp_path: Path) -> None:
    data = PAGE.encode()
    assert len(data) == PAGE_BYTES
    assert read_page(written(tmp_path, data)) == PAGE
    assert read_page(written(tmp_path, data + b"records")) == PAGE


@pytest.mark.parametrize("length", [0, 1, 8, 100, PAGE_BYTES - 1])
def test_a_page_that_was_never_whole_is_none(tmp_path: Path, length: int) -> None:
    assert read_page(written(tmp_path, PAGE.encode()[:length])) is None
    assert read_page(written(tmp_path, bytes(length))) is None


def test_a_damaged_page_is_told_from_one_that_was_never_whole(tmp_path: Path) -> None:
    data = PAGE.encode()
    for place in [*range(0, 400), PAGE_BYTES - 1]:
        altered = bytearray(data)
        altered[place] ^= 1
        assert read_page(written(tmp_path, bytes(altered))) is None
        with pytest.raises(JournalCorruptError, match=r"5\.log is damaged in its first 4096"):
            read_page(written(tmp_path, bytes(altered) + b"r"))


def test_another_format_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("carls_jax.bank.journal_segments.FORMAT", 2)
        data = PAGE.encode()
    with pytest.raises(JournalCorruptError, match=r"has format 2, and this .* reads 1: start"):
        read_page(written(tmp_path, data))


@pytest.mark.parametrize(("bank_id", "shard_index"), [("c", 1), ("b", 0)])
def test_the_segment_of_another_bank_or_shard_is_refused(bank_id: str, shard_index: int) -> None:
    file = SegmentFile(Path("x.log"), 5)
    PAGE.check(file, bank_id="b", shard_index=1)
    with pytest.raises(BankIdentityError, match=r"of shard 1 of bank b, not of shard"):
        PAGE.check(file, bank_id=bank_id, shard_index=shard_index)


def test_a_renamed_segment_is_refused() -> None:
    with pytest.raises(JournalCorruptError, match=r"begins with change 5: name it 0{19}5\.log"):
        PAGE.check(SegmentFile(Path("x.log"), 4), bank_id="b", shard_index=1)


def test_an_identifier_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="bank_id of 5000 characters"):
        Page("b" * 5000, 0, 1, "", this_machine(), False).encode()


def test_this_machine_fits_beside_the_longest_name() -> None:
    assert len(Page("b" * 255, 0, 1, "00" * 8, this_machine(), False).encode()) == PAGE_BYTES


def test_segments_are_listed_in_order_and_nothing_else_is(tmp_path: Path) -> None:
    for first in (100, 7, 30):
        segment_path(tmp_path, first).write_bytes(b"abc")
    for name in ("1.log", "0" * 20 + ".log.old", "lost+found"):
        (tmp_path / name).touch()
    files = segment_files(tmp_path)
    assert [file.first for file in files] == [7, 30, 100]
    assert files[0].num_bytes == 3
    assert segment_files(tmp_path / "nowhere") == []


def test_this_machine_names_libraries_and_cpu() -> None:
    machine = this_machine()
    assert set(machine) == {"carls-jax", "numpy", "numba", "llvmlite", "cpu", "cpu features"}
    assert all(machine.values())
    assert differences(machine, dict(machine)) == ""


def test_differences_name_what_changed() -> None:
    before = {"numpy": "2.0", "cpu": "a", "cpu features": "avx,avx512f,sse"}
    now = {"numpy": "2.1", "cpu": "a", "cpu features": "amx,avx,sse"}
    assert differences(before, now) == "cpu features -avx512f +amx, numpy was 2.0 and is 2.1"
