"""Vectors at an address, for machine code that works on columns of any table by what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
from numba.core import types
from numba.extending import intrinsic

from carls_jax.bank.machine import inlined

_operation = cast(Callable[[Callable[..., Any]], Callable[..., Any]], intrinsic)
_types: Any = types  # its functions have no types


@_operation
def _pointer_to(_: Any, address: Any, like: Any) -> Any:
    pointer = _types.CPointer(like)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.intp, like), generate


@inlined
def vector_at(address: Any, size: Any, like: Any) -> Any:
    """Returns the vector `[size]` at an address, of the dtype of a number such as `np.int32(0)`."""
    return numba.carray(_pointer_to(address, like), (size,))
