"""The update rules of the bank's optimizers, in machine code, for one row at a time.

A rule reads a row, its state and its gradients where they are, and computes beside them what they
become; it tells whether all of that is finite. W is the number of elements of a row. Nothing is
reordered or fused: each operation is rounded as IEEE 754 says, in the order that is written here,
so a row comes out the same, bit for bit, whatever the rows beside it and however wide the
processor's vectors are.

Formulas are optax's (`optax/_src/transform.py`, `alias.py`), except that each row keeps its own
state and count. Loops have few arrays each: the compiler gives up vectors where it would have to
compare too many addresses.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from carls_jax.bank.gradients import clipped, combined, norm_clipped
from carls_jax.bank.machine import inlined
from carls_jax.bank.row_function import RowFunction
from carls_jax.bank.vectors import vector_at

# What a rule knows of a field, int64: elements of a row, whether repeated gradients are averaged,
# and addresses: of the gradients, of the links between repeated ones (see `repeats`), of columns
# (0: the rule has no such state), of room for `ROOM_ROWS` rows, and of room for a count; and how
# many bytes a row's values are from the next one's (0: at VALUES is only the row in question).
WIDTH, IS_MEAN, GRADIENTS, FOLLOWING, VALUES, FIRST, SECOND, COUNT, ROOM, NEW_COUNT = range(10)
VALUES_STRIDE = 10
FIELD_SIZE = 11
# Of which rows there is room: the gradient, and what the row and its state become.
ROOM_GRADIENT, ROOM_VALUES, ROOM_FIRST, ROOM_SECOND = range(4)
ROOM_ROWS = 4
# What it knows in float64; the rule's own hyper-parameters come after these.
RATE, CLIP, CLIP_ROW_NORM, OWN = range(4)
NUMBERS_SIZE = 9

_MAX_COUNT = np.iinfo(np.int32).max
_INT64 = np.int64(0)
_FLOAT64 = np.float64(0)
_INT32 = np.int32(0)


class _Row(NamedTuple):
    """Holds vectors `[W]`: a row, its gradient, its state, and room for what these become.

    `numbers` are those of the rule, and `field` is what is known of the row's field.
    """

    values: Any
    gradient: Any
    first: Any
    second: Any
    new_values: Any
    new_first: Any
    new_second: Any
    numbers: Any
    field: Any


@inlined
def _opened(room: Any, field_at: Any, numbers_at: Any, slot: Any, place: Any) -> Any:
    """Finds a row, and combines and clips its gradients."""
    field = vector_at(field_at, FIELD_SIZE, _INT64)
    numbers = vector_at(numbers_at, NUMBERS_SIZE, _FLOAT64)
    width, like = field[WIDTH], room[0]
    own = vector_at(field[ROOM], width, like)
    following = vector_at(field[FOLLOWING], place + 1, _INT64)
    gradient = combined(field[GRADIENTS], place, following, field[IS_MEAN] != 0, own)
    gradient = clipped(gradient, numbers[CLIP], own)
    gradient = norm_clipped(gradient, numbers[CLIP_ROW_NORM], own)
    row_bytes = width * own.itemsize
    at = slot * row_bytes
    return _Row(
        vector_at(field[VALUES] + slot * field[VALUES_STRIDE], width, like),
        gradient,
        vector_at(field[FIRST] + at, width, like),
        vector_at(field[SECOND] + at, width, like),
        vector_at(field[ROOM] + ROOM_VALUES * row_bytes, width, like),
        vector_at(field[ROOM] + ROOM_FIRST * row_bytes, width, like),
        vector_at(field[ROOM] + ROOM_SECOND * row_bytes, width, like),
        numbers,
        field,
    )


@inlined
def _closed(row: Any) -> Any:
    """Subtracts the direction, which is in `new_values`; tells whether all numbers are finite."""
    rate = row.values.dtype.type(-row.numbers[RATE])
    for i in range(row.values.size):
        row.new_values[i] = row.values[i] + row.new_values[i] * rate
    is_finite = _is_finite(row.new_values)
    if row.field[FIRST]:
        is_finite &= _is_finite(row.new_first)
    if row.field[SECOND]:
        is_finite &= _is_finite(row.new_second)
    return is_finite


@inlined
def _is_finite(vector: Any) -> Any:
    num_bad = 0
    for i in range(vector.size):
        num_bad += not abs(vector[i]) < np.inf
    return num_bad == 0


def _follow_sgd(room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    row = _opened(room, field, numbers, slot, place)
    for i in range(row.gradient.size):
        row.new_values[i] = row.gradient[i]
    return _closed(row)


def _follow_momentum(room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    """Numbers: momentum, whether it is Nesterov's."""
    row = _opened(room, field, numbers, slot, place)
    momentum = row.values.dtype.type(row.numbers[OWN])
    for i in range(row.gradient.size):
        row.new_first[i] = row.gradient[i] + row.first[i] * momentum
    if row.numbers[OWN + 1]:
        for i in range(row.gradient.size):
            row.new_values[i] = row.gradient[i] + row.new_first[i] * momentum
    else:
        for i in range(row.gradient.size):
            row.new_values[i] = row.new_first[i]
    return _closed(row)


