from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from carls_jax.errors import ConfigError, LaunchError
from carls_jax.launch.experiment import load
from carls_jax.launch.running import run_experiment
from carls_jax.launch.status import claim

TINY = Path(__file__).with_name("tiny_experiment.py")
INLINE = ("run.mode=inline", "run.session.schedule.every_steps=2", "run.session.log_every_steps=3")


def result_of(workdir: Path) -> float:
    return json.loads((workdir / "result.json").read_text())["w"]


def test_an_inline_run_shows_its_metrics_and_goes_on_with_changes_only_if_they_are_accepted(
    tmp_path, capfd
):
    outcome = run_experiment(load(TINY, INLINE), tmp_path / "run")
    assert (outcome.exit_code, outcome.restarts) == (0, {})
    shown = [line.split("  ") for line in capfd.readouterr().err.splitlines()]
    assert [words[1:3] for words in shown if words[1] == "trainer-0"] == [
        ["trainer-0", "step 3"],
        ["trainer-0", "step 6"],
    ]
    assert not logging.getLogger("carls_jax.metrics").isEnabledFor(logging.DEBUG)

    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert run_experiment(load(TINY, INLINE), tmp_path / "run").exit_code == 0
    assert "had finished already" in capfd.readouterr().err
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before

    longer = load(TINY, [*INLINE, "num_steps=10"])
    with pytest.raises(ConfigError, match="num_steps was 6, is 10"):
        run_experiment(longer, tmp_path / "run")
    run_experiment(longer, tmp_path / "run", accept_changes=True)
    run_experiment(longer, tmp_path / "whole")
    assert result_of(tmp_path / "run") == result_of(tmp_path / "whole")


def test_a_workdir_that_is_in_use_is_refused(tmp_path):
    with claim(tmp_path), pytest.raises(LaunchError, match="another launcher already works in"):
        run_experiment(load(TINY, INLINE), tmp_path)
    assert not (tmp_path / "run.json").exists()
