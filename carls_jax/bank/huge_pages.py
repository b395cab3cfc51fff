"""Shared memory on pages of 2 MiB, so that finding a row's address costs the processor less.

A file without a name gets pages of 4 KiB. Linux 6.1 and later can put a block of them on one huge
page afterwards (`MADV_COLLAPSE`), whatever the system's own policy is, if the file is mapped at an
address that is a multiple of 2 MiB; so is every mapping of `map_file`, in the processes that read
it, too. Only blocks that are written throughout are collapsed: no memory is taken for it. Elsewhere
the memory stays as it is.

Source: madvise(2); Zach O'Keefe, "mm: userspace hugepage collapse" (2022).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.columns import MAP_NORESERVE
from carls_jax.bank.machine import address_of

HUGE_PAGE = 2 << 20

# Between two searches for new blocks while the memory grows: a tenth of the time is spent on them.
_SHORTEST_PAUSE_S = 0.25
_PAUSE_SHARE = 9.0
_MAX_FAILURES = 20
_MADV_COLLAPSE = 25  # no library names it yet
_PROT_NONE = 0
_MAP_FIXED = 0x10
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
_FAILED = ctypes.c_void_p(-1).value

_logger = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_file(descriptor: int, num_bytes: int, *, protection: int) -> NDArray[np.uint8]:
    """Maps a file from its beginning at a multiple of 2 MiB, without reserving memory for it.

    The mapping lasts as long as the returned array and views of it.

    Args:
      descriptor: Of the file; it may be closed afterwards.
      num_bytes: Size of the mapping.
      protection: `mmap.PROT_READ`, with or without `mmap.PROT_WRITE`.

    Returns:
      uint8 `[num_bytes]`.

    Raises:
      OSError: The system refuses.
    """
    size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    # Addresses that are nobody's, so that some are of the right kind; the others are given back.
    begin = _map(None, size + HUGE_PAGE, _PROT_NONE, _RESERVED, -1)
    at = -(-begin // HUGE_PAGE) * HUGE_PAGE
    try:
        _map(at, size, protection, mmap.MAP_SHARED | _MAP_FIXED | MAP_NORESERVE, descriptor)
    except OSError:
        _libc.munmap(begin, size + HUGE_PAGE)
        raise
    if at > begin:
        _libc.munmap(begin, at - begin)
    _libc.munmap(at + size, begin + HUGE_PAGE - at)
    mapping = (ctypes.c_uint8 * num_bytes).from_address(at)
    # At the program's end others may still read it.
    weakref.finalize(mapping, _libc.munmap, at, size).atexit = False
    array = np.frombuffer(memoryview(mapping), np.uint8)
    # A write to what is read-only would end the process.
    array.flags.writeable = bool(protection & mmap.PROT_WRITE)
    return array


def _map(at: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    address = _libc.mmap(at, size, protection, flags, descriptor, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
    return int(address)


class Collapser:
    """Puts what is written of a mapped file on huge pages, while it grows.

    Args:
      descriptor: Of the file, a memfd, open for as long as this object lives.
      mapping: Of the whole file, by `map_file`.
    """

    def __init__(self, descriptor: int, mapping: NDArray[np.uint8]) -> None:
        self._descriptor = descriptor
        self._mapping = mapping
        self._collapsed: set[int] = set()
        self._lock = threading.Lock()
        self._has_grown = False
        self._num_failures = 0  # searches after which some block was left, one after another
        self._is_followed = False
        self._is_refused = False  # by a system that has no such pages

    def grew(self) -> None:
        """Has written blocks looked for, by a thread that ends when there are no new ones."""
        self._has_grown = True
        if self._is_refused:
            return
        with self._lock:
            if self._is_followed:
                return
            self._is_followed = True
        follower = threading.Thread(
            target=_follow, args=(weakref.ref(self),), name="huge-pages", daemon=True
        )
        follower.start()

    def collapse(self) -> None:
        """Puts each block of 2 MiB that is written throughout on one page."""
        failures = []
        for block in self._written():
            if number := self._collapse(block):
                failures.append(number)
            if number == errno.EINVAL:
                self._is_refused = True
                return
        # Who reads or writes a page at this moment keeps it where it is, but not for long.
        if not failures:
            self._num_failures = 0
        elif self._num_failures < _MAX_FAILURES:
            self._num_failures += 1
            self._has_grown = True

    def _collapse(self, block: int) -> int:
        """Puts a block on one page, if it is not; returns 0, or the number of the error."""
        if block in self._collapsed:
            return 0
        address = address_of(self._mapping) + block * HUGE_PAGE
        if _libc.madvise(address, HUGE_PAGE, _MADV_COLLAPSE):
            number = ctypes.get_errno()
            _logger.debug("block %d stays as it is: %s", block, os.strerror(number))
            return number
        self._collapsed.add(block)
        return 0

    def _written(self) -> Iterator[int]:
        """Yields the blocks of the file that have no holes."""
        end = 0
        with suppress(OSError):  # what follows is a hole up to the end
            while True:
                begin = os.lseek(self._descriptor, end, os.SEEK_DATA)
                end = os.lseek(self._descriptor, begin, os.SEEK_HOLE)
                yield from range(-(-begin // HUGE_PAGE), end // HUGE_PAGE)

    def is_still(self) -> bool:
        """Tells whether the file has not grown since this was asked; if so nobody follows it."""
        with self._lock:
            has_grown, self._has_grown = self._has_grown, False
            self._is_followed = has_grown
            return not has_grown


def _follow(reference: weakref.ref[Collapser]) -> None:
    pause = threading.Event()
    while (collapser := reference()) is not None and not collapser.is_still():
        begun = time.monotonic()
        collapser.collapse()
        del collapser  # the memory may be freed meanwhile
        pause.wait(max(_SHORTEST_PAUSE_S, _PAUSE_SHARE * (time.monotonic() - begun)))
