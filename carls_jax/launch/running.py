"""`run_experiment`: one launch of an experiment, in processes or inline, from start to end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from carls_jax.launch.addresses import socket_directory
from carls_jax.launch.experiment import Loaded
from carls_jax.launch.local import Outcome, run_program
from carls_jax.launch.progress import open_screen
from carls_jax.launch.record import check_unchanged, record_run
from carls_jax.launch.roles import run_inline
from carls_jax.launch.status import LaunchEvent, claim
from carls_jax.launch.wiring import program_of


def run_experiment(
    loaded: Loaded,
    workdir: Path,
    *,
    accept_changes: bool = False,
    on_event: Callable[[LaunchEvent], None] | None = None,
) -> Outcome:
    """Runs an experiment to its end and shows its progress. A run in `workdir` goes on.

    One that has a result is not run again, unless `accept_changes` is given.

    Args:
      loaded: The experiment.
      workdir: Directory of the run, made if it is not there.
      accept_changes: Lets a run go on with other values than it began with.
      on_event: Told what happens to the processes, as in `run_program`.

    Raises:
      ConfigError: The experiment cannot work, or the run in `workdir` has other values.
      LaunchError: A role failed too often, or another launcher works in `workdir`.
    """
    workdir = workdir.absolute()
    if not accept_changes:
        check_unchanged(loaded, workdir)
        if (workdir / "result.json").exists():
            print(f"the run in {workdir} had finished already", file=sys.stderr)
            return Outcome(exit_code=0, restarts={}, duration_s=0.0)
    if loaded.run.mode == "inline":
        return _run_inline(loaded, workdir, accept_changes=accept_changes)
    # An accelerator belongs to one process, the trainer; this one only asks which makers there are.
    jax.config.update("jax_platforms", "cpu")
    with socket_directory(workdir) as sockets:
        return run_program(
            program_of(loaded, workdir, sockets=sockets, accept_changes=accept_changes),
            workdir=workdir,
            screen=open_screen(workdir),
            on_event=on_event,
        )


def _run_inline(loaded: Loaded, workdir: Path, *, accept_changes: bool) -> Outcome:
    started = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    with claim(workdir), _metrics_shown():
        record_run(loaded, workdir, accept_changes=accept_changes)
        run_inline(loaded, workdir)
    return Outcome(exit_code=0, restarts={}, duration_s=time.monotonic() - started)


@contextmanager
def _metrics_shown() -> Iterator[None]:
    """Shows each line of metrics as it is written; a screen of its own would hinder a debugger."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("carls_jax.metrics")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
