from __future__ import annotations

import numpy as np
import pytest

from carls_jax.bank.machine import address_of, compiled
from carls_jax.bank.row_guard import begin_read, begin_write, end_write, guard_at, is_unchanged


@compiled
def _write(guards, slot):
    begin_write(guard_at(guards, slot))
    guard = begin_read(guard_at(guards, slot))
    end_write(guard_at(guards, slot))
    return guard


@compiled
def _is_unchanged(guards, slot, guard):
    return is_unchanged(guard_at(guards, slot), guard)


@pytest.mark.parametrize("first", [0, 6, 2**32 - 2])
def test_a_guard_is_odd_during_a_write_and_has_grown_by_two_afterwards(first: int) -> None:
    guards = np.full(5, first, np.uint32)
    at = address_of(guards)
    assert _write(at, 2) == first + 1
    assert guards.tolist() == [first, first, (first + 2) % 2**32, first, first]
    assert not _is_unchanged(at, 2, np.uint32(first))
    assert _is_unchanged(at, 2, guards[2])
    assert _is_unchanged(at, 1, np.uint32(first))
