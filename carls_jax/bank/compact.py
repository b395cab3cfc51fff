"""Compact values: float32 fields that are stored and sent in fewer bytes.

W is the number of elements of a row's value; `...` are any axes of rows.

`Table` encodes what a user gives and decodes what a bank answers; between them, on the wire, in
memory and in snapshots, there are only stored values:

    float32     `[..., *shape]` float32, as they are
    bfloat16    `[..., *shape]` uint16, the upper half of a float32's bits: 2 W bytes
    int8        `[..., 4 + W]` int8, of each row a scale, float32 with its lowest byte first, and
                then whole numbers from -127 to 127, which times the scale are the values: 4 + W

What comes back of x, where no element of the row is NaN or infinite:

    bfloat16    differs by at most |x| * 2**-8 (and by 2**-134 where |x| < 2**-126). To nearest,
                ties to even, but what would become infinite becomes the largest bfloat16.
    int8        differs by at most max|x| / 254 * (1 + 2**-14), or by 2**-127 where that is more;
                max|x| is that of the row. To nearest, ties to even.

What was decoded is encoded to the same bytes, so that a row which is decoded, not altered and
encoded again is as it was. Zero is all-zero bytes; minus zero stays so as bfloat16 and becomes zero
as int8. NaN and infinity become what `finite_rows` tells, whatever else is in the int8 row.

A push decodes a row, moves it and encodes it: what moves a number by less than half of the distance
to the next one that can be stored is lost, however often it is pushed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank.machine import address_of, compiled
from carls_jax.bank.row_function import RowFunction
from carls_jax.bank.vectors import vector_at

if TYPE_CHECKING:
    from carls_jax.bank.rows import Rows
    from carls_jax.bank.specs import Field, TableSpec

Array = NDArray[Any]

FORMS = ("bfloat16", "int8")
# A form is known to machine code by its place in this table, as the type of what is stored.
PLAIN, BFLOAT16, INT8 = range(3)
_DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16), "int8": np.dtype(np.int8)}

VALUE_BYTES = 4  # of an element, decoded
SCALE_BYTES = 4
_MOST = 127  # the largest of the whole numbers
# No scale is subnormal, which some threads take for zero, or so large that 127 of it are infinite.
_MIN_SCALE = np.finfo(np.float32).smallest_normal
_MAX_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_MOST), np.float32(0))
_INFINITE = np.uint32(0x7F80_0000)
_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_HALF_OF_MIN_SCALE = np.uint32(0x0040_0000)
_MAX_BFLOAT16 = np.uint32(0x7F7F)
_FLOAT32, _UINT32, _UINT16 = np.float32(0), np.uint32(0), np.uint16(0)
_INT8, _UINT8 = np.int8(0), np.uint8(0)


def stored_dtype(compact: str | None, dtype: str) -> np.dtype[Any]:
    """Returns the element type of what is stored of a field."""
    return _DTYPES[compact] if compact else np.dtype(dtype)


def stored_shape(compact: str | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of what is stored of one row's value."""
    return (SCALE_BYTES + math.prod(shape),) if compact == "int8" else shape


def form_of(dtype: np.dtype[Any]) -> int:
    """Returns the form of float values that are stored as a dtype."""
    return {_DTYPES["bfloat16"]: BFLOAT16, _DTYPES["int8"]: INT8}.get(dtype, PLAIN)


def encode(field: Field, values: Array) -> Array:
    """Returns what is stored of values `[..., *shape]` of the field's dtype; see above."""
    if not field.compact:
        return values
    outer = values.shape[: values.ndim - len(field.shape)]
    stored = np.empty((*outer, *field.stored_shape), field.stored_dtype)
    values = np.ascontiguousarray(values, np.float32)
    _encode_rows(
        form_of(stored.dtype),
        address_of(values),
        address_of(stored),
        math.prod(outer),
        math.prod(field.shape),
    )
    return stored


def decode(field: Field, stored: Array) -> Array:
    """Returns the values `[..., *shape]` of what is stored of them; see above."""
    if not field.compact:
        return stored
    outer = stored.shape[: stored.ndim - len(field.stored_shape)]
    values = np.empty((*outer, *field.shape), np.float32)
    stored = np.ascontiguousarray(stored)
    _decode_rows(
        form_of(stored.dtype),
        address_of(stored),
        address_of(values),
        math.prod(outer),
        math.prod(field.shape),
    )
    return values


def finite_rows(field: Field, stored: Array) -> NDArray[np.bool_]:
    """Tells, `[n]`, of which stored rows `[n, ...]` of a compact field all values are finite.

    A row of int8 is not if it holds what nobody encodes, whose values could be infinite.
    """
    is_finite = np.empty(stored.shape[0], np.bool_)
    stored = np.ascontiguousarray(stored)
    _find_finite(form_of(stored.dtype), address_of(stored), math.prod(field.shape), is_finite)
    return is_finite


def decoded_rows(spec: TableSpec, rows: Rows) -> Rows:
    """Returns rows, as a bank answers them, with the fields' values."""
    if not any(spec.fields[name].compact for name in rows.values):
        return rows
    values = {name: decode(spec.fields[name], stored) for name, stored in rows.values.items()}
    return replace(rows, values=values)


