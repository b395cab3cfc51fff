"""What a launcher tells of its program: to its callers, and to other processes by its workdir."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from carls_jax.errors import LaunchError
from carls_jax.launch.atomic_file import replace_text

State = Literal["starting", "running", "restarting", "stopping", "done", "stopped", "failed"]
EventKind = Literal["started", "ended", "restarting", "stopping", "killed", "finished"]


@dataclass(frozen=True)
class ReplicaStatus:
    """Describes one replica at one moment.

    Attributes:
      role, index: Which replica.
      state: `restarting` waits for its restart; `done` finished its work, `stopped` ended because
        it was told to, `failed` died more often than its policy allows.
      pid: Its process, which also leads its process group; None while there is none.
      started_at: Seconds since the epoch of the last start; None before the first.
      restarts: Restarts since the launch.
    """

    role: str
    index: int
    state: State
    pid: int | None
    started_at: float | None
    restarts: int

    @property
    def name(self) -> str:
        """The replica's name, as in `maker-0`."""
        return f"{self.role}-{self.index}"


@dataclass(frozen=True)
class LaunchEvent:
    """Tells that something happened to a replica, or to the program (`replica` is empty)."""

    kind: EventKind
    replica: str
    text: str


def write_processes(workdir: Path, replicas: Sequence[ReplicaStatus]) -> None:
    """Replaces `<workdir>/processes.json`, which tells other processes what runs here."""
    content = {"launcher_pid": os.getpid(), "replicas": [asdict(replica) for replica in replicas]}
    replace_text(workdir / "processes.json", json.dumps(content, indent=1) + "\n")


def read_processes(workdir: str | os.PathLike[str]) -> list[ReplicaStatus]:
    """Reads what `write_processes` wrote; empty where nothing was launched.

    A launcher that was killed leaves its last words here: ask `is_launched` too.
    """
    path = Path(workdir) / "processes.json"
    if not path.exists():
        return []
    return [ReplicaStatus(**replica) for replica in json.loads(path.read_text())["replicas"]]


@contextlib.contextmanager
def claim(workdir: Path, who: Literal["launch", "trainer"] = "launch") -> Iterator[None]:
    """Holds a workdir, so that no second launcher, or no second trainer, works in it.

    The system drops the claim with the process, so a killed one leaves none behind.

    Raises:
      LaunchError: Another process holds it.
    """
    with (workdir / f"{who}.lock").open("w") as lock:
        if not _try_lock(lock):
            name = "launcher" if who == "launch" else who
            raise LaunchError(
                f"another {name} already works in {workdir}; stop it, or give another workdir"
            )
        yield


def is_launched(workdir: str | os.PathLike[str]) -> bool:
    """Tells whether a launcher works in this workdir now."""
    path = Path(workdir) / "launch.lock"
    if not path.exists():
        return False
    with path.open("r") as lock:
        return not _try_lock(lock)


def _try_lock(lock: IO[str]) -> bool:
    """Takes the lock until the file is closed; returns False where another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
