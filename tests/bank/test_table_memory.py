from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.table_memory import Part, TableMemory, attach, parts_from_list, parts_to_list
from carls_jax.errors import BankFullError

PARTS = {
    "a": Part((1000, 3), "float32"),
    "b": Part((1 << 33,), "int64"),
    "c": Part((1,), "uint8"),
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16


@pytest.fixture
def memory() -> TableMemory:
    memory = TableMemory(PARTS)
    memory.arrays["a"][:] = 1.0
    return memory


@contextmanager
def opened(descriptor: int, flags: int) -> Iterator[int]:
    """Gives another descriptor of a file, opened anew as its owner may."""
    again = os.open(f"/proc/self/fd/{descriptor}", flags)
    try:
        yield again
    finally:
        os.close(again)


def test_arrays_are_zeros_that_take_memory_where_they_are_written(memory: TableMemory) -> None:
    assert memory.is_shared
    assert memory.num_bytes > 1 << 36
    assert memory.arrays["b"].shape == (1 << 33,)
    memory.arrays["b"][-1] = 7
    assert memory.arrays["b"][-2:].tolist() == [0, 7]
    assert not memory.arrays["c"].any()
    assert os.fstat(memory.descriptor).st_blocks * 512 < 1 << 20


def test_another_mapping_sees_what_is_written(memory: TableMemory) -> None:
    arrays = attach(memory.descriptor, memory.parts)
    memory.arrays["a"][999] = 5.0
    memory.arrays["b"][1 << 32] = -1
    assert arrays["a"][[0, 999], 2].tolist() == [1, 5]
    assert arrays["b"][1 << 32] == -1
    for array in arrays.values():
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_arrays_outlive_the_object_and_its_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    num_mappings = Path("/proc/self/maps").read_text().count("carls-jax-table")
    memory = TableMemory(PARTS)
    own, others = memory.arrays["a"], attach(memory.descriptor, memory.parts)["a"]
    del memory
    own[0] = 3.0
    assert others[0].tolist() == [3, 3, 3]
    del own, others
    assert {*os.listdir("/proc/self/fd")} <= {*before}
    assert Path("/proc/self/maps").read_text().count("carls-jax-table") == num_mappings


def write_through(descriptor: int) -> None:
    os.pwrite(descriptor, b"x", 0)


def map_to_write(descriptor: int) -> None:
    mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_WRITE)


def truncate(descriptor: int) -> None:
    os.ftruncate(descriptor, mmap.PAGESIZE)


def enlarge(descriptor: int) -> None:
    os.ftruncate(descriptor, 1 << 40)


def fallocate(descriptor: int, mode: int) -> None:
    if _libc.fallocate(descriptor, mode, 0, mmap.PAGESIZE):
        raise OSError(ctypes.get_errno(), "fallocate")


def punch_a_hole(descriptor: int) -> None:
    fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)


def zero_a_range(descriptor: int) -> None:
    try:
        fallocate(descriptor, FALLOC_FL_ZERO_RANGE)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise PermissionError from error


def seal_more(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def unprotect(descriptor: int) -> None:
    mapping = mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    array = np.frombuffer(mapping, np.uint8)
    both = mmap.PROT_READ | mmap.PROT_WRITE
    if _libc.mprotect(array.ctypes.data, mmap.PAGESIZE, both):
        raise OSError(ctypes.get_errno(), "mprotect")


HARM = [
    write_through,
    map_to_write,
    truncate,
    enlarge,
    punch_a_hole,
    zero_a_range,
    seal_more,
    unprotect,
]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("is_opened_anew", [False, True])
def test_nobody_it_is_passed_to_can_alter_it(
    memory: TableMemory, harm: Callable[[int], None], is_opened_anew: bool
) -> None:
    if is_opened_anew:
        with opened(memory.descriptor, os.O_RDWR) as descriptor, pytest.raises(PermissionError):
            harm(descriptor)
    else:
        with pytest.raises(PermissionError):
            harm(memory.descriptor)
    assert (memory.arrays["a"] == 1).all()
    memory.arrays["a"][0] = 2.0  # its owner can


def test_it_cannot_be_emptied_by_opening_it(memory: TableMemory) -> None:
    with pytest.raises(PermissionError), opened(memory.descriptor, os.O_RDWR | os.O_TRUNC):
        pass
    assert (memory.arrays["a"] == 1).all()


@pytest.mark.parametrize(
    "forged",
    [
        {"offset": -4096},
        {"offset": 1},
        {"offset": 1 << 50},
        {"shape": (-1, 3)},
        {"shape": (1 << 40, 3)},
        {"shape": (1 << 62, 1 << 62)},
    ],
)
def test_parts_that_do_not_fit_are_refused(memory: TableMemory, forged: dict[str, object]) -> None:
    parts = {**memory.parts, "a": replace(memory.parts["a"], **forged)}
    with pytest.raises(OSError, match="sealed bytes that hold its parts"):
        attach(memory.descriptor, parts)


def test_memory_that_could_shrink_under_a_reader_is_refused(memory: TableMemory) -> None:
    descriptor = os.memfd_create("carls-jax", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, memory.num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        with pytest.raises(OSError, match="sealed bytes"):
            attach(descriptor, memory.parts)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("opens", [lambda: os.open("/dev/zero", os.O_RDONLY), lambda: os.pipe()[0]])
def test_what_is_no_such_file_is_refused(memory: TableMemory, opens: Callable[[], int]) -> None:
    descriptor = opens()
    try:
        with pytest.raises(OSError):  # noqa: PT011, the system says which
            attach(descriptor, memory.parts)
    finally:
        os.close(descriptor)


def refuse(*_: object) -> int:
    raise OSError(errno.EPERM, "no memfd")


@pytest.mark.parametrize("where", ["memfd_create", "ftruncate"])
def test_without_such_files_the_arrays_are_this_processs_own(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, where, refuse)
    memory = TableMemory(PARTS)
    assert not memory.is_shared
    assert memory.descriptor == -1
    memory.arrays["a"][:] = 2.0
    memory.arrays["b"][-1] = 3
    assert_array_equal(memory.arrays["a"], 2.0)
    assert {*os.listdir("/proc/self/fd")} <= {*before}


def test_a_system_that_lacks_the_call_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert not TableMemory(PARTS).is_shared


def test_a_limit_on_file_sizes_is_no_error() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert not TableMemory(PARTS).is_shared
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_more_than_any_system_has_is_refused() -> None:
    with pytest.raises(BankFullError, match="lower the table's max_rows"):
        TableMemory({"a": Part((1 << 61,), "float64")})


def test_parts_survive_as_plain_types(memory: TableMemory) -> None:
    assert parts_from_list(parts_to_list(memory.parts)) == {
        name: replace(part, dtype=np.dtype(part.dtype).str) for name, part in memory.parts.items()
    }


@pytest.mark.parametrize(
    "described",
    [
        None,
        [["a"]],
        [["a", 3, "float32", 0]],
        [["a", [1.5], "float32", 0]],
        [["a", [1], "no dtype", 0]],
        [["a", [1], "float32", None]],
        [["a", [1], "float32", 0, 0]],
    ],
)
def test_what_describes_no_parts_is_refused(described: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        parts_from_list(described)
