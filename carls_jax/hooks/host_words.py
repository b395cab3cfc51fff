"""How rows cross between host and device, on the host: as uint32 words, with NumPy.

A word holds a float32 bit by bit, or an integer or bool of at most 32 bits as its number. A 64-bit
integer is a pair of words, low then high, since JAX truncates it silently (unless x64 is on).
`device_words` is the same in JAX. n is the number of rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank.specs import Field
from carls_jax.errors import DtypeError, KeyKindError, ShapeError

Words = NDArray[np.uint32]

_CARRIERS = {
    "float32": "float32",
    "int8": "int32",
    "int16": "int32",
    "int32": "int32",
    "bool": "uint32",
    "uint8": "uint32",
    "uint16": "uint32",
    "uint32": "uint32",
    "int64": "int64",
}


def carrier(field: Field) -> str:
    """Returns the dtype that a field's numbers have as words: of 32 bits, or int64.

    Raises:
      DtypeError: It is float64, which JAX does not have.
    """
    try:
        return _CARRIERS[field.dtype]
    except KeyError:
        raise DtypeError(
            f"a field of dtype {field.dtype} cannot be used inside jit; allowed are "
            f"{', '.join(_CARRIERS)}"
        ) from None


def num_words(field: Field) -> int:
    """Returns how many words one row's value takes."""
    return math.prod(field.shape) * np.dtype(carrier(field)).itemsize // 4


def to_words(values: NDArray[Any], field: Field) -> Words:
    """Turns values `[n, *shape]` into words `[n, num_words]`."""
    flat = values.reshape(len(values), math.prod(field.shape))
    return np.ascontiguousarray(flat, carrier(field)).view(np.uint32)


def from_words(words: Words, field: Field) -> NDArray[Any]:
    """Turns words `[n, num_words]` into values `[n, *shape]`."""
    values = np.ascontiguousarray(words).view(carrier(field)).astype(field.dtype, copy=False)
    return values.reshape(len(words), *field.shape)


def split_keys(keys: ArrayLike) -> Words:
    """Turns 64-bit keys into the pairs that stand for them inside jit.

    Args:
      keys: int64 `[...]`, or other integers that fit.

    Returns:
      uint32 `[..., 2]`, low word first.

    Raises:
      KeyKindError: `keys` are not integers of at most 64 bits, signed if they have 64.
    """
    array = np.asarray(keys)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise KeyKindError(
            f"keys have dtype {array.dtype}, expected int64; of strings, split their fingerprints: "
            "split_keys(carls_jax.keys.string_keys(names))"
        )
    words = np.ascontiguousarray(array, "<i8").view("<u4")
    return words.reshape(*array.shape, 2)


def join_keys(pairs: ArrayLike) -> NDArray[np.int64]:
    """Turns uint32 pairs `[..., 2]` back into int64 keys `[...]`.

    Raises:
      ShapeError: The last axis is not 2.
      KeyKindError: `pairs` are not uint32.
    """
    array = np.asarray(pairs)
    if array.dtype != np.uint32:
        raise KeyKindError(f"pairs have dtype {array.dtype}, expected uint32")
    if array.shape[-1:] != (2,):
        raise ShapeError(f"pairs have shape {list(array.shape)}, expected [..., 2]")
    return np.ascontiguousarray(array).view(np.int64).reshape(array.shape[:-1])
