from __future__ import annotations

import json
from pathlib import Path

import pytest

from carls_jax.errors import ConfigError
from carls_jax.launch.experiment import load
from carls_jax.launch.record import check_unchanged, record_run

TINY = Path(__file__).with_name("tiny_experiment.py")


def tiny(*overrides: str):
    return load(TINY, overrides)


def recorded(workdir: Path) -> dict:
    return json.loads((workdir / "run.json").read_text())["config"]


def test_the_record_tells_all_values(tmp_path):
    record_run(tiny("rate=2", "run.seed=3"), tmp_path / "run")
    config = recorded(tmp_path / "run")
    assert config["file"] == str(TINY)
    assert config["overrides"] == ["rate=2", "run.seed=3"]
    assert config["values"]["rate"] == 2.0
    assert config["values"]["sizes"] == [1, 2]
    assert config["values"]["run"]["session"]["schedule"] == {"every_steps": 0, "delay": 0}


def test_a_directory_without_a_run_takes_any(tmp_path):
    check_unchanged(tiny(), tmp_path)


def test_the_same_values_go_on_and_leave_record_and_result(tmp_path):
    record_run(tiny("rate=2"), tmp_path)
    (tmp_path / "result.json").touch()
    before = (tmp_path / "run.json").stat().st_mtime_ns
    record_run(tiny("rate=2.0"), tmp_path)
    assert (tmp_path / "run.json").stat().st_mtime_ns == before
    assert (tmp_path / "result.json").exists()


def test_other_values_are_refused_and_each_is_named(tmp_path):
    record_run(tiny("rate=2"), tmp_path)
    before = (tmp_path / "run.json").read_text()
    for refuse in (check_unchanged, record_run):
        with pytest.raises(ConfigError) as caught:
            refuse(tiny("num_steps=9", "run.num_workers.each=2"), tmp_path)
        assert str(caught.value) == (
            f"the run in {tmp_path} has other values: num_steps was 6, is 9; rate was 2.0, is 0.5; "
            "run.num_workers.each was not there, is 2. Give another --workdir, or let this run go "
            "on with the new values: carls-jax launch --accept-changes"
        )
    assert (tmp_path / "run.json").read_text() == before


def test_accepted_changes_are_recorded_and_the_old_result_goes(tmp_path):
    record_run(tiny(), tmp_path)
    (tmp_path / "result.json").touch()
    record_run(tiny("num_steps=9"), tmp_path, accept_changes=True)
    assert recorded(tmp_path)["values"]["num_steps"] == 9
    assert not (tmp_path / "result.json").exists()
    check_unchanged(tiny("num_steps=9"), tmp_path)


def test_another_file_is_a_change(tmp_path):
    record_run(tiny(), tmp_path / "run")
    copy = tmp_path / "copy.py"
    copy.write_text(TINY.read_text())
    with pytest.raises(ConfigError, match=r"file was '.*tiny_experiment.py', is '.*copy.py'"):
        check_unchanged(load(copy), tmp_path / "run")


def test_values_that_json_lacks_are_the_same_in_each_process(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "import numpy as np\n"
        "def activation(x): return x\n"
        "def get_config(): return ConfigDict("
        "{'activation': activation, 'dtype': np.dtype('float32'), 'limit': float('nan')})\n"
        "def make_experiment(config): return None\n"
    )
    record_run(load(path), tmp_path)
    check_unchanged(load(path), tmp_path)  # the file is run again: another function object
    assert recorded(tmp_path)["values"]["activation"] == "activation"
