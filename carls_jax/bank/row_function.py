"""`RowFunction`: a function of one row, that other machine code calls by its address.

So one loop over rows serves tables of any fields, and only the rules that are used are compiled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from carls_jax.bank.machine import compiled_for

_operation = cast(Callable[[Callable[..., Any]], Callable[..., Any]], intrinsic)
_types: Any = types  # its functions have no types

_NUM_INTEGERS = 4


class RowFunction:
    """Is compiled at its first use for each dtype; the code is kept for later processes.

    May be used from several threads at once.

    Args:
      function: Takes a pointer to room for rows, whose type is the rows' dtype, and four integers:
        addresses of what it knows of a field (int64, and float64), the slot of a row, and the place
        of the row's first gradient. Returns a bool.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._compiled: dict[np.dtype[Any], Any] = {}

    def address(self, dtype: np.dtype[Any]) -> int:
        """Returns where the code for rows of a dtype is."""
        with self._lock:
            if dtype not in self._compiled:
                room = _types.CPointer(numba.from_dtype(dtype))
                signature = types.boolean(room, *[types.int64] * _NUM_INTEGERS)
                self._compiled[dtype] = compiled_for(self._function, signature)
            return int(self._compiled[dtype].address)


@_operation
def call(_: Any, address: Any, room: Any, field: Any, numbers: Any, slot: Any, place: Any) -> Any:
    """Calls the row function at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, integer = ir.IntType(8).as_pointer(), ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(8), [pointer, *[integer] * _NUM_INTEGERS])
        function = builder.inttoptr(args[0], kind.as_pointer())
        answer = builder.call(function, [builder.inttoptr(args[1], pointer), *args[2:]])
        return builder.icmp_unsigned("!=", answer, answer.type(0))

    return types.boolean(*[types.int64] * (_NUM_INTEGERS + 2)), generate
