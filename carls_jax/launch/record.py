"""The record of a run, `run.json`: with which values it was begun, and whether they are the same.

A run that goes on with other values than it began with is no longer what its record says, and may
not even fit its checkpoints. So that is refused, unless it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from carls_jax.errors import ConfigError
from carls_jax.launch.experiment import Loaded
from carls_jax.metrics import write_run_record


def check_unchanged(loaded: Loaded, workdir: Path) -> None:
    """Checks that a run in this directory, if there is one, was begun with these values.

    Raises:
      ConfigError: It was not; the message tells each difference, and the ways out.
    """
    changes = _changes(loaded, workdir)
    if changes:
        raise ConfigError(
            f"the run in {workdir} has other values: {'; '.join(changes)}. Give another --workdir, "
            "or let this run go on with the new values: carls-jax launch --accept-changes"
        )


def record_run(loaded: Loaded, workdir: Path, *, accept_changes: bool = False) -> None:
    """Writes `run.json`, unless it is there already.

    Args:
      loaded: The experiment.
      workdir: Directory of the run.
      accept_changes: Lets a run go on with other values. They are written to the record, and a
        result of the old ones is removed.

    Raises:
      ConfigError: As `check_unchanged`; nothing was written.
    """
    if not accept_changes:
        check_unchanged(loaded, workdir)
    if _changes(loaded, workdir) or not _path(workdir).exists():
        (workdir / "result.json").unlink(missing_ok=True)
        write_run_record(workdir, _config_of(loaded))


def _path(workdir: Path) -> Path:
    return workdir / "run.json"


def _config_of(loaded: Loaded) -> dict[str, Any]:
    """Returns what the record says of the config, in JSON's types."""
    config = {
        "file": str(loaded.path),
        "overrides": list(loaded.overrides),
        "values": loaded.config.to_dict(),
    }
    return json.loads(json.dumps(config, default=_named))


def _named(value: Any) -> str:
    # The `str` of a function holds its address in memory, which is another in each process.
    return getattr(value, "__qualname__", None) or str(value)


def _changes(loaded: Loaded, workdir: Path) -> list[str]:
    """Returns, in words, what differs from the record; nothing where there is none."""
    if not _path(workdir).exists():
        return []
    recorded = json.loads(_path(workdir).read_text())["config"]
    old, new = (
        dict(_flat({"file": config["file"], **config["values"]}))
        for config in (recorded, _config_of(loaded))
    )
    return [
        f"{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", repr(value)
