from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from carls_jax.errors import ConfigError, LaunchError
from carls_jax.launch.sweep import points_of, run_sweep

COUNTING = """
import json, pathlib
from ml_collections import ConfigDict
import carls_jax as carls

RUNS = pathlib.Path(__file__).with_name("runs.txt")

def get_config():
    return ConfigDict({"rate": 0.5, "kind": "a", "run": {"mode": "inline"}})

def make_experiment(config):
    def train(session):
        with RUNS.open("a") as file:
            print(config.rate, config.kind, file=file)
        if config.kind == "bad":
            raise RuntimeError("a bad kind")
        if config.kind == "stopped":
            raise KeyboardInterrupt
        return {"score": 2 * config.rate, "note": config.kind}
    return carls.Experiment(train)
"""


@pytest.fixture
def config(tmp_path) -> Path:
    """An experiment whose runs are noted in `runs.txt` beside it."""
    path = tmp_path / "counting.py"
    path.write_text(COUNTING)
    return path


@pytest.fixture
def runs(tmp_path):
    """Returns a function that tells what was run since it was last asked."""
    path = tmp_path / "runs.txt"

    def since() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return since


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (["seed=2..4"], [{"seed": "2"}, {"seed": "3"}, {"seed": "4"}]),
        (["delay=0,3,once"], [{"delay": "0"}, {"delay": "3"}, {"delay": "once"}]),
        (["rate=0.1,1e-3"], [{"rate": "0.1"}, {"rate": "1e-3"}]),
        (["sizes=(1,2),[3]"], [{"sizes": "(1,2)"}, {"sizes": "[3]"}]),
        (["path=../x"], [{"path": "../x"}]),
        (
            ["a=0..1", "b=x,y"],
            [
                {"a": "0", "b": "x"},
                {"a": "0", "b": "y"},
                {"a": "1", "b": "x"},
                {"a": "1", "b": "y"},
            ],
        ),
    ],
)
def test_a_grid_is_all_combinations_of_the_axes(axes, expected):
    assert points_of(axes) == expected


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (["seed"], "--set seed: write NAME=FIRST..LAST"),
        (["seed="], "--set seed=: write NAME=FIRST..LAST"),
        (["=1"], "--set =1: write NAME=FIRST..LAST"),
        (["seed=4..2"], "--set seed=4..2: a range is FIRST..LAST"),
        (["seed=1,2", "seed=3"], "--set seed=3: seed is set twice"),
    ],
)
def test_an_axis_that_cannot_be_read_is_refused(axes, expected):
    with pytest.raises(ConfigError) as caught:
        points_of(axes)
    assert str(caught.value).startswith(expected)


def test_a_sweep_runs_each_point_once_into_one_table(config, runs, tmp_path):
    workdir = tmp_path / "sweep"
    axes = ["rate=1,2", "kind=a,b/c"]
    table = run_sweep(config, workdir, axes=axes)
    assert runs() == ["1.0 a", "1.0 b/c", "2.0 a", "2.0 b/c"]
    assert table.splitlines() == [
        "| rate | kind | score |",
        "| --- | --- | --- |",
        "| 1 | a | 2 |",
        "| 1 | b/c | 2 |",
        "| 2 | a | 4 |",
        "| 2 | b/c | 4 |",
    ]
    with (workdir / "sweep.csv").open() as file:
        assert list(csv.DictReader(file))[1] == {"rate": "1", "kind": "b/c", "score": "2.0"}
    assert (workdir / "rate=1,kind=b_c" / "run.json").exists()

    result = workdir / "rate=1,kind=a" / "result.json"
    result.write_text(json.dumps({"score": 9}))
    (workdir / "rate=2,kind=a" / "result.json").unlink()
    assert "| 1 | a | 9 |" in run_sweep(config, workdir, axes=[*axes])
    assert runs() == ["2.0 a"]  # the others have a result

    with pytest.raises(ConfigError, match=r"rate=1,kind=a has other values: run.seed was 0, is 3"):
        run_sweep(config, workdir, axes=axes, overrides=["run.seed=3"])
    assert runs() == []


def test_a_point_that_cannot_be_is_found_before_any_is_run(config, runs, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.rate='x': expected float"):
        run_sweep(config, tmp_path / "sweep", axes=["rate=1,x"])
    with pytest.raises(ConfigError, match="did you mean 'rate'"):
        run_sweep(config, tmp_path / "sweep", axes=["rat=1"])
    assert runs() == []


def test_a_run_that_fails_does_not_keep_the_others_from_being_run(config, runs, tmp_path, caplog):
    workdir = tmp_path / "sweep"
    with pytest.raises(LaunchError, match=r"1 of 2 runs failed: \S*kind=bad; the others are in"):
        run_sweep(config, workdir, axes=["kind=bad,b"])
    assert runs() == ["0.5 bad", "0.5 b"]
    assert "RuntimeError: a bad kind" in caplog.text
    assert (workdir / "sweep.csv").read_text().split() == ["kind,score", "b,1.0"]


def test_a_sweep_that_is_interrupted_keeps_what_it_has(config, runs, tmp_path):
    workdir = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, workdir, axes=["kind=a,stopped,b"])
    assert runs() == ["0.5 a", "0.5 stopped"]
    assert (workdir / "sweep.csv").read_text().split() == ["kind,score", "a,1.0"]
