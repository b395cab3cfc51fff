"""Whatever becomes of a journal's files, it gives back what it kept, or says that it cannot."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank.journal import Journal, read_journal
from carls_jax.bank.journal_segments import PAGE_BYTES
from carls_jax.errors import JournalCorruptError
from tests.properties.test_histories import Kept, any_change, kept, read_back

histories = st.lists(any_change().map(kept), min_size=1, max_size=8)
lengths = st.sampled_from([1, 5000, 1 << 20])
modes = st.sampled_from(["process", "fsync"])


def record(
    directory: Path, history: list[Kept], *, mode: Any, max_segment_bytes: int
) -> list[tuple[Path, int]]:
    """Records changes; returns the file that each is in, and how long it is with it."""
    journal = Journal(
        directory,
        mode=mode,
        bank_id="b",
        shard_index=0,
        after=0,
        max_segment_bytes=max_segment_bytes,
    )
    ends = []
    for sequence, one in enumerate(history, start=1):
        journal.append(read_back(one), sequence)
        journal.wait(sequence)
        path = max(directory.iterdir())
        ends.append((path, path.stat().st_size))
    journal.close()
    return ends


def read_until_told(directory: Path) -> tuple[list[Kept], bool]:
    """Returns the changes of a journal, and whether it ended in an error."""
    read = []
    try:
        for sequence, change in read_journal(directory, bank_id="b", shard_index=0, after=0):
            read.append(kept(change))
            assert sequence == len(read)
    except JournalCorruptError:
        return read, True
    return read, False


@settings(max_examples=50, deadline=None)
@given(histories, modes, lengths, st.data())
def test_cut_after_any_byte_all_whole_records_come_back(
    history: list[Kept], mode: str, length: int, data: Any
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ends = record(directory, history, mode=mode, max_segment_bytes=length)
        last = ends[-1][0]
        cut = data.draw(st.integers(0, last.stat().st_size))
        last.write_bytes(last.read_bytes()[:cut])
        num_whole = sum(path != last or end <= cut for path, end in ends)

        assert read_until_told(directory) == (history[:num_whole], False)
        # The changes that come after the crash are found behind them.
        more = Journal(directory, mode="process", bank_id="b", shard_index=0, after=num_whole)
        more.append(read_back(history[0]), num_whole + 1)
        more.close()
        assert read_until_told(directory) == ([*history[:num_whole], history[0]], False)


@settings(max_examples=100, deadline=None)
@given(histories, modes, lengths, st.data())
def test_an_altered_byte_never_makes_another_change(
    history: list[Kept], mode: str, length: int, data: Any
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ends = record(directory, history, mode=mode, max_segment_bytes=length)
        path = data.draw(st.sampled_from(sorted(directory.iterdir())))
        altered = bytearray(path.read_bytes())
        place = data.draw(
            st.integers(0, len(altered) - 1) | st.integers(PAGE_BYTES, len(altered) - 1)
        )
        altered[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(altered)

        read, was_told = read_until_told(directory)

        of_file = [i for i, (where, _) in enumerate(ends) if where == path]
        hit = of_file[0] if place < PAGE_BYTES else next(i for i in of_file if place < ends[i][1])
        # All before it is there. It is told, unless it may be where a killed writer stopped.
        assert read == history[:hit]
        assert was_told == (hit < len(history) - 1 or place < PAGE_BYTES)


@settings(max_examples=100, deadline=None)
@given(histories, st.data())
def test_any_bytes_in_the_place_of_others_never_make_another_change(
    history: list[Kept], data: Any
) -> None:
    """Bytes are overwritten, put in or taken out anywhere, as by a disk or a hand that errs."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        record(directory, history, mode="process", max_segment_bytes=1 << 20)
        (path,) = directory.iterdir()
        before = path.read_bytes()
        start = data.draw(st.integers(0, len(before)))
        stop = data.draw(st.integers(start, min(len(before), start + 300)))
        path.write_bytes(before[:start] + data.draw(st.binary(max_size=300)) + before[stop:])

        read, _ = read_until_told(directory)

        assert read == history[: len(read)]
