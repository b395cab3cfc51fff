from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from carls_jax.bank.journal_segments import PAGE_BYTES, SegmentFile, read_page
from carls_jax.bank.journal_writing import SegmentWriter


def make(directory: Path, *, first: int = 1) -> SegmentWriter:
    return SegmentWriter(directory, bank_id="b", shard_index=0, first=first)


def records(segment: SegmentWriter) -> bytes:
    return segment.path.read_bytes()[PAGE_BYTES:]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond a length, as a quota or a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_segment_begins_with_its_page_and_a_mark_of_its_own(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, first=9)
    for segment in (first, second):
        page = read_page(SegmentFile(segment.path, segment.first))
        assert page is not None
        assert (page.bank_id, page.shard_index, page.first) == ("b", 0, segment.first)
        assert page.mark == segment.mark.hex()
        assert segment.num_bytes == PAGE_BYTES
        assert segment.path.stat().st_mode & 0o777 == 0o600
    assert first.mark != second.mark


def test_a_segment_never_takes_the_place_of_another(tmp_path: Path) -> None:
    before = make(tmp_path).path.read_bytes()
    with pytest.raises(FileExistsError):
        make(tmp_path)
    assert make(tmp_path, first=2).path.with_name(f"{1:020d}.log").read_bytes() == before


def test_records_of_more_pieces_than_the_system_takes_are_written_whole(tmp_path: Path) -> None:
    segment = make(tmp_path)
    pieces = [b"%d," % number for number in range(3000)]
    segment.append(pieces)
    segment.append([b"end"])
    assert records(segment) == b"".join(pieces) + b"end"
    assert segment.num_bytes == PAGE_BYTES + len(records(segment))


def test_a_write_that_is_cut_short_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = make(tmp_path)
    whole = os.pwritev

    def three_bytes(file: int, pieces: list[memoryview], offset: int) -> int:
        return whole(file, [b"".join(pieces)[:3]], offset)

    monkeypatch.setattr(os, "pwritev", three_bytes)
    segment.append([b"ab", memoryview(b"cdefgh"), b"i", b"jk"])
    assert records(segment) == b"abcdefghijk"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    segment = make(tmp_path)
    segment.append([b"kept"])
    with largest_file(PAGE_BYTES + 100):
        with pytest.raises(OSError, match="too large") as raised:
            segment.append([bytes(60), bytes(60)])
        assert raised.value.errno == errno.EFBIG
        assert segment.is_sound
        assert records(segment) == b"kept"
        segment.append([b", and more"])
    assert records(segment) == b"kept, and more"


def test_a_segment_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(100), pytest.raises(OSError, match="too large"):
        make(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_put_back_is_not_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "failed")

    segment = make(tmp_path)
    monkeypatch.setattr(os, "pwritev", fail)
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OSError, match="failed"):
        segment.append([b"x"])
    assert not segment.is_sound


def test_a_file_is_closed_with_its_last_user(tmp_path: Path) -> None:
    def is_open() -> bool:
        files = Path("/proc/self/fd")
        return any(os.path.realpath(one) == str(path) for one in files.iterdir())

    segment = make(tmp_path)
    path = segment.path.resolve()
    assert is_open()
    del segment
    assert not is_open()
