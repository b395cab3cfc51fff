from __future__ import annotations

import pytest

from carls_jax.errors import LaunchError
from carls_jax.launch import ReplicaStatus, is_launched, read_processes, status

RUNNING = ReplicaStatus("maker", 1, "running", pid=12, started_at=1.5, restarts=2)


def test_what_is_written_is_read(tmp_path):
    status.write_processes(tmp_path, [RUNNING])
    assert read_processes(tmp_path) == [RUNNING]
    assert RUNNING.name == "maker-1"


def test_nothing_was_launched_in_an_empty_workdir(tmp_path):
    assert read_processes(tmp_path) == []
    assert not is_launched(tmp_path)


def test_a_workdir_has_one_launcher_at_a_time(tmp_path):
    with status.claim(tmp_path):
        assert is_launched(tmp_path)
        with pytest.raises(LaunchError, match="another launcher"), status.claim(tmp_path):
            pass
    assert not is_launched(tmp_path)
    with status.claim(tmp_path):
        pass


def test_a_second_trainer_is_refused_but_a_launcher_is_not(tmp_path):
    with status.claim(tmp_path, "trainer"), status.claim(tmp_path):  # noqa: SIM117
        with (
            pytest.raises(LaunchError, match="another trainer already works in"),
            status.claim(tmp_path, "trainer"),
        ):
            pass
    with status.claim(tmp_path, "trainer"):
        pass
