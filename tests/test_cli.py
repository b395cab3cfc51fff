from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import BankServer
from carls_jax.cli import main

TINY = Path(__file__).parent / "launch" / "tiny_experiment.py"
COMMANDS = ("launch", "bank", "make", "train", "status", "explain", "sweep")
INLINE = ("--config.run.mode=inline", "--config.run.session.schedule.every_steps=3")
NODES = carls.TableSpec("nodes", {"score": carls.Field()})


@pytest.fixture
def refused(capsys):
    """Returns a function that gives a command that is wrong and returns what it is answered."""

    def give(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return give


@pytest.fixture
def failed(capsys):
    """Returns a function that gives a command that fails and returns its one line."""

    def give(*arguments: str) -> str:
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    return give


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.split()[0] == "carls-jax"


def test_the_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(f"\n    {command} " in told for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_that_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert "--workdir WORKDIR" in told
    assert ("--config.NAME=VALUE" in told) == (command in ("launch", "make", "train", "sweep"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lanch"], "carls-jax has no 'lanch'; did you mean 'launch'?"),
        (["frobnicate"], "make, snapshots, status, sweep, train"),
        (["--versoin"], "carls-jax has no '--versoin'; did you mean '--version'?"),
        (["status", "--wrkdir=x"], "carls-jax status has no '--wrkdir'; did you mean '--workdir'?"),
        (["launch", "--workdi", "x"], "has no '--workdi'; did you mean '--workdir'?"),
        (["status", "--workdir", "x", "--config.y=1"], "--config.y=1: status reads no config"),
        (["status"], "the following arguments are required: --workdir"),
        ([], "the following arguments are required: COMMAND"),
        (["status", "x", "--workdir", "y"], "unrecognized arguments: x"),
        (["bank", "--root", "x", "--shard", "2"], "'2': write INDEX/COUNT, such as 0/2"),
        (["explain", "nodes", "1"], "one of the arguments --workdir --address is required"),
        (
            ["make", "--config=x", "--workdir=y", "--maker=z", "--worker=w"],
            "invalid int value: 'w'",
        ),
    ],
)
def test_a_command_that_is_wrong_is_told_the_nearest_right_one(refused, arguments, expected):
    assert refused(*arguments).endswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status", "--workdir=nowhere"], "status: ConfigError: workdir=nowhere holds no run"),
        (["explain", "nodes", "1", "--workdir=nowhere"], "explain: SnapshotNotFoundError: workdir"),
        (["launch", "--config=x.py", "--workdir=y"], "launch: ConfigError: --config=x.py: no such"),
        (["bank"], "bank: ConfigError: give --workdir, or else --root and --address"),
        (["bank", "--root=x"], "bank: ConfigError: give --workdir, or else --root and --address"),
        (["bank", "--workdir=x", "--shard=2/2"], "bank: ConfigError: shard=2/2: the first is 0"),
        (["bank", "--workdir=x", "--shard=0/2"], "bank: ConfigError: a bank of several shards"),
    ],
)
def test_an_error_is_one_line(failed, arguments, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert failed(*arguments).startswith(f"carls-jax {expected}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["launch", "--config.rat=1"], "config has no 'rat'; did you mean 'rate'?"),
        (["train", "--config.run.seed=x"], "config.run.seed='x': expected int"),
        (["make", "--maker=wole"], "the experiment's makers has no 'wole'; did you mean 'whole'?"),
        (["make", "--maker=each", "--worker=1"], "worker=1: maker 'each' has 1, counted"),
        (["sweep", "--set=run.seed=a"], "config.run.seed='a': expected int"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(failed, command, expected, tmp_path):
    line = failed(*command, f"--config={TINY}", f"--workdir={tmp_path / 'run'}")
    assert line.partition(" ConfigError: ")[2].startswith(expected)
    assert not (tmp_path / "run").exists()


def test_an_error_tells_the_line_of_the_experiment_that_led_to_it(failed, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "import carls_jax as carls\n"
        "def get_config(): return ConfigDict({'run': {'mode': 'inline'}})\n"
        "def make_experiment(config):\n"
        "    def train(session):\n"
        "        session.bank.table('nodes')\n"
        "    return carls.Experiment(train)\n"
    )
    line = failed("launch", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert line.startswith("carls-jax launch: TableNotFoundError: no table 'nodes'; this bank has")
    assert line.endswith(f" ({path}, line 6)")


def test_an_interrupted_command_says_how_to_go_on(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): raise KeyboardInterrupt\n"
        "def make_experiment(config): return None\n"
    )
    assert main(["launch", f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 130
    assert capsys.readouterr().err == "carls-jax launch: interrupted\n"


def test_a_launch_tells_its_results_and_where_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["launch", f"--config={TINY}", "--workdir=run", *INLINE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finished in ")
    # Up to step 3 the makers saw w = 0: w = 4 * (3 + 6 + 9) = 72, which they see from then on.
    assert lines[1] == f"  w {72 + 4 * (12 + 15 + 18) + 3 * 0.5 * 3 * 72:.0f}"
    assert "results      run/result.json" in lines
    assert "metrics      run/metrics" in lines

    assert main(["status", "--workdir=run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("run: stopped\n")
    assert "table numbers: 8 rows" in told
    assert main(["explain", "words", "three", "--workdir=run"]) == 0
    assert "length = 5  (version 2 by whole/0 from step 3" in capsys.readouterr().out


def test_explain_asks_the_bank_at_an_address(tmp_path, capsys):
    bank = carls.LocalBank(source="me")
    with bank, BankServer(bank, f"unix:{tmp_path}/socket") as server:
        bank.table(NODES).update([-3], {"score": np.ones(1)})
        assert main(["explain", "nodes", "-3", "--address", server.address]) == 0
    assert capsys.readouterr().out.startswith(
        "row -3 of table 'nodes'\n  score = 1  (version 1 by me"
    )


def test_a_sweep_prints_its_table(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "import carls_jax as carls\n"
        "def get_config(): return ConfigDict({'x': 0})\n"
        "def make_experiment(config):\n"
        "    return carls.Experiment(lambda session: {'twice': 2 * config.x})\n"
    )
    arguments = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--set=x=1..2"]
    assert main([*arguments, "--config.run.mode=inline"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| 1 | 2 |", "| 2 | 4 |"]


def test_what_a_bank_server_needs_does_not_import_jax():
    code = (
        "import sys; import carls_jax, carls_jax.cli, carls_jax.launch.serving; "
        "print([name for name in ('jax', 'flax', 'optax', 'orbax') if name in sys.modules])"
    )
    answer = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
