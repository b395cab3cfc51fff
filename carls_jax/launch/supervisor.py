"""Keeps the replicas of a program running, and stops them in their order.

start all → restart what dies → the finite roles have finished → stop what still runs
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from carls_jax.errors import LaunchError
from carls_jax.launch.guardian import Guardian
from carls_jax.launch.program import Program
from carls_jax.launch.replica import Replica, describe_exit
from carls_jax.launch.status import EventKind, LaunchEvent, ReplicaStatus, write_processes


@dataclass(frozen=True)
class _Ended:
    """Tells that a replica's process has ended."""

    replica: Replica
    exit_code: int


@dataclass(frozen=True)
class _Stop:
    """Asks to stop; `at_once` leaves no time to end cleanly."""

    exit_code: int
    at_once: bool


class Supervisor:
    """Starts, restarts and stops processes; one thread calls `run`, once.

    That thread owns all state, so there are no locks. It learns what happens from one queue: a
    thread per process waits for its end and puts it there, and `stop` its request. What other
    threads may see (`replicas`) is replaced as a whole.
    """

    def __init__(
        self,
        program: Program,
        *,
        workdir: Path,
        guardian: Guardian,
        on_event: Callable[[LaunchEvent], None],
        stop_grace_s: float,
    ) -> None:
        logs = workdir / "logs"
        self._replicas = [
            Replica(role, index, logs=logs) for role in program.roles for index in range(role.count)
        ]
        self._workdir = workdir
        self._guardian = guardian
        self._on_event = on_event
        self._grace_s = stop_grace_s
        # SimpleQueue: its `put` may interrupt itself, as when a signal handler calls `stop`.
        self._messages: queue.SimpleQueue[_Ended | _Stop] = queue.SimpleQueue()
        self._published = tuple(replica.status for replica in self._replicas)

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """The replicas as they are now. Any thread may ask."""
        return self._published

    def stop(self, *, exit_code: int, at_once: bool) -> None:
        """Asks `run` to stop the program. Any thread and any signal handler may call it."""
        self._messages.put(_Stop(exit_code, at_once))

    def run(self) -> int:
        """Runs the program to its end, and returns 0 or the exit code given to `stop`.

        Raises:
          LaunchError: A replica died more often than its policy allows; all others were stopped.
        """
        try:
            try:
                for replica in self._replicas:
                    self._start(replica)
                return self._keep_running()
            finally:
                self._stop_all()
        finally:
            self._tell("finished", "the program has ended")

    def _keep_running(self) -> int:
        finite = [replica for replica in self._replicas if not replica.role.is_service]
        while any(replica.state != "done" for replica in finite):
            message = self._next_message(self._next_restart_at())
            if isinstance(message, _Stop):
                return message.exit_code
            if isinstance(message, _Ended):
                self._finish_or_plan_restart(message.replica, message.exit_code)
            for replica in self._replicas:
                if replica.restart_at is not None and replica.restart_at <= time.monotonic():
                    self._start(replica)
        return 0

    def _start(self, replica: Replica) -> None:
        process = replica.start(self._guardian)

        def wait() -> None:
            self._messages.put(_Ended(replica, process.wait()))

        threading.Thread(target=wait, name=f"wait-{replica.name}", daemon=True).start()
        self._tell("started", f"started, pid {process.pid}", replica)

    def _finish_or_plan_restart(self, replica: Replica, exit_code: int) -> None:
        replica.bury(self._guardian)
        is_finished = exit_code == 0 and not replica.role.is_service
        delay_s = None if is_finished else replica.plan_restart()
        replica.state = "done" if is_finished else "failed" if delay_s is None else "restarting"
        self._tell("ended", f"ended with {describe_exit(exit_code)}", replica)
        if replica.state == "failed":
            raise _failure(replica, exit_code)
        if replica.state == "restarting":
            self._tell("restarting", f"starts again in {delay_s:g} s", replica)

    def _stop_all(self) -> None:
        for replica in self._replicas:
            if replica.state in ("starting", "restarting"):  # it has no process to be stopped
                replica.state = "stopped"
        for order in sorted({replica.role.stop_order for replica in self._replicas}):
            peers = [replica for replica in self._replicas if replica.role.stop_order == order]
            for replica in _alive(peers):
                replica.terminate()
                self._tell("stopping", "is asked to stop", replica)
            self._wait_for_end(peers, timeout_s=self._grace_s)
            for replica in _alive(peers):
                replica.kill()
                self._tell("killed", f"did not stop within {self._grace_s:g} s: killed", replica)
            self._wait_for_end(peers, timeout_s=None)

    def _wait_for_end(self, peers: Sequence[Replica], *, timeout_s: float | None) -> None:
        """Waits until the peers have ended, the time is over, or somebody wants it at once."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while _alive(peers):
            message = self._next_message(deadline)
            if message is None:
                return
            if isinstance(message, _Ended):
                message.replica.bury(self._guardian)
                message.replica.state = "stopped"
                text = f"ended with {describe_exit(message.exit_code)}"
                self._tell("ended", text, message.replica)
            elif message.at_once:
                self._grace_s = 0.0
                deadline = None if timeout_s is None else time.monotonic()

    def _next_message(self, deadline: float | None) -> _Ended | _Stop | None:
        """Waits for a message; None when the deadline (on the monotonic clock) has passed."""
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _next_restart_at(self) -> float | None:
        times = [replica.restart_at for replica in self._replicas]
        return min((time for time in times if time is not None), default=None)

    def _tell(self, kind: EventKind, text: str, replica: Replica | None = None) -> None:
        """Publishes how things stand, and then what has happened."""
        self._published = tuple(replica.status for replica in self._replicas)
        write_processes(self._workdir, self._published)
        self._on_event(LaunchEvent(kind, replica.name if replica else "", text))


def _alive(replicas: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica.is_alive]


def _failure(replica: Replica, exit_code: int) -> LaunchError:
    policy = replica.role.restarts
    tail = "\n".join(f"    {line}" for line in replica.log_tail().splitlines())
    return LaunchError(
        f"{replica.name} died with {describe_exit(exit_code)} after {policy.max_restarts} restarts "
        f"within {policy.window_s:g} s, so the program was stopped. The end of {replica.log}:\n"
        f"{tail}\nCorrect the cause and launch again in the same workdir, or raise the role's "
        "max_restarts."
    )
