"""Keys: the 64-bit ids of rows, and the hash that spreads them.

The hash is SplitMix64 (`splitmix64`). Its bits have one user each, so that no choice disturbs
another: bits 0–15 place a key inside a partition of the key index, bits 16 and up choose the
shard, and the highest bits choose the partition.

n is the number of keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carls_jax.errors import InvalidInputError, KeyKindError, ShapeError

PADDING = -1
"""The key of no row: looked up it gives zeros, written it is ignored."""

FINGERPRINT = "blake2b64/1"
"""Name and version of `string_keys`. Another function of the text needs another version."""

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The step of a SplitMix64 counter."""

_KEY_IN_PLACE_OF_PADDING = np.int64(-2)
_HOME_BITS = np.uint64(16)


def int_keys(keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Converts integer keys to int64 [n]; an int64 array is returned as it is, not copied.

    Args:
      keys: [n] of any integer dtype, or a list of ints. Signed values keep their sign, so an
        int32 −1 is `PADDING`. An empty list is no keys.

    Raises:
      KeyKindError: `keys` holds something else than integers of at most 64 bits.
      ShapeError: `keys` is not [n].
      InvalidInputError: An unsigned key is above 2**63 − 1.
    """
    if isinstance(keys, list | tuple) and not keys:
        return np.empty(0, np.int64)
    try:
        array = np.asarray(keys)
    except ValueError as exc:
        raise ShapeError(f"keys must be a flat list or array [n]: {exc}") from exc
    if array.dtype.kind not in "iu":
        raise KeyKindError(
            f"keys must be integers from -2**63 to 2**63 - 1, received dtype {array.dtype}; "
            'for text declare the table with keys="str"'
        )
    if array.ndim != 1:
        raise ShapeError(f"keys must be [n], received shape {array.shape}; flatten them first")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InvalidInputError(
            f"keys must be at most 2**63 - 1, received {int(array.max())}; "
            "reinterpret larger ones with `keys.view(numpy.int64)`"
        )
    return array.astype(np.int64, copy=False)


def string_keys(strings: Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Fingerprints text to keys, int64 [n]: the function that `FINGERPRINT` names.

    It is BLAKE2b with a digest of 8 bytes over the UTF-8 text, read as a little-endian int64.
    The one text that would give `PADDING` gets −2. Among a million texts the chance that any
    two share a key is 3 in 10**8.

    Args:
      strings: List, tuple or array [n] of str. The empty text is an ordinary key.

    Raises:
      KeyKindError: `strings` is one text, or holds something else than str.
      ShapeError: `strings` is an array of another rank.
      InvalidInputError: A text has no UTF-8 form (a lone surrogate).
    """
    if isinstance(strings, np.ndarray):
        if strings.ndim != 1:
            raise ShapeError(f"strings must be [n], received shape {strings.shape}")
        strings = strings.tolist()
    if not isinstance(strings, list | tuple):
        raise KeyKindError(
            f"strings must be a list, tuple or array of str, received {strings!r}; "
            "wrap a single text in a list"
        )
    digests = b"".join(map(_digest, strings))
    keys = np.frombuffer(digests, "<i8").astype(np.int64)
    keys[keys == PADDING] = _KEY_IN_PLACE_OF_PADDING
    return keys


def _digest(text: object) -> bytes:
    if not isinstance(text, str):
        raise KeyKindError(
            f"strings must hold str only, received {text!r} of type {type(text).__name__}; "
            'for integers declare the table with keys="int"'
        )
    try:
        return hashlib.blake2b(text.encode(), digest_size=8).digest()
    except UnicodeEncodeError as exc:
        raise InvalidInputError(f"strings must have a UTF-8 form, received {text!r}") from exc


def splitmix64(
    x: npt.NDArray[np.uint64], *, out: npt.NDArray[np.uint64] | None = None
) -> npt.NDArray[np.uint64]:
    """Computes the first output of SplitMix64 from each state: a bijection that mixes all bits.

    Args:
      x: uint64 array of rank 1 or more (NumPy warns of overflow in rank 0).
      out: Where to put the result; may be `x` itself.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014);
    constants of Vigna's splitmix64.c.
    """
    mixed = np.add(x, GOLDEN_GAMMA, out=out)
    shifted = mixed >> np.uint64(30)
    mixed ^= shifted
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed ^= shifted
    mixed *= np.uint64(0x94D049BB133111EB)
    np.right_shift(mixed, np.uint64(31), out=shifted)
    mixed ^= shifted
    return mixed


def shard_of(keys: npt.NDArray[np.int64], num_shards: int) -> npt.NDArray[np.int64]:
    """Chooses the shard of each key: int64 [n] in [0, num_shards).

    `PADDING` is sent to some shard like any key; callers leave it out beforehand.

    Raises:
      InvalidInputError: `num_shards` is below 1.
    """
    if num_shards < 1:
        raise InvalidInputError(f"num_shards must be at least 1, received {num_shards}")
    hashes = splitmix64(keys.view(np.uint64))
    return ((hashes >> _HOME_BITS) % np.uint64(num_shards)).view(np.int64)
