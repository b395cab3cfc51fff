from __future__ import annotations

import json
import mmap
import os

import numpy as np

from carls_jax.bench import machine


def test_the_machine_is_described_in_json_types():
    told = machine.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["num_cores"] == os.cpu_count()
    assert told["versions"]["numpy"] == np.__version__


def test_uncommitted_changes_are_told():
    told = machine.describe()
    assert "uncommitted" in machine.in_words({**told, "has_changes": True})
    assert "uncommitted" not in machine.in_words({**told, "has_changes": False})


def test_what_a_process_takes_in_memory_is_seen():
    before = machine.resident_bytes(os.getpid())
    with mmap.mmap(-1, 1 << 26) as held:  # fresh pages, not what an earlier test gave back
        held[:] = bytes(1 << 26)
        assert machine.resident_bytes(os.getpid()) - before >= 1 << 25


def test_what_a_process_takes_of_the_cpu_is_seen():
    before = machine.cpu_seconds(os.getpid())
    while machine.cpu_seconds(os.getpid()) == before:
        pass
    assert 0 < machine.cpu_seconds(os.getpid()) - before < 1


def test_there_is_free_memory_but_no_more_than_the_machine_has():
    assert 0 < machine.free_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
