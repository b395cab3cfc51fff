"""One replica of a role: its process, its log, its restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from pathlib import Path

from carls_jax.launch.guardian import Guardian
from carls_jax.launch.program import Role
from carls_jax.launch.status import ReplicaStatus, State

_TAIL_BYTES = 64 * 1024


class Replica:
    """Starts, stops and counts the processes of one replica; to be used by one thread."""

    def __init__(self, role: Role, index: int, *, logs: Path) -> None:
        self.role = role
        self.name = role.replica_name(index)
        self.state: State = "starting"
        self.restart_at: float | None = None  # on the monotonic clock
        self.log = logs / f"{self.name}.log"
        self._index = index
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at: float | None = None
        self._num_starts = 0
        self._restart_times: deque[float] = deque()

    @property
    def is_alive(self) -> bool:
        """Whether a process was started and its end has not been seen."""
        return self._process is not None

    @property
    def status(self) -> ReplicaStatus:
        """What others may know of the replica."""
        return ReplicaStatus(
            role=self.role.name,
            index=self._index,
            state=self.state,
            pid=self._process.pid if self._process else None,
            started_at=self._started_at,
            restarts=max(0, self._num_starts - 1),
        )

    def start(self, guardian: Guardian) -> subprocess.Popen[bytes]:
        """Starts the process, in a session and process group of its own, with its log."""
        self._started_at = time.time()
        with self.log.open("ab") as log:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._started_at))
            log.write(f"=== {self.name}, start {self._num_starts + 1}, {stamp} ===\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                guardian.command(self.role.replica_argv(self._index)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                pass_fds=(guardian.inherited_fd,),
                start_new_session=True,
            )
        self._num_starts += 1
        self.restart_at = None
        self.state = "running"
        return self._process

    def terminate(self) -> None:
        """Asks the process to end (SIGTERM); its workers hear of it from the process itself."""
        assert self._process is not None
        self.state = "stopping"
        self._process.terminate()

    def kill(self) -> None:
        """Ends the process, and every process of its group, at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):  # the whole group has ended
                os.killpg(self._process.pid, signal.SIGKILL)

    def bury(self, guardian: Guardian) -> None:
        """Ends what the dead process left in its group, and forgets the process."""
        assert self._process is not None
        self.kill()
        guardian.forget(self._process.pid)
        self._process = None

    def plan_restart(self) -> float | None:
        """Sets `restart_at` and returns the wait in seconds; None if the policy forbids one."""
        policy, now = self.role.restarts, time.monotonic()
        while self._restart_times and self._restart_times[0] <= now - policy.window_s:
            self._restart_times.popleft()
        if len(self._restart_times) >= policy.max_restarts:
            return None
        delay_s = policy.delay_s(len(self._restart_times))
        self._restart_times.append(now + delay_s)
        self.restart_at = now + delay_s
        return delay_s

    def log_tail(self, *, num_lines: int = 20) -> str:
        """Returns the last lines of the log."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def _environment(self) -> dict[str, str]:
        # Unbuffered: what a Python role prints is in the log even when it is killed.
        own = {"PYTHONUNBUFFERED": "1", **self.role.replica_environment(self._index)}
        return {**os.environ, **own}


def describe_exit(code: int) -> str:
    """Puts an exit code of `subprocess` into words: negative ones are signals."""
    if code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}"
