"""`TableMemory`: the arrays of a table in one mapping, which other processes may read.

It is a file without a name, as large as the table may ever get and sealed: only pages that were
written take memory, nobody can change its size, and those it is passed to can map it to read alone.
Where the system lacks such files the arrays are this process's own.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.columns import reserve
from carls_jax.bank.huge_pages import HUGE_PAGE, Collapser, map_file

Array = NDArray[Any]

# Linux 5.1; Python names it from 3.13 on.
_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = (
    sum(getattr(fcntl, name, 0) for name in ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL"))
    | _F_SEAL_FUTURE_WRITE
)
_PAGE = mmap.PAGESIZE
_COPIED_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """Says what an array is and where in the file it begins."""

    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that the array may take."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class TableMemory:
    """Holds arrays of zeros that take memory where they are written.

    Args:
      parts: The arrays' shapes and dtypes by name.

    Attributes:
      parts: The same, with offsets.
      arrays: The arrays by name. They live on for as long as they are used.
      descriptor: Of the file; -1 if there is none. It is closed with this object.
      num_bytes: Size of the file.

    Raises:
      BankFullError: The system can neither reserve nor allocate so many bytes.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts, self.num_bytes = _placed(parts)
        self.descriptor = -1
        self._collapser: Collapser | None = None
        try:
            self.descriptor, mapping = _sealed_file(self.num_bytes)
        except (OSError, OverflowError, AttributeError):
            self.arrays = {name: _reserved(part) for name, part in self.parts.items()}
        else:
            self._collapser = Collapser(self.descriptor, mapping)
            weakref.finalize(self._collapser, os.close, self.descriptor)
            self.arrays = _views(mapping, self.parts)

    @property
    def is_shared(self) -> bool:
        """Whether other processes can read it."""
        return self.descriptor >= 0

    def read(self, name: str, start: int, out: Array) -> None:
        """Copies rows of an array from `start` on into a C-contiguous one `[m, ...]`."""
        if not self.is_shared:
            out[...] = self.arrays[name][start : start + out.shape[0]]
            return
        # Read through its mapping, shared memory that was never written would be taken for good:
        # a snapshot of a column of 512 MB of zeros took 512 MB.
        assert out.flags.c_contiguous, name
        place = self.parts[name].offset + start * self.arrays[name].strides[0]
        num_bytes = os.preadv(self.descriptor, [out.reshape(-1).view(np.uint8).data], place)
        assert num_bytes == out.nbytes, "the table's memory ended"

    def copy(self, name: str, to: Array) -> None:
        """Copies the first rows of an array over zeros `[m, ...]`, but where it has zeros, too."""
        block_rows = max(1, _COPIED_BYTES // to.strides[0])
        for start in range(0, to.shape[0], block_rows):
            block = np.empty_like(to[start : start + block_rows])
            self.read(name, start, block)
            if block.view(np.uint8).any():
                to[start : start + block_rows] = block

    def grew(self) -> None:
        """Tells that more of it was written, which is put on huge pages where the system can."""
        if self._collapser is not None:
            self._collapser.grew()


def attach(descriptor: int, parts: Mapping[str, Part]) -> dict[str, Array]:
    """Maps the arrays of a `TableMemory` of another process, to be read alone.

    Raises:
      OSError: The file is not sealed, or smaller than its parts, or cannot be mapped.
    """
    num_bytes = os.fstat(descriptor).st_size
    is_sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    if not is_sealed or not all(_fits(part, num_bytes) for part in parts.values()):
        raise OSError(f"the table's memory is not {num_bytes} sealed bytes that hold its parts")
    return _views(map_file(descriptor, num_bytes, protection=mmap.PROT_READ), parts)


def _fits(part: Part, num_bytes: int) -> bool:
    is_placed = part.offset >= 0 and part.offset % _PAGE == 0 and min(part.shape, default=0) >= 0
    return is_placed and part.offset + part.num_bytes <= num_bytes


def _placed(parts: Mapping[str, Part]) -> tuple[dict[str, Part], int]:
    placed, offset = {}, 0
    for name, part in parts.items():
        unit = HUGE_PAGE if part.num_bytes >= HUGE_PAGE else _PAGE
        offset = -(-offset // unit) * unit
        placed[name] = Part(part.shape, part.dtype, offset)
        offset += -(-part.num_bytes // _PAGE) * _PAGE
    return placed, max(offset, _PAGE)


def _sealed_file(num_bytes: int) -> tuple[int, NDArray[np.uint8]]:
    """Returns a new file of zeros, and the only mapping through which it can be written."""
    descriptor = os.memfd_create("carls-jax-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, num_bytes)
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        mapping = map_file(descriptor, num_bytes, protection=writable)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except (OSError, OverflowError, AttributeError):
        os.close(descriptor)
        raise
    return descriptor, mapping


def _views(mapping: NDArray[np.uint8], parts: Mapping[str, Part]) -> dict[str, Array]:
    return {
        name: np.ndarray(part.shape, part.dtype, buffer=mapping, offset=part.offset)
        for name, part in parts.items()
    }


def _reserved(part: Part) -> Array:
    return reserve(part.shape[0], part.shape[1:], part.dtype)


def parts_to_list(parts: Mapping[str, Part]) -> list[list[Any]]:
    """Returns parts as plain JSON types."""
    return [[name, list(part.shape), part.dtype, part.offset] for name, part in parts.items()]


def parts_from_list(described: Sequence[Sequence[Any]]) -> dict[str, Part]:
    """Undoes `parts_to_list`; raises TypeError or ValueError if it is given anything else."""
    return {
        name: Part(tuple(map(index, shape)), np.dtype(dtype).str, index(offset))
        for name, shape, dtype, offset in described
    }
