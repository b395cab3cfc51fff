"""From an experiment to a program: which processes, with which commands."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from carls_jax.launch.atomic_file import replace_text
from carls_jax.launch.experiment import Loaded
from carls_jax.launch.program import Program, Role

_COMMAND = (sys.executable, "-m", "carls_jax.cli")
_MAKERS_STOP, _BANK_STOPS = 0, 1  # makers end before the bank that they write to


def program_of(
    loaded: Loaded, workdir: Path, *, sockets: Path, accept_changes: bool = False
) -> Program:
    """Returns the program of an experiment: bank servers, makers' workers and one trainer.

    A run that uses a bank which is served already has no servers of its own.

    Args:
      loaded: The experiment.
      workdir: Directory of the run; an absolute path.
      sockets: Directory for unix sockets, see `addresses.socket_directory`.
      accept_changes: Lets the trainer go on with values other than the run began with.
    """
    experiment = ("--config", str(loaded.path), "--workdir", str(workdir))
    overrides = tuple(f"--config.{one}" for one in loaded.overrides)
    makers = tuple(
        Role(
            name,
            (*_COMMAND, "make", *experiment, *overrides, "--maker", name, "--worker", "{index}"),
            count=count,
            is_service=True,
            stop_order=_MAKERS_STOP,
        )
        for name, count in loaded.num_workers.items()
    )
    accepted = ("--accept-changes",) if accept_changes else ()
    trainer = Role("trainer", (*_COMMAND, "train", *experiment, *overrides, *accepted))
    banks = () if loaded.run.bank.address else (_bank(loaded, workdir, sockets),)
    return Program((*banks, *makers, trainer))


def _bank(loaded: Loaded, workdir: Path, sockets: Path) -> Role:
    num_shards = loaded.run.num_shards
    is_tcp = loaded.run.transport == "tcp"
    address = "127.0.0.1:0" if is_tcp else f"unix:{sockets}/bank-{{index}}.sock"
    argv = [*_COMMAND, "bank", "--workdir", str(workdir), "--address", address]
    argv += ["--journal", loaded.run.journal]
    if num_shards > 1:
        argv += ["--shard", f"{{index}}/{num_shards}", "--bank-id", _bank_id(workdir)]
    return Role("bank", tuple(argv), count=num_shards, is_service=True, stop_order=_BANK_STOPS)


def _bank_id(workdir: Path) -> str:
    """Returns the identifier of the workdir's bank, the same at every launch and on every shard."""
    path = workdir / "bank_id"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(path, uuid.uuid4().hex)
    return path.read_text()
