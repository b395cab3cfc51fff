"""How rows cross between host and device, on the device: `host_words` in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from carls_jax.bank.changes import NO_STEP
from carls_jax.bank.specs import Field
from carls_jax.errors import DtypeError, InvalidInputError, KeyKindError, ShapeError
from carls_jax.hooks.host_words import carrier, num_words
from carls_jax.keys import PADDING

_PADDING_WORDS = (PADDING & 0xFFFFFFFF, PADDING & 0xFFFFFFFF)


def check_whole(array: jax.Array | np.ndarray, *, name: str) -> None:
    """Checks that an array is not sharded, as far as its type tells: over Explicit mesh axes.

    Raises:
      InvalidInputError: It is sharded.
    """
    spec = jax.typeof(array).sharding.spec
    if any(spec):
        raise InvalidInputError(
            f"{name} is sharded as {spec}; call the hook inside jax.shard_map, where each device "
            "asks for its own part, or jax.reshard the array to be whole"
        )


def value_shape(field: Field) -> tuple[int, ...]:
    """Returns the shape of a row's value inside jit: the field's, and for int64 an axis of 2."""
    return (*field.shape, 2) if carrier(field) == "int64" else field.shape


def to_words(values: jax.Array, field: Field, *, batch: tuple[int, ...]) -> jax.Array:
    """Turns values `[*batch, *value_shape]` into words `[*batch, num_words]`."""
    flat = values.reshape(*batch, num_words(field))
    if carrier(field) == "int64":
        return flat
    return lax.bitcast_convert_type(flat.astype(carrier(field)), jnp.uint32)


def from_words(words: jax.Array, field: Field) -> jax.Array:
    """Turns words `[*batch, num_words]` into values `[*batch, *value_shape]`."""
    if carrier(field) != "int64":
        words = lax.bitcast_convert_type(words, carrier(field)).astype(field.dtype)
    return words.reshape(*words.shape[:-1], *value_shape(field))


def checked_values(
    values: ArrayLike, field: Field, *, name: str, batch: tuple[int, ...]
) -> jax.Array:
    """Returns values `[*batch, *value_shape]` of the field's dtype, if they can be had from these.

    Raises:
      ShapeError: They have another shape.
      DtypeError: They would lose their meaning in the field's dtype.
    """
    expected = (*batch, *value_shape(field))
    # A NumPy array keeps its own dtype here: JAX would make int64 an int32 without a word.
    array = values if isinstance(values, jax.Array | np.ndarray) else jnp.asarray(values)
    if array.shape != expected:
        raise ShapeError(f"{name!r} has shape {list(array.shape)}, expected {list(expected)}")
    dtype = jnp.dtype("uint32" if carrier(field) == "int64" else field.dtype)
    if not _is_safe(array.dtype, dtype):
        raise DtypeError(
            f"{name!r} has dtype {array.dtype}, expected {dtype}"
            + (" pairs, as split_keys makes them" if carrier(field) == "int64" else "")
        )
    check_whole(array, name=repr(name))
    return jnp.asarray(array, dtype)


def _is_safe(given: np.dtype, wanted: np.dtype) -> bool:
    if jnp.issubdtype(wanted, jnp.floating):
        return not jnp.issubdtype(given, jnp.complexfloating)
    return np.can_cast(given, wanted)


def key_words(keys: jax.Array | np.ndarray) -> jax.Array:
    """Turns keys into words `[*batch, 2]`.

    Args:
      keys: int32 `[*batch]`, or uint32 pairs `[*batch, 2]`.

    Raises:
      KeyKindError: They have another dtype.
      ShapeError: They are uint32 and the last axis is not 2.
    """
    dtype = getattr(keys, "dtype", type(keys).__name__)
    if dtype == np.int32:
        signed = jnp.asarray(keys)
        return lax.bitcast_convert_type(jnp.stack([signed, signed >> 31], axis=-1), jnp.uint32)
    if dtype != np.uint32:
        raise KeyKindError(
            f"keys have dtype {dtype}; inside jit they are int32 [...], or for 64-bit keys uint32 "
            "pairs [..., 2], made outside with hooks.split_keys(keys)"
        )
    if keys.shape[-1:] != (2,):
        raise ShapeError(f"keys have shape {list(keys.shape)}; uint32 keys are pairs [..., 2]")
    return jnp.asarray(keys)


def keys_with_step(keys: jax.Array | np.ndarray, step: jax.Array | int | None) -> jax.Array:
    """Turns keys and a step into words `[*batch, 3]`: the key's two, and the step in every row.

    A row is complete in itself, so that `vmap` over keys, values or steps joins rows of several
    calls into one.

    Raises:
      KeyKindError, ShapeError: as `key_words`.
      DtypeError, ShapeError: `step` is not an integer scalar.
    """
    words = key_words(keys)
    check_whole(words, name="keys")
    number = jnp.asarray(NO_STEP if step is None else step)
    if not jnp.issubdtype(number.dtype, jnp.integer):
        raise DtypeError(f"step has dtype {number.dtype}, expected an integer")
    if number.shape:
        raise ShapeError(f"step has shape {list(number.shape)}, expected a scalar")
    one = lax.bitcast_convert_type(number.astype(jnp.int32), jnp.uint32)
    return jnp.concatenate([words, jnp.broadcast_to(one, (*words.shape[:-1], 1))], axis=-1)


def keep_keys(words: jax.Array, keep: jax.Array) -> jax.Array:
    """Puts padding in place of the keys in `[*batch, 3]` where `keep` `[*batch]` is False."""
    padding = jnp.array(_PADDING_WORDS, jnp.uint32)
    keys = jnp.where(keep[..., None], words[..., :2], padding[(None,) * keep.ndim])
    return jnp.concatenate([keys, words[..., 2:]], axis=-1)