@compiled
def _encode_rows(form: int, values: int, stored: int, num_rows: int, width: int) -> None:
    """Encodes rows from one address to another."""
    row_bytes = 2 * width if form == BFLOAT16 else SCALE_BYTES + width
    for row in range(num_rows):
        _encode_row(form, values + row * width * VALUE_BYTES, stored + row * row_bytes, width)


@compiled
def _decode_rows(form: int, stored: int, values: int, num_rows: int, width: int) -> None:
    """Decodes rows from one address to another."""
    row_bytes = 2 * width if form == BFLOAT16 else SCALE_BYTES + width
    for row in range(num_rows):
        _decode_row(form, stored + row * row_bytes, values + row * width * VALUE_BYTES, width)


@compiled
def _encode_row(form: int, values: int, stored: int, width: int) -> None:
    """Encodes one row, in machine code; both are addresses."""
    if form == BFLOAT16:
        _to_bfloat16(vector_at(values, width, _UINT32), vector_at(stored, width, _UINT16))
    else:
        _to_int8(
            vector_at(values, width, _FLOAT32),
            vector_at(values, width, _UINT32),
            vector_at(stored, SCALE_BYTES, _UINT8),
            vector_at(stored + SCALE_BYTES, width, _INT8),
        )


@compiled
def _decode_row(form: int, stored: int, values: int, width: int) -> None:
    """Decodes one row, in machine code; both are addresses."""
    if form == BFLOAT16:
        halves, bits = vector_at(stored, width, _UINT16), vector_at(values, width, _UINT32)
        for i in range(width):
            bits[i] = np.uint32(halves[i]) << 16
    else:
        scale = _scale_in(vector_at(stored, SCALE_BYTES, _UINT8))
        numbers = vector_at(stored + SCALE_BYTES, width, _INT8)
        decoded = vector_at(values, width, _FLOAT32)
        for i in range(width):
            decoded[i] = np.float32(numbers[i]) * scale


@compiled
def _find_finite(form: int, stored: int, width: int, is_finite: Any) -> None:
    row_bytes = 2 * width if form == BFLOAT16 else SCALE_BYTES + width
    for row in range(is_finite.size):
        at, num_bad = stored + row * row_bytes, 0
        if form == BFLOAT16:
            halves = vector_at(at, width, _UINT16)
            for i in range(width):
                num_bad += (halves[i] & 0x7F80) == 0x7F80
        else:
            scale = _scale_in(vector_at(at, SCALE_BYTES, _UINT8))
            num_bad += not (scale == 0 or _MIN_SCALE <= scale <= _MAX_SCALE)
            numbers = vector_at(at + SCALE_BYTES, width, _INT8)
            for i in range(width):
                num_bad += numbers[i] < -_MOST
        is_finite[row] = num_bad == 0


@compiled
def _to_bfloat16(bits: Any, halves: Any) -> None:
    for i in range(bits.size):
        magnitude = np.uint32(bits[i] & _MAGNITUDE)
        is_odd = np.uint32((magnitude >> 16) & 1)
        rounded = np.uint32(np.uint32(magnitude + is_odd + 0x7FFF) >> 16)
        rounded = min(rounded, _MAX_BFLOAT16)
        if magnitude >= _INFINITE:
            rounded = np.uint32(0x7F80)
        halves[i] = np.uint16(rounded | ((bits[i] >> 16) & 0x8000))


@compiled
def _to_int8(values: Any, bits: Any, scale_bytes: Any, numbers: Any) -> None:
    most = _UINT32
    for i in range(bits.size):
        most = max(most, np.uint32(bits[i] & _MAGNITUDE))
    scale = _scale_for(most)
    of_scale = _bits_of(scale)
    for i in range(SCALE_BYTES):
        scale_bytes[i] = np.uint8((of_scale >> (8 * i)) & 0xFF)
    if scale > 0:
        for i in range(values.size):
            numbers[i] = np.int8(np.rint(values[i] / scale))
    else:
        for i in range(values.size):
            numbers[i] = 0


@compiled
def _scale_for(most: Any) -> Any:
    """Returns the scale of a row, of whose magnitudes `most` is the largest, as bits."""
    if most >= _INFINITE:
        return np.float32(np.nan)
    if most <= _HALF_OF_MIN_SCALE:
        return _FLOAT32
    return min(max(_number_of(most) / np.float32(_MOST), _MIN_SCALE), _MAX_SCALE)


@compiled
def _scale_in(scale_bytes: Any) -> Any:
    bits = _UINT32
    for i in range(SCALE_BYTES):
        bits = np.uint32(bits | (np.uint32(scale_bytes[i]) << (8 * i)))
    return _number_of(bits)


@compiled
def _bits_of(number: Any) -> Any:
    return np.float32(number).view(np.uint32)


@compiled
def _number_of(bits: Any) -> Any:
    return np.uint32(bits).view(np.float32)


def _encode_for_push(_: Any, form: Any, values: Any, stored: Any, width: Any) -> Any:
    _encode_row(form, values, stored, width)
    return True


def _decode_for_push(_: Any, form: Any, values: Any, stored: Any, width: Any) -> Any:
    _decode_row(form, stored, values, width)
    return True


# For one row: its form, the addresses of its values and of what is stored, and its width. Pushes
# call them by their address, so that only tables with compact fields have them compiled.
ENCODE, DECODE = RowFunction(_encode_for_push), RowFunction(_decode_for_push)
