from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numba.core import caching

from carls_jax.bank.machine import (
    acquire_int64,
    acquire_uint32,
    address_of,
    compiled,
    copy_bytes,
    fence_acquire,
    fence_release,
    fill_bytes,
    load_int32,
    load_int64,
    prefetch,
    release_int32,
    release_int64,
    release_uint32,
)

INNER = """
from carls_jax.bank.machine import inlined

@inlined
def innermost(x):
    return x + {number}
"""
MIDDLE = """
from carls_jax.bank.machine import inlined
from innermost_{name} import innermost

@inlined
def middle(x):
    return innermost(x)
"""
OUTER = """
from carls_jax.bank.machine import compiled
from middle_{name} import middle

@compiled
def outer(x):
    return middle(x)
"""


@compiled
def _use_all(array, other):
    at, to = array.ctypes.data, other.ctypes.data
    release_int64(at, load_int64(at) + 1)
    fence_release()
    release_int32(at + 8, np.int32(load_int32(at + 8) - 1))
    fence_acquire()
    release_uint32(at + 12, np.uint32(acquire_uint32(at + 12) + np.uint32(1)))
    prefetch(at)
    prefetch(0)
    prefetch(-1)
    copy_bytes(to + 8, at, 16)
    fill_bytes(to + 24, 255, 8)
    copy_bytes(to, at, 0)
    return acquire_int64(at)


def test_memory_is_read_and_written_where_the_address_says() -> None:
    array, other = np.zeros(3, np.int64), np.zeros(5, np.int64)
    array[0] = 1 << 40
    halves = array[1:2].view(np.int32)
    halves[:] = -(1 << 31) + 1, -1
    assert _use_all(array, other) == (1 << 40) + 1
    assert halves.tolist() == [-(1 << 31), 0]
    assert array[2] == 0
    assert other.tolist() == [0, *array[:2], -1, 0]


def test_address_of_is_where_a_view_begins() -> None:
    array = np.arange(10)
    assert address_of(array[3:]) == address_of(array) + 24


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def written(source: Path, *, number: int, text: str = "") -> ModuleType:
    """Writes a function that adds a number, in a file of its own, and what contains it."""
    name = source.name
    sources = {"innermost": INNER, "middle": MIDDLE, "outer": OUTER}
    for module, content in sources.items():
        path = source / f"{module}_{name}.py"
        path.write_text(text + content.format(number=number, name=name))
        sys.modules.pop(f"{module}_{name}", None)
    importlib.invalidate_caches()
    return importlib.import_module(f"outer_{name}")


def test_code_is_kept_for_later_processes(source: Path) -> None:
    first = written(source, number=1).outer
    assert first(1) == 2
    again = written(source, number=1).outer
    assert again(1) == 2
    assert not first.stats.cache_hits
    assert again.stats.cache_hits


def test_code_is_not_used_when_what_it_contains_has_changed(source: Path) -> None:
    assert written(source, number=1).outer(1) == 2
    assert written(source, number=1000).outer(1) == 1001


def test_a_full_disk_costs_the_kept_code_alone(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert written(source, number=1).outer(1) == 2


NOT_WRITABLE = """
import numpy as np
from carls_jax.bank.machine import compiled
from carls_jax.bank import row_access
from numba.core.caching import NullCache
assert isinstance(row_access.read_rows._cache, NullCache)
@compiled
def double(x):
    return 2 * x
print(double(21))
"""


def test_without_a_directory_to_write_each_process_compiles() -> None:
    result = subprocess.run(
        [sys.executable, "-c", NOT_WRITABLE],
        env={
            **os.environ,
            "NUMBA_CACHE_DIR": "/proc/none",
            "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("42\n", "")
