"""Arrays on the wire: headers that describe them, and their raw bytes cut into frames.

The bytes are little-endian and C-ordered, and those of one array follow those of the one before
without padding. Whatever comes from another process is checked before memory is given to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.specs import DTYPES
from carls_jax.errors import BankOverloadedError, DtypeError, InvalidInputError, ShapeError

Arrays = Mapping[str, NDArray[Any]]

# Beyond this a gRPC message loses half its throughput; below 256 KiB the cost per message shows.
FRAME_BYTES = 1 << 20
# 256 fields with a value, a mask and five kinds of metadata each, and what belongs to no field.
MAX_ARRAYS = 2048
MAX_DIMENSIONS = 16

_SENT = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
# PERFORMANCE: `dtype.name` takes 5 us, as long as all else that is done to describe an array.
_NAMES = {np.dtype(name): name for name in DTYPES}
_NAMES |= {dtype.newbyteorder(): name for dtype, name in _NAMES.items()}


def describe(arrays: Arrays) -> list[pb.ArrayHeader]:
    """Returns the headers of arrays, in order.

    Raises:
      DtypeError: An array is of a dtype that is not sent, such as object.
    """
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise _dtype_error(name, array.dtype.name)
    return [
        pb.ArrayHeader(name=name, dtype=_NAMES[array.dtype], shape=array.shape)
        for name, array in arrays.items()
    ]


def num_bytes(arrays: Arrays) -> int:
    """Returns how many bytes the arrays are on the wire."""
    return sum(array.nbytes for array in arrays.values())


def cut(arrays: Arrays, *, frame_bytes: int = FRAME_BYTES) -> Iterator[list[memoryview]]:
    """Cuts the bytes of arrays into frames of exactly `frame_bytes`, the last one shorter.

    A frame is the pieces of arrays that it is made of, not copied. There is at least one frame.
    """
    return cut_bytes(map(bytes_of, arrays.values()), frame_bytes=frame_bytes)


def cut_bytes(all_data: Iterable[memoryview], *, frame_bytes: int) -> Iterator[list[memoryview]]:
    """Cuts bytes as `cut` does."""
    pieces: list[memoryview] = []
    room = frame_bytes
    for data in all_data:
        while data:
            if not room:
                yield pieces
                pieces, room = [], frame_bytes
            pieces.append(data[:room])
            data = data[room:]
            room -= len(pieces[-1])
    yield pieces


class Assembly:
    """Puts arrays together again from the frames they were cut into.

    Not for use by several threads at once.

    Args:
      headers: What the sender says will come.
      max_bytes: The most that may come.

    Attributes:
      num_bytes: How many bytes will come.

    Raises:
      InvalidInputError: A header is forged: no such dtype, an impossible shape, a repeated name.
      BankOverloadedError: More than `max_bytes` would come.
    """

    def __init__(self, headers: Iterable[pb.ArrayHeader], *, max_bytes: int) -> None:
        described = list(headers)
        if len(described) > MAX_ARRAYS:
            raise InvalidInputError(f"{len(described)} arrays: allowed are {MAX_ARRAYS}")
        shapes = list(map(_checked_shape, described))
        self.num_bytes = sum(
            math.prod(shape) * _SENT[header.dtype].itemsize
            for shape, header in zip(shapes, described, strict=True)
        )
        if self.num_bytes > max_bytes:
            raise BankOverloadedError(
                f"arrays of {self.num_bytes} bytes: allowed are {max_bytes} at once; send fewer "
                "rows per call"
            )
        self._arrays = {
            header.name: np.empty(shape, _SENT[header.dtype])
            for shape, header in zip(shapes, described, strict=True)
        }
        if len(self._arrays) < len(described):
            raise InvalidInputError(f"array names repeat: {[one.name for one in described]}")
        self._gaps = [bytes_of(array) for array in reversed(self._arrays.values())]
        self._missing = self.num_bytes

    def add(self, pieces: Iterable[memoryview]) -> None:
        """Takes the bytes of the next frame.

        Raises:
          InvalidInputError: More bytes came than the headers say.
        """
        for piece in pieces:
            if len(piece) > self._missing:
                raise InvalidInputError(
                    f"{self.num_bytes - self._missing + len(piece)} bytes came: the headers say "
                    f"{self.num_bytes}"
                )
            self._missing -= len(piece)
            self._fill(piece)

    def _fill(self, data: memoryview) -> None:
        while data:
            gap = self._gaps.pop()
            taken = min(len(gap), len(data))
            gap[:taken] = data[:taken]
            data = data[taken:]
            if taken < len(gap):
                self._gaps.append(gap[taken:])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the arrays, each in memory of its own.

        Raises:
          InvalidInputError: Fewer bytes came than the headers say.
        """
        if self._missing:
            raise InvalidInputError(
                f"{self.num_bytes - self._missing} bytes came: the headers say {self.num_bytes}"
            )
        # On a big-endian machine the bytes are put in its order; elsewhere nothing is copied.
        return {
            name: array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
            for name, array in self._arrays.items()
        }


def bytes_of(array: NDArray[Any]) -> memoryview:
    """Returns an array's bytes as they are sent; copied only where they lie otherwise."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _checked_shape(header: pb.ArrayHeader) -> tuple[int, ...]:
    """Returns the shape that a header describes."""
    if header.dtype not in _SENT:
        raise _dtype_error(header.name, header.dtype)
    shape = tuple(header.shape)
    # NumPy makes no array that would be too large, not even where a size of 0 leaves it empty.
    is_too_large = 0 in shape and math.prod(filter(None, shape)) >= 1 << 59
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or is_too_large:
        raise ShapeError(
            f"array {header.name!r} has shape {list(shape)}: allowed are at most "
            f"{MAX_DIMENSIONS} sizes from 0"
        )
    return shape


def _dtype_error(name: str, dtype: str) -> DtypeError:
    return DtypeError(f"array {name!r} has dtype {dtype!r}: allowed are {', '.join(DTYPES)}")
