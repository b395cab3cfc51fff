from __future__ import annotations

import functools
import math
import os

import pytest

from carls_jax.bench.worker import worker


def test_a_worker_calls_in_another_process_as_often_as_asked():
    with worker(functools.partial, math.pow, 2.0) as powers_of_two:
        powers_of_two.begin(3.0)
        assert powers_of_two.result() == 8.0
        powers_of_two.begin(4.0)
        assert powers_of_two.result() == 16.0
        assert not powers_of_two.is_done()
    with worker(functools.partial, os.getpid) as asked:
        asked.begin()
        assert asked.result() != os.getpid()


def test_the_death_of_a_worker_is_told():
    with worker(functools.partial, os._exit) as dying:
        dying.begin(1)
        with pytest.raises((EOFError, ConnectionResetError)):
            dying.result()
