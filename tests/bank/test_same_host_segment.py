from __future__ import annotations

import fcntl
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from carls_jax.bank.same_host_segment import make_segment, map_segment

NUM_BYTES = 1 << 16


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = make_segment(NUM_BYTES)
    yield descriptor
    os.close(descriptor)


def num_mappings() -> int:
    """Returns how many pieces of segments this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:carls-jax")


def test_what_one_mapping_writes_the_other_reads(descriptor: int) -> None:
    one, other = map_segment(descriptor, NUM_BYTES), map_segment(descriptor, NUM_BYTES)
    assert len(one) == NUM_BYTES
    assert bytes(other[-3:]) == bytes(3)

    one[-3:] = b"abc"

    assert bytes(other[-3:]) == b"abc"


@pytest.mark.parametrize("num_bytes", [0, NUM_BYTES - 1, NUM_BYTES + 1])
def test_nobody_can_change_its_size(descriptor: int, num_bytes: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, num_bytes)
    assert os.fstat(descriptor).st_size == NUM_BYTES


def test_nobody_can_seal_it_against_writing(descriptor: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_memory_whose_size_could_change_is_refused() -> None:
    descriptor = os.memfd_create("carls-jax", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, NUM_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with pytest.raises(OSError, match=f"not {NUM_BYTES} sealed bytes"):
            map_segment(descriptor, NUM_BYTES)
    finally:
        os.close(descriptor)


def test_memory_of_another_size_is_refused(descriptor: int) -> None:
    with pytest.raises(OSError, match="not 65537 sealed bytes"):
        map_segment(descriptor, NUM_BYTES + 1)


def test_its_memory_is_there_from_the_start(descriptor: int) -> None:
    assert os.fstat(descriptor).st_blocks * 512 >= NUM_BYTES


def test_it_goes_with_the_last_view() -> None:
    before = num_mappings()
    descriptor = make_segment(mmap.PAGESIZE)
    part = map_segment(descriptor, mmap.PAGESIZE)[10:20]
    os.close(descriptor)
    assert num_mappings() == before + 1

    del part

    assert num_mappings() == before


def test_a_system_without_room_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_FSIZE, (NUM_BYTES - 1, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            make_segment(NUM_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir("/proc/self/fd") == before