def _follow_adagrad(room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    """Numbers: eps."""
    row = _opened(room, field, numbers, slot, place)
    eps = row.values.dtype.type(row.numbers[OWN])
    for i in range(row.gradient.size):
        row.new_first[i] = row.gradient[i] * row.gradient[i] + row.first[i]
    for i in range(row.gradient.size):
        row.new_values[i] = row.gradient[i] / np.sqrt(row.new_first[i] + eps)
    return _closed(row)


def _follow_rmsprop(room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    """Numbers: decay, what is added inside the root, what is added to it; one of them is 0."""
    row = _opened(room, field, numbers, slot, place)
    inside = row.values.dtype.type(row.numbers[OWN + 1])
    outside = row.values.dtype.type(row.numbers[OWN + 2])
    _average_squares(row.numbers[OWN], row.first, row.gradient, row.new_first)
    for i in range(row.gradient.size):
        root = np.sqrt(row.new_first[i] + inside) + outside
        row.new_values[i] = row.gradient[i] / root
    return _closed(row)


def _follow_adam(room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    """Numbers: b1, b2, eps, eps_root, weight_decay (AdamW's; otherwise 0).

    The bias correction is computed in float64.
    """
    row = _opened(room, field, numbers, slot, place)
    real, b1, b2 = row.values.dtype.type, row.numbers[OWN], row.numbers[OWN + 1]
    eps, eps_root = real(row.numbers[OWN + 2]), real(row.numbers[OWN + 3])
    count = vector_at(row.field[COUNT], slot + 1, _INT32)[slot]
    count += np.int32(count < _MAX_COUNT)
    vector_at(row.field[NEW_COUNT], 1, _INT32)[0] = count
    first_correction = real(1.0 - math.pow(b1, np.float64(count)))
    second_correction = real(1.0 - math.pow(b2, np.float64(count)))
    _average(b1, row.first, row.gradient, row.new_first)
    _average_squares(b2, row.second, row.gradient, row.new_second)
    for i in range(row.gradient.size):
        root = np.sqrt(row.new_second[i] / second_correction + eps_root) + eps
        row.new_values[i] = row.new_first[i] / first_correction / root
    _decay(row, row.numbers[OWN + 4])
    return _closed(row)


def _follow_lion(room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    """Numbers: b1, b2, weight_decay."""
    row = _opened(room, field, numbers, slot, place)
    real = row.values.dtype.type
    _average(row.numbers[OWN], row.first, row.gradient, row.new_values)
    for i in range(row.gradient.size):
        average = row.new_values[i]
        row.new_values[i] = real(average > 0) - real(average < 0)
    _decay(row, row.numbers[OWN + 2])
    _average(row.numbers[OWN + 1], row.first, row.gradient, row.new_first)
    return _closed(row)


@inlined
def _average(decay: Any, average: Any, new: Any, out: Any) -> None:
    """Gives decay * average + (1 - decay) * new."""
    kept, added = out.dtype.type(decay), out.dtype.type(1.0 - decay)
    for i in range(out.size):
        out[i] = new[i] * added + average[i] * kept


@inlined
def _average_squares(decay: Any, average: Any, new: Any, out: Any) -> None:
    """Gives decay * average + (1 - decay) * new**2."""
    kept, added = out.dtype.type(decay), out.dtype.type(1.0 - decay)
    for i in range(out.size):
        out[i] = new[i] * new[i] * added + average[i] * kept


@inlined
def _decay(row: Any, weight_decay: Any) -> None:
    """Adds the row itself, times `weight_decay`, to the direction."""
    if weight_decay:
        factor = row.values.dtype.type(weight_decay)
        for i in range(row.values.size):
            row.new_values[i] = row.new_values[i] + row.values[i] * factor


SGD = RowFunction(_follow_sgd)
MOMENTUM = RowFunction(_follow_momentum)
ADAGRAD = RowFunction(_follow_adagrad)
RMSPROP = RowFunction(_follow_rmsprop)
ADAM = RowFunction(_follow_adam)
LION = RowFunction(_follow_lion)
