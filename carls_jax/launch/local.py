"""Runs a program on this machine, one process per replica.

The workdir holds, besides what the roles write: `logs/<role>-<index>.log`, `processes.json` (what
runs), `addresses/` (where servers listen) and `launch.lock` (held while the launcher lives).
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from carls_jax.errors import ConfigError
from carls_jax.launch import addresses
from carls_jax.launch.guardian import Guardian
from carls_jax.launch.program import Program
from carls_jax.launch.progress import Screen
from carls_jax.launch.status import LaunchEvent, ReplicaStatus, claim
from carls_jax.launch.supervisor import Supervisor

_REDRAW_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """Says how a program ended.

    Attributes:
      exit_code: 0 when every finite role finished, or the code given to `stop`; after a signal
        128 plus its number (130 for SIGINT, 143 for SIGTERM), as shells have it.
      restarts: Restarts of each replica, by its name.
      duration_s: Seconds from start to end.
    """

    exit_code: int
    restarts: dict[str, int]
    duration_s: float


class LaunchedProgram:
    """Is a program that runs. Any thread may use it; leaving `with` stops what still runs."""

    def __init__(self, supervisor: Supervisor, resources: contextlib.ExitStack) -> None:
        self._supervisor = supervisor
        self._resources = resources
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="launch-supervisor", daemon=True)
        self._thread.start()

    def __enter__(self) -> LaunchedProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """All replicas as they are now, in the order of the program."""
        return self._supervisor.replicas

    def pids(self) -> dict[str, list[int]]:
        """Returns the process ids of each role's replicas that run now."""
        running: dict[str, list[int]] = {replica.role: [] for replica in self.replicas}
        for replica in self.replicas:
            if replica.pid is not None:
                running[replica.role].append(replica.pid)
        return running

    def stop(self, *, exit_code: int = 0, at_once: bool = False) -> None:
        """Asks for the end of the program, without waiting for it; `wait` does.

        Args:
          exit_code: What the outcome says, if the program has not ended by itself.
          at_once: Kill, whatever is left of the grace time.
        """
        self._supervisor.stop(exit_code=exit_code, at_once=at_once)

    def wait(self, *, timeout_s: float | None = None) -> Outcome:
        """Waits for the end of the program.

        Raises:
          LaunchError: A replica died more often than its policy allows; the message holds the end
            of its log.
          TimeoutError: The program still runs after `timeout_s` seconds (None: no limit).
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(
                f"the program still runs after {timeout_s} s; wait again, or call stop()"
            )
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def _run(self) -> None:
        started = time.monotonic()
        try:
            with self._resources:
                exit_code = self._supervisor.run()
            restarts = {replica.name: replica.restarts for replica in self.replicas}
            self._outcome = Outcome(exit_code, restarts, time.monotonic() - started)
        except BaseException as error:  # it belongs to the thread that calls `wait`
            self._error = error


def start_program(
    program: Program,
    *,
    workdir: str | os.PathLike[str],
    on_event: Callable[[LaunchEvent], None] | None = None,
    stop_grace_s: float = 10.0,
) -> LaunchedProgram:
    """Starts all replicas of a program on this machine and keeps them running.

    A replica that dies is started again within its policy. When all finite roles have finished,
    the others are asked to end (SIGTERM), in the order of `stop_order`. A process that a replica
    leaves behind in its process group is killed. Should this process be killed, its replicas are
    too (see `guardian.py`).

    Args:
      program: What to run.
      workdir: Made if missing. Addresses of an earlier launch are removed, logs are appended to.
      on_event: Called, in the supervisor's thread, with each thing that happens. If it raises, the
        program is stopped and `wait` raises that error.
      stop_grace_s: Seconds that a replica has to end after SIGTERM, before SIGKILL.

    Raises:
      ConfigError: A command cannot be found; nothing was started.
      LaunchError: Another launcher works in this workdir.
    """
    _check_commands(program)
    workdir = Path(workdir)
    (workdir / "logs").mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as resources:
        resources.enter_context(claim(workdir))
        addresses.clear(workdir)
        supervisor = Supervisor(
            program,
            workdir=workdir,
            guardian=resources.enter_context(Guardian()),
            on_event=on_event or (lambda _: None),
            stop_grace_s=stop_grace_s,
        )
        return LaunchedProgram(supervisor, resources.pop_all())


def run_program(
    program: Program,
    *,
    workdir: str | os.PathLike[str],
    screen: Screen | None = None,
    on_event: Callable[[LaunchEvent], None] | None = None,
    stop_grace_s: float = 10.0,
) -> Outcome:
    """Runs a program to its end, shows its progress, and lets signals stop it.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP stop the program cleanly, a second signal kills it; the
    outcome's exit code tells which it was. Signals are only handled in the main thread.

    Args:
      screen: Shows the progress (see `progress.open_screen`); None shows nothing.
      program, workdir, on_event, stop_grace_s: As in `start_program`.

    Raises:
      ConfigError, LaunchError: As `start_program` and `LaunchedProgram.wait` do.
    """
    screen = screen or Screen()
    events: queue.SimpleQueue[LaunchEvent] = queue.SimpleQueue()

    def tell(event: LaunchEvent) -> None:
        events.put(event)
        if on_event:
            on_event(event)

    launched = start_program(program, workdir=workdir, on_event=tell, stop_grace_s=stop_grace_s)
    with _stopped_by_signals(launched), launched, screen:
        _show(launched, events, screen)
        return launched.wait()


def _show(
    launched: LaunchedProgram, events: queue.SimpleQueue[LaunchEvent], screen: Screen
) -> None:
    """Shows events and replicas until the last event."""
    while True:
        with contextlib.suppress(queue.Empty):  # nothing happened: time to show the metrics again
            event = events.get(timeout=_REDRAW_S)
            screen.show(event)
            if event.kind == "finished":
                return
        screen.draw(launched.replicas)


@contextlib.contextmanager
def _stopped_by_signals(launched: LaunchedProgram) -> Iterator[None]:
    """Lets the first signal stop the program and any further one kill it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_second = False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal is_second
        launched.stop(exit_code=128 + number, at_once=is_second)
        is_second = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means it
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_commands(program: Program) -> None:
    for role in program.roles:
        path = role.environment.get("PATH", os.environ.get("PATH"))
        if shutil.which(role.argv[0], path=path) is None:
            raise ConfigError(
                f"role {role.name!r} runs {role.argv[0]!r}, which is not a program on the PATH; "
                "give its full path, or install it"
            )
