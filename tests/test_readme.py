"""The README's programs, commands and file tree, as a new user meets them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands() -> list[str]:
    text = "".join(blocks("sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("carls-jax ")]


@pytest.mark.parametrize("path", ["minimal/config.py", "minimal/own_loop.py"])
def test_the_programs_shown_are_the_files_named(path: str) -> None:
    assert (ROOT / "experiments" / path).read_text() in blocks("python")


def test_a_loop_of_ones_own_takes_at_most_40_lines() -> None:
    assert len((ROOT / "experiments/minimal/own_loop.py").read_text().splitlines()) <= 40


def test_the_loop_of_ones_own_learns() -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "experiments/minimal/own_loop.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(finished.stdout.split()[-1]) > 0.85


def test_the_program_for_the_bank_alone_runs() -> None:
    (program,) = [block for block in blocks("python") if "carls.connect" in block]
    exec(program, {})


def test_the_file_tree_names_what_is_there() -> None:
    (tree,) = [block for block in blocks("") if block.startswith("carls_jax/")]
    folder, missing, named = "", [], set()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = name if name == folder else folder + name
        named.add(path.rstrip("/"))
        if not (ROOT / path).exists():
            missing.append(path)
    assert missing == []
    inside = {
        f"carls_jax/{path.name}"
        for path in (ROOT / "carls_jax").iterdir()
        if not path.name.startswith(("_", ".")) and path.name != "py.typed"
    }
    assert inside <= named


def test_the_readme_runs_one_experiment_in_one_process_and_in_several() -> None:
    launches = [command for command in commands() if command.startswith("carls-jax launch")]
    assert any("--config.run.mode=inline" in command for command in launches)
    assert any("mode=inline" not in command for command in launches)


def test_the_commands_of_a_run_work_one_after_another(tmp_path: Path) -> None:
    few = ["--config.num_steps=20", "--config.run.session.checkpoint_every_steps=10"]
    inline = ["--config.run.mode=inline"]
    done = []
    for command in commands():
        words = shlex.split(command.replace("runs/", f"{tmp_path}/"))
        if words[1] in ("launch", "sweep"):
            words += few + inline
        words = [one.replace("experiments/", f"{ROOT}/experiments/") for one in words[1:]]
        done.append(words[0])
        finished = subprocess.run(
            [sys.executable, "-m", "carls_jax.cli", *words], capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
    assert {"launch", "status", "explain", "sweep"} <= set(done)
