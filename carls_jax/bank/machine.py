"""Machine code for loops over rows, and the memory operations that several processes need for it.

`compiled` makes machine code of a function, by Numba, that runs without the interpreter's lock. The
operations below it may be called in such functions alone. Those that acquire, release and fence
have the meaning of C++20's (section [atomics.order]), so what is built on them holds on ARM
as on x86-64.

Memory is given by address, not as arrays: Numba counts the references to an array that is passed
on, and a counter that is atomic keeps a processor from having more than one row under way at a
time. Measured: 8,192 rows of 512 bytes took 2.05 ms, by addresses
1.26.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import caching, ccallback, cgutils, sigutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

CACHE_LINE = 64
"""Bytes of memory that `prefetch` brings near at once."""

Function = TypeVar("Function", bound=Callable[..., Any])

# Numba's own types say what an intrinsic is while it is compiled, not how it is called.
_operation = cast(Callable[[Callable[..., Any]], Callable[..., Any]], intrinsic)

_cgutils: Any = cgutils  # they have no types
_caching: Any = caching
_CFunc: Any = ccallback.CFunc
_sigutils: Any = sigutils
_BYTE_POINTER = ir.IntType(8).as_pointer()
_INT32 = ir.IntType(32)


def compiled(function: Function) -> Function:
    """Compiles a function at its first call; the code is kept for later processes.

    It takes arrays and numbers, holds no lock of the interpreter, and checks no bounds.
    """
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    keep_code(dispatcher)
    return cast(Function, dispatcher)


def compiled_for(function: Callable[..., Any], signature: Any) -> Any:
    """Compiles a function now, to be called by the `address` of what is returned; code is kept.

    Args:
      function: Takes and returns numbers and pointers.
      signature: Numba's types of these.
    """
    made = _CFunc(function, _sigutils.normalize_signature(signature), {}, {"error_model": "numpy"})
    keep_code(made)
    made.compile()
    return made


def inlined(function: Function) -> Function:
    """As `compiled`, for a function that others contain."""
    _note_source(function)
    return cast(Function, numba.njit(nogil=True, inline="always", error_model="numpy")(function))


def keep_code(compilable: Any) -> None:
    """Has Numba keep machine code for later processes, where it can write any."""
    _note_source(getattr(compilable, "py_func", None) or compilable._pyfunc)
    with suppress(RuntimeError):  # no directory is writable: each process compiles
        compilable._cache = _Cache(getattr(compilable, "py_func", None) or compilable._pyfunc)


class _Cache(_caching.FunctionCache):  # type: ignore[misc]
    """Is Numba's, which takes kept code for right while the file of the function is the same.

    The functions that it contains are in other files. Old code of theirs, at work on memory that is
    laid out anew, would read wrong rows, so these files must be the same too.
    """

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        files = sorted({__file__, *_files_of(self._py_func, set())})
        sources = tuple(_sources.get(path, "") for path in files)
        return (*super()._index_key(signature, codegen), sources)

    def save_overload(self, signature: Any, data: Any) -> None:
        with suppress(OSError):  # the disk is full, or not writable any more
            super().save_overload(signature, data)


# What each file of compiled functions held when it was imported; it may have changed since.
_sources: dict[str, str] = {}


def _note_source(function: Callable[..., Any]) -> None:
    path = inspect.getfile(function)
    with suppress(OSError):  # it has no file, so no code of it can be kept
        _sources[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _files_of(function: Any, known: set[Any]) -> Iterator[str]:
    """Yields the files of a function and of those that it contains."""
    known.add(function)
    yield inspect.getfile(function)
    for name in function.__code__.co_names:
        contained = getattr(function.__globals__.get(name), "py_func", None)
        if contained is not None and contained not in known:
            yield from _files_of(contained, known)


def address_of(array: NDArray[Any]) -> int:
    """Returns where an array begins."""
    return int(array.__array_interface__["data"][0])


def _load(kind: Any, ordering: str) -> Any:
    def load(_: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            return builder.load_atomic(pointer, ordering, kind.bitwidth // 8)

        return kind(types.intp), generate

    return _operation(load)


def _store(kind: Any) -> Any:
    def store(_: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            builder.store_atomic(args[1], pointer, "release", kind.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(types.intp, kind), generate

    return _operation(store)


# `load_…(address)` is never torn. Nothing that follows `acquire_…(address)` is read before it, and
# all that precedes `release_…(address, value)` is visible before it.
load_int32, load_int64 = _load(types.int32, "monotonic"), _load(types.int64, "monotonic")
acquire_uint32, acquire_int64 = _load(types.uint32, "acquire"), _load(types.int64, "acquire")
release_uint32, release_int64 = _store(types.uint32), _store(types.int64)
release_int32 = _store(types.int32)


@_operation
def fence_acquire(_: Any) -> Any:
    """Lets nothing that follows be read before what was read so far."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("acquire")
        return context.get_dummy_value()

    return types.void(), generate


@_operation
def fence_release(_: Any) -> Any:
    """Lets nothing that follows be written before what was read and written so far."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), generate


@_operation
def prefetch(_: Any, address: Any) -> Any:
    """Begins to bring the cache line at an address near; any number will do."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT32, _INT32, _INT32])
        call = _cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.inttoptr(args[0], _BYTE_POINTER)
        # To be read, into the second-level cache, since the first has a short list of what it waits
        # for: pushes take a quarter less (measured). Data, not code.
        builder.call(call, [pointer, _INT32(0), _INT32(2), _INT32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@_operation
def copy_bytes(_: Any, to: Any, of: Any, num_bytes: Any) -> Any:
    """Copies bytes between two addresses; they must not overlap."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(one, _BYTE_POINTER) for one in args[:2])
        _cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@_operation
def fill_bytes(_: Any, to: Any, value: Any, num_bytes: Any) -> Any:
    """Sets bytes from an address on to a value, 0 to 255."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = builder.inttoptr(args[0], _BYTE_POINTER)
        value_byte = builder.trunc(args[1], ir.IntType(8))
        _cgutils.memset(builder, target, args[2], value_byte)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate
