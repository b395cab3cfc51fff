"""`run_sweep`: a grid of runs of one experiment, resumable, into one table."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carls_jax.errors import CarlsError, ConfigError, LaunchError
from carls_jax.launch.experiment import load
from carls_jax.launch.record import check_unchanged
from carls_jax.launch.running import run_experiment

_log = logging.getLogger(__name__)

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# A comma that is not within brackets.
_COMMA = re.compile(r",(?![^(\[]*[)\]])")


def run_sweep(
    config: Path, workdir: Path, *, axes: Sequence[str], overrides: Sequence[str] = ()
) -> str:
    """Runs an experiment once for each combination of values, one after another.

    A run that has a result is not run again, so a sweep that was stopped goes on. A run that fails
    does not keep the others from being run.

    Args:
      config: The experiment's file.
      workdir: Each run gets a directory below it; `sweep.csv` is the table.
      axes: Such as "run.seed=0..4" or "run.session.schedule.delay=0,3,once".
      overrides: Assignments for all runs.

    Returns:
      The table, as Markdown: the axes, and each number that the training loop returned.

    Raises:
      ConfigError: An axis names no value of the config, a value does not fit, or a run that is
        there has other values; nothing was run.
      LaunchError: Runs failed; the message names their directories.
      KeyboardInterrupt: A signal stopped a run.
    """
    grid = points_of(axes)
    for point in grid:
        check_unchanged(load(config, [*overrides, *_assignments(point)]), workdir / _name(point))
    rows, failed = [], []
    for number, point in enumerate(grid, start=1):
        directory = workdir / _name(point)
        _log.info("run %d of %d: %s", number, len(grid), directory)
        try:
            rows.append({**point, **_result(config, directory, [*overrides, *_assignments(point)])})
        except Exception as error:
            _log.error(
                "%s failed: %s", directory, error, exc_info=not isinstance(error, CarlsError)
            )
            failed.append(str(directory))
        _write_table(workdir / "sweep.csv", rows)
    if failed:
        raise LaunchError(
            f"{len(failed)} of {len(grid)} runs failed: {', '.join(failed)}; the others are in "
            f"{workdir / 'sweep.csv'}. The same command tries these again"
        )
    return _markdown(rows)


def points_of(axes: Sequence[str]) -> list[dict[str, str]]:
    """Returns all combinations of the values of the axes, as text by name.

    An axis is "name=0..4", both ends included, or "name=a,b,c".
    """
    values: dict[str, list[str]] = {}
    for axis in axes:
        name, equals, text = axis.partition("=")
        if not (name and equals and text):
            raise ConfigError(f"--set {axis}: write NAME=FIRST..LAST or NAME=VALUE,VALUE")
        if name in values:
            raise ConfigError(f"--set {axis}: {name} is set twice; give all its values at once")
        values[name] = _values(axis, text)
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def _values(axis: str, text: str) -> list[str]:
    ends = _RANGE.fullmatch(text)
    if ends is None:
        return _COMMA.split(text)
    first, last = map(int, ends.groups())
    if first > last:
        raise ConfigError(f"--set {axis}: a range is FIRST..LAST, both included, such as 0..4")
    return [str(number) for number in range(first, last + 1)]


def _assignments(point: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in point.items()]


def _name(point: Mapping[str, str]) -> str:
    """Returns the name of a run's directory, such as "run.seed=0,run.mode=inline"."""
    return ",".join(_assignments(point)).replace("/", "_")


def _result(config: Path, directory: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Returns the numbers that a run gave, which is run if it has given none yet."""
    path = directory / "result.json"
    if not path.exists() and run_experiment(load(config, overrides), directory).exit_code:
        raise KeyboardInterrupt
    return {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if isinstance(value, int | float)
    }


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _columns(rows))
        writer.writeheader()
        writer.writerows(rows)


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = _columns(rows)
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
