from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from carls_jax.bank import huge_pages
from carls_jax.bank.huge_pages import HUGE_PAGE, Collapser, map_file

NUM_BLOCKS = 8
WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("test-huge-pages")
    os.ftruncate(descriptor, NUM_BLOCKS * HUGE_PAGE)
    yield descriptor
    os.close(descriptor)


def mapped(file: int, protection: int = WRITABLE) -> NDArray[np.uint8]:
    mapping = map_file(file, NUM_BLOCKS * HUGE_PAGE, protection=protection)
    return mapping.reshape(NUM_BLOCKS, HUGE_PAGE)


def num_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("test-huge-pages")


def huge_kilobytes() -> int:
    """Counts the shared memory that this process reaches by huge pages."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("ShmemPmdMapped"))


def is_supported() -> bool:
    descriptor = os.memfd_create("probe")
    try:
        os.ftruncate(descriptor, HUGE_PAGE)
        mapping = map_file(descriptor, HUGE_PAGE, protection=WRITABLE)
        mapping[:] = 1
        return Collapser(descriptor, mapping)._collapse(0) == 0
    finally:
        os.close(descriptor)


needs_huge_pages = pytest.mark.skipif(
    not is_supported(), reason="this system does not collapse shared memory"
)


def test_a_mapping_begins_at_a_multiple_of_a_huge_page(file: int) -> None:
    for _ in range(3):
        assert mapped(file).ctypes.data % HUGE_PAGE == 0


def test_mappings_of_a_file_show_the_same_bytes(file: int) -> None:
    written, read = mapped(file), mapped(file, mmap.PROT_READ)
    written[3, 5] = 7
    assert read[3, 5] == 7
    assert read.sum() == 7


def test_a_mapping_lasts_as_long_as_its_arrays(file: int) -> None:
    before = num_mappings()
    array = mapped(file)
    part = array[2]
    del array
    part[:] = 3
    assert num_mappings() == before + 1
    del part
    assert num_mappings() == before


def test_addresses_around_a_mapping_are_given_back(file: int) -> None:
    before = len(Path("/proc/self/maps").read_text().splitlines())
    arrays = [mapped(file) for _ in range(20)]
    del arrays
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= before + 2


def test_what_cannot_be_mapped_is_refused() -> None:
    before = Path("/proc/self/maps").read_text().count("\n")
    with pytest.raises(OSError, match="mmap"):
        map_file(-1, HUGE_PAGE, protection=WRITABLE)
    with pytest.raises(OSError, match="mmap"):
        map_file(0, 1 << 62, protection=WRITABLE)
    assert Path("/proc/self/maps").read_text().count("\n") <= before + 1


@needs_huge_pages
def test_blocks_that_are_written_throughout_are_collapsed_and_others_take_no_memory(
    file: int,
) -> None:
    mapping = map_file(file, NUM_BLOCKS * HUGE_PAGE, protection=WRITABLE)
    array = mapping.reshape(NUM_BLOCKS, HUGE_PAGE)
    array[[0, 1, 4]] = np.arange(HUGE_PAGE, dtype=np.uint8)
    array[6, : HUGE_PAGE // 2] = 1
    num_bytes, before = os.fstat(file).st_blocks * 512, huge_kilobytes()
    Collapser(file, mapping).collapse()
    assert huge_kilobytes() == before + 3 * HUGE_PAGE // 1024
    assert os.fstat(file).st_blocks * 512 == num_bytes
    for block in (0, 1, 4):
        assert_array_equal(array[block], np.arange(HUGE_PAGE, dtype=np.uint8))
    assert array[6, : HUGE_PAGE // 2].all()


@needs_huge_pages
def test_who_maps_the_file_elsewhere_gets_huge_pages_too(file: int) -> None:
    mapping = map_file(file, NUM_BLOCKS * HUGE_PAGE, protection=WRITABLE)
    mapping[:] = 5
    reader = mapped(file, mmap.PROT_READ)
    assert (reader == 5).all()
    Collapser(file, mapping).collapse()
    before = huge_kilobytes()
    assert (reader == 5).all()
    assert huge_kilobytes() == before + NUM_BLOCKS * HUGE_PAGE // 1024


@needs_huge_pages
def test_what_grows_is_followed_until_it_stands_still(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "_SHORTEST_PAUSE_S", 0.001)
    mapping = map_file(file, NUM_BLOCKS * HUGE_PAGE, protection=WRITABLE)
    array = mapping.reshape(NUM_BLOCKS, HUGE_PAGE)
    collapser, before = Collapser(file, mapping), huge_kilobytes()
    for block in range(NUM_BLOCKS):
        array[block] = block
        collapser.grew()
        collapser.grew()  # it has a thread already
    assert sum(one.name == "huge-pages" for one in threading.enumerate()) <= 1
    for thread in threading.enumerate():
        if thread.name == "huge-pages":
            thread.join()
    assert huge_kilobytes() == before + NUM_BLOCKS * HUGE_PAGE // 1024
    assert (array == np.arange(NUM_BLOCKS)[:, None]).all()


class Refusing:
    """Stands for a system that answers every request with an error."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_calls = 0

    def madvise(self, *_: object) -> int:
        self.num_calls += 1
        ctypes.set_errno(self.number)
        return -1


@pytest.mark.parametrize(
    ("number", "num_calls"),
    [(errno.EINVAL, 1), (errno.EAGAIN, 2 * (1 + huge_pages._MAX_FAILURES))],
)
def test_it_gives_up_where_the_system_refuses(
    file: int, number: int, num_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "_SHORTEST_PAUSE_S", 0.001)
    monkeypatch.setattr(huge_pages, "_PAUSE_SHARE", 0.0)
    mapping = map_file(file, NUM_BLOCKS * HUGE_PAGE, protection=WRITABLE)
    mapping[: 2 * HUGE_PAGE] = 1
    refusing = Refusing(number)
    collapser = Collapser(file, mapping)
    monkeypatch.setattr(huge_pages, "_libc", refusing)
    collapser.grew()
    for thread in threading.enumerate():
        if thread.name == "huge-pages":
            thread.join()
    assert refusing.num_calls == num_calls
    if number == errno.EINVAL:
        collapser.grew()
        assert all(one.name != "huge-pages" for one in threading.enumerate())


def test_a_mapping_that_nobody_needs_is_not_kept_by_the_search(file: int) -> None:
    before = num_mappings()
    mapping = map_file(file, NUM_BLOCKS * HUGE_PAGE, protection=WRITABLE)
    collapser = Collapser(file, mapping)
    collapser.grew()
    del mapping, collapser
    for thread in threading.enumerate():
        if thread.name == "huge-pages":
            thread.join()
    assert num_mappings() == before
