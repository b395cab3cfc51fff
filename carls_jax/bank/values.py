"""Checks keys and arrays against a table's spec, before anything changes.

`as_…` take what a user gives, in a client; `check_…` take what arrives at a bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carls_jax.bank import compact
from carls_jax.bank.changes import Keys
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import DtypeError, InvalidInputError, KeyKindError, NonFiniteError, ShapeError
from carls_jax.keys import int_keys, string_keys

MAX_KEYS = 1 << 24


def as_keys(spec: TableSpec, keys: object) -> Keys:
    """Returns int64 `[n]` keys of a table's kind; strings become fingerprints.

    Raises:
      KeyKindError: They are of the other kind.
      ShapeError: They are not a vector, or empty.
    """
    try:
        if spec.keys == "int":
            return check_keys(int_keys(keys))  # type: ignore[arg-type]
        if isinstance(keys, np.ndarray) and keys.dtype == np.int64:
            return check_keys(keys)  # fingerprints, as a scan returns them
        return check_keys(string_keys(keys))  # type: ignore[arg-type]
    except KeyKindError as error:
        kind = {"int": "integer", "str": "string"}[spec.keys]
        raise KeyKindError(f"table {spec.name!r} has {kind} keys: {error}") from None


def check_keys(keys: NDArray[Any]) -> Keys:
    """Returns the keys if they are int64 `[n]` with 1 to 2**24 of them."""
    if keys.dtype != np.int64:
        raise KeyKindError(f"keys have dtype {keys.dtype}, expected int64")
    if keys.ndim != 1 or not 1 <= keys.shape[0] <= MAX_KEYS:
        raise ShapeError(
            f"keys have shape {list(keys.shape)}, expected [n] with n in 1..{MAX_KEYS}; make "
            "several calls of more"
        )
    return keys


def as_values(
    spec: TableSpec, values: Mapping[str, ArrayLike], *, num_keys: int
) -> dict[str, NDArray[np.generic]]:
    """Returns C-ordered arrays of the fields' dtypes.

    Floats and integers become narrower ones and integers become floats; floats never become
    integers, numbers never booleans.

    Raises:
      FieldNotFoundError: A name is no field of the table.
      ShapeError: An array is not `[num_keys, *field.shape]`.
      DtypeError: An array would lose its meaning in the field's dtype.
    """
    if not isinstance(values, Mapping):
        raise InvalidInputError(
            f"values={type(values).__name__}: give a dict of arrays by field, such as "
            f"{{{next(iter(spec.fields))!r}: ...}}"
        )
    _check_some(spec, values)
    return {
        name: _as_field(spec.field(name), name, value, num_keys) for name, value in values.items()
    }


def _as_field(field: Field, name: str, given: ArrayLike, num_keys: int) -> NDArray[np.generic]:
    try:
        value = np.asarray(given)
    except ValueError as error:
        raise ShapeError(f"{name!r} is no array: {error}") from None
    _check_shape(name, value, (num_keys, *field.shape))
    dtype = np.dtype(field.dtype)
    if value.dtype.kind in "iu" and dtype.kind in "iu":
        _check_range(field, name, value)
    elif not np.can_cast(value.dtype, dtype, casting="same_kind"):
        raise DtypeError(
            f"{name!r} has dtype {value.dtype}; the field is {field.dtype}: convert it first"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the bank refuses
        return value.astype(dtype, order="C", copy=False)


def _check_range(field: Field, name: str, value: NDArray[Any]) -> None:
    bounds = np.iinfo(field.dtype)
    if value.size and (value.min() < bounds.min or value.max() > bounds.max):
        raise DtypeError(
            f"{name!r} holds {value.min()} to {value.max()}; the field is {field.dtype}, "
            f"{bounds.min} to {bounds.max}"
        )


def check_values(
    spec: TableSpec, values: Mapping[str, NDArray[np.generic]], *, num_keys: int
) -> None:
    """Checks what a client sent to be stored: fields, exact dtypes, shapes, finite numbers, groups.

    Compact fields' values come as they are stored. Padding's values are checked like any.

    Raises:
      FieldNotFoundError, DtypeError, ShapeError: As `as_values`.
      NonFiniteError: A number is NaN or infinite.
      InvalidInputError: Some fields of a group are missing.
    """
    _check_some(spec, values)
    for name, value in values.items():
        field = spec.field(name)
        _check_kind(name, value, field.stored_dtype, (num_keys, *field.stored_shape))
        if field.compact:
            _check_all_finite(name, field.dtype, compact.finite_rows(field, value))
        else:
            _check_finite(name, value)
    _check_whole_groups(spec, values)


def check_gradients(
    spec: TableSpec, gradients: Mapping[str, NDArray[np.generic]], *, num_keys: int
) -> None:
    """Checks gradients as `check_values` does values; those of compact fields are float32."""
    _check_some(spec, gradients)
    for name, gradient in gradients.items():
        field = spec.field(name)
        _check_kind(name, gradient, np.dtype(field.dtype), (num_keys, *field.shape))
        _check_finite(name, gradient)
    _check_whole_groups(spec, gradients)


def _check_some(spec: TableSpec, values: Mapping[str, object]) -> None:
    if not values:
        raise InvalidInputError(f"values={{}}: name at least one field of {', '.join(spec.fields)}")


def _check_whole_groups(spec: TableSpec, values: Mapping[str, object]) -> None:
    for group, names in spec.groups.items():
        missing = [name for name in names if name not in values]
        if missing and len(missing) < len(names):
            raise InvalidInputError(
                f"fields {', '.join(names)} of group {group!r} are written together: "
                f"{', '.join(missing)} is missing"
            )


def _check_shape(name: str, value: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise ShapeError(f"{name!r} has shape {list(value.shape)}, expected {list(expected)}")


def _check_kind(
    name: str, value: NDArray[Any], dtype: np.dtype[Any], expected: tuple[int, ...]
) -> None:
    if value.dtype != dtype:
        raise DtypeError(f"{name!r} has dtype {value.dtype}; the field is {dtype}")
    _check_shape(name, value, expected)


def _check_finite(name: str, value: NDArray[Any]) -> None:
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        _check_all_finite(name, value.dtype, finite_rows(value))


def _check_all_finite(name: str, dtype: object, is_finite: NDArray[np.bool_]) -> None:
    if is_finite.all():
        return
    rows = np.flatnonzero(~is_finite)
    raise NonFiniteError(
        f"{name!r} holds NaN, infinity or a number too large for {dtype} in {rows.size} of "
        f"{is_finite.size} rows, first in row {rows[0]}; nothing was changed"
    )


def finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tells, `[n]`, of which rows of `[n, ...]` all numbers are finite."""
    return np.asarray(np.isfinite(values).reshape(values.shape[0], -1).all(axis=1))
