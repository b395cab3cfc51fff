"""`RowPusher`: moves rows by gradients, so that whoever reads them meanwhile gets whole rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import pushing, rules
from carls_jax.bank.compact import DECODE, ENCODE, PLAIN, form_of
from carls_jax.bank.layout import METADATA_COLUMNS
from carls_jax.bank.machine import address_of
from carls_jax.bank.optimizers import RowOptimizer
from carls_jax.bank.repeats import Distinct, Places

Array = NDArray[Any]
Arrays = Mapping[str, Array]

# Moves rows: their slots `[m]`, and where the first gradient of each is, `[m]`. Tells, `[G, m]`,
# which moved, by metadata group: where a number would be infinite or NaN, the group stays as it is.
Move = Callable[[Places, Places], NDArray[np.bool_]]


class RowPusher:
    """Moves rows of one table by gradients for some of its fields; for the table's one writer.

    Args:
      columns: The table's, by name; see `layout.columns_of`.
      guards: uint32 `[max_rows]`, see `row_guard`.
      groups: The fields, by metadata group.
      optimizers: Of each field.
    """

    def __init__(
        self,
        columns: Arrays,
        guards: Array,
        groups: Mapping[str, Sequence[str]],
        optimizers: Mapping[str, RowOptimizer],
    ) -> None:
        self._kept = (columns, guards)  # what `push_rows` knows by its address alone
        self._guards = address_of(guards)
        self._fields = [
            _Field(name, number, optimizers[name], columns)
            for number, names in enumerate(groups.values())
            for name in names
        ]
        # What is noted of a row; `push_rows` itself counts up its version, of each group.
        self._noted = {
            kind: np.empty(len(groups) if kind == "version" else 1, column.dtype)
            for kind, column in METADATA_COLUMNS.items()
        }
        self._known = _integers(field.known(columns) for field in self._fields)
        self._compact = _integers(field.compact for field in self._fields)
        self._rules = _integers(field.optimizer.rule for field in self._fields)
        self._group_of = _integers(field.group for field in self._fields)
        self._versions = _integers(address_of(columns[f"version/{group}"]) for group in groups)
        self._written = _integers(self._all_written(columns, list(groups)))

    def begin(
        self,
        gradients: Arrays,
        repeats: Distinct,
        *,
        is_mean: bool,
        step: int,
        noted: Mapping[str, Any],
    ) -> Move:
        """Begins a push; it ends when the next begins.

        Args:
          gradients: Of each field, `[n, *shape]`, C-contiguous.
          repeats: Which of the n are for the same row.
          is_mean: Whether the gradients of a row are averaged, not added.
          step: The push's step, which a schedule reads.
          noted: What is noted of each row that moves: all of its metadata but the version.
        """
        for kind, value in noted.items():
            self._noted[kind][0] = value
        known = self._known.copy()
        known[:, rules.IS_MEAN] = is_mean
        known[:, rules.FOLLOWING] = address_of(repeats.following)
        known[:, rules.GRADIENTS] = [address_of(gradients[one.name]) for one in self._fields]
        numbers = np.array([field.optimizer.numbers(step) for field in self._fields])
        return partial(self._move, known, numbers, (gradients, repeats))

    def _move(
        self, known: Array, numbers: Array, kept: object, slots: Places, firsts: Places
    ) -> NDArray[np.bool_]:
        """Is a `Move`; it keeps what is known by its address alone."""
        is_moved = np.empty((self._versions.size, slots.size), np.bool_)
        pushing.push_rows(
            slots,
            firsts,
            self._guards,
            self._rules,
            known,
            numbers,
            self._compact,
            self._group_of,
            self._written,
            self._versions,
            self._noted["version"],
            is_moved,
        )
        return is_moved

    def _all_written(
        self, columns: Arrays, groups: Sequence[str]
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """Yields what `push_rows` is to know of each column."""
        noted = [
            {
                kind: buffer[number : number + 1] if kind == "version" else buffer
                for kind, buffer in self._noted.items()
            }
            for number in range(len(groups))
        ]
        for number, group in enumerate(groups):
            for kind, buffer in noted[number].items():
                yield _written(columns[f"{kind}/{group}"], buffer, number)
        for field in self._fields:
            for name, buffer in field.buffers.items():
                yield _written(columns[name], buffer, field.group)
            if f"history/{field.name}/value" in columns:
                value = field.buffers[f"value/{field.name}"]
                for kind, buffer in {**noted[field.group], "value": value}.items():
                    ring = columns[f"history/{field.name}/{kind}"]
                    yield _written(ring, buffer, field.group, places=ring.shape[1])


class _Field:
    """Is a field that is pushed: its optimizer, and room for what a row was and becomes."""

    def __init__(self, name: str, group: int, optimizer: RowOptimizer, columns: Arrays) -> None:
        self.name = name
        self.group = group
        self.optimizer = optimizer
        self._room = np.empty((rules.ROOM_ROWS, optimizer.width), optimizer.dtype)
        self._new_count = np.empty(1, np.int32)
        column = columns[f"value/{name}"]
        self._form = form_of(column.dtype)
        self._decoded = np.empty(optimizer.width, optimizer.dtype)
        encoded = np.empty(column.shape[1:], column.dtype)
        if self._form == PLAIN:
            values, functions = self._room[rules.ROOM_VALUES], [0, 0]
        else:
            values = encoded
            functions = [one.address(optimizer.dtype) for one in (ENCODE, DECODE)]
        places = [address_of(column), encoded.nbytes, address_of(encoded)]
        self.compact = [self._form, *places, *functions]
        state = iter(self._room[rules.ROOM_FIRST :])
        self.buffers = {f"value/{name}": values} | {
            f"state/{name}/{key}": self._new_count if key == "count" else next(state)
            for key in optimizer.state_fields
        }

    def known(self, columns: Arrays) -> list[int]:
        """Returns what its rule is to know of it, but for what each push brings."""
        known = [0] * rules.FIELD_SIZE
        known[rules.WIDTH] = self.optimizer.width
        if self._form == PLAIN:
            known[rules.VALUES] = address_of(columns[f"value/{self.name}"])
            known[rules.VALUES_STRIDE] = self._room.strides[0]
        else:
            known[rules.VALUES] = address_of(self._decoded)
        known[rules.ROOM] = address_of(self._room)
        known[rules.NEW_COUNT] = address_of(self._new_count)
        moments = iter((rules.FIRST, rules.SECOND))
        for key in self.optimizer.state_fields:
            place = rules.COUNT if key == "count" else next(moments)
            known[place] = address_of(columns[f"state/{self.name}/{key}"])
        return known


def _written(
    column: Array, buffer: Array, group: int, *, places: int = 1
) -> tuple[int, int, int, int, int]:
    return address_of(column), buffer.nbytes, address_of(buffer), group, places


def _integers(numbers: Iterable[object]) -> NDArray[np.int64]:
    return np.array(list(numbers), np.int64)
