"""Shows how a running program gets on: a live table on a terminal, plain lines elsewhere.

Numbers come from the metrics files of the workdir: `metrics/<role>-<index>.jsonl`, or
`metrics/<role>.jsonl` (see `carls_jax.metrics.MetricsWriter`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from carls_jax import metrics
from carls_jax.launch.status import LaunchEvent, ReplicaStatus

_NUM_METRICS = 4  # as many as fit beside the rest on a line of 100 characters
_KEYS = frozenset({"time", "role", "step"})


class Screen:
    """Shows nothing; is the base of those that do. To be used by one thread, in `with`."""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves what was shown last where it is."""

    def show(self, event: LaunchEvent) -> None:
        """Shows that something happened."""

    def draw(self, replicas: Sequence[ReplicaStatus]) -> None:
        """Shows the replicas as they are now."""


def open_screen(workdir: str | os.PathLike[str], *, stream: TextIO | None = None) -> Screen:
    """Returns the screen that suits the stream (None: standard error)."""
    stream = stream or sys.stderr
    screen = LiveScreen if stream.isatty() else PlainScreen
    return screen(workdir, stream=stream)


class PlainScreen(Screen):
    """Writes a line for each event, and one for each replica that has something new to say.

    A replica has at most one line every `every_s` seconds, and a last one when it is done.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, stream: TextIO, every_s: float = 2.0
    ) -> None:
        self._latest = _LatestMetrics(workdir)
        self._stream = stream
        self._every_s = every_s
        self._shown: dict[str, tuple[float, tuple[str, ...]]] = {}

    def show(self, event: LaunchEvent) -> None:
        """Writes the event at once."""
        self._write(event.replica, event.text)

    def draw(self, replicas: Sequence[ReplicaStatus]) -> None:
        """Writes what is new and due."""
        now = time.monotonic()
        for replica in replicas:
            line = self._latest.of(replica)
            cells = _cells(replica, line)
            shown_at, shown = self._shown.get(replica.name, (-self._every_s, ()))
            is_due = now - shown_at >= self._every_s or replica.state == "done"
            if cells != shown and is_due:
                self._shown[replica.name] = now, cells
                self._write(replica.name, *cells, _age(replica, line))

    def _write(self, *words: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(stamp, *filter(None, words), sep="  ", file=self._stream, flush=True)


class LiveScreen(Screen):
    """Keeps a table of the replicas at the bottom of the terminal, events above it."""

    def __init__(self, workdir: str | os.PathLike[str], *, stream: TextIO) -> None:
        self._latest = _LatestMetrics(workdir)
        # The launcher says when to draw; a thread of rich's own is not needed.
        self._live = Live(console=Console(file=stream), auto_refresh=False)

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table on the terminal."""
        self._live.stop()

    def show(self, event: LaunchEvent) -> None:
        """Prints the event above the table."""
        text = f"{time.strftime('%H:%M:%S')}  {event.replica}  {event.text}"
        self._live.console.print(text, markup=False, highlight=False)

    def draw(self, replicas: Sequence[ReplicaStatus]) -> None:
        """Draws the table anew."""
        table = Table("replica", "state", "pid", "restarts", "step", "metrics", "age", box=None)
        for replica in replicas:
            line = self._latest.of(replica)
            table.add_row(
                replica.name,
                replica.state,
                str(replica.pid or ""),
                str(replica.restarts),
                str(line.get("step", "")),
                _numbers(line),
                _age(replica, line),
            )
        self._live.update(table, refresh=True)


class _LatestMetrics:
    """Follows the metrics files of a workdir, to their last lines."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self._directory = Path(workdir) / "metrics"
        self._positions: dict[Path, int] = {}
        self._lines: dict[Path, dict[str, Any]] = {}

    def of(self, replica: ReplicaStatus) -> dict[str, Any]:
        """Returns the last line that a replica wrote; empty if there is none."""
        path = self._directory / f"{replica.name}.jsonl"
        if not path.exists():
            path = self._directory / f"{replica.role}.jsonl"
        lines, position = metrics.read(path, self._positions.get(path, 0))
        self._positions[path] = position
        if lines:
            self._lines[path] = lines[-1]
        return self._lines.get(path, {})


def _cells(replica: ReplicaStatus, line: dict[str, Any]) -> tuple[str, ...]:
    restarts = f"restarts {replica.restarts}" if replica.restarts else ""
    step = f"step {line['step']}" if "step" in line else ""
    return replica.state, restarts, step, _numbers(line)


def _numbers(line: dict[str, Any]) -> str:
    """Puts the first numbers of a metrics line into words; null stands for NaN or infinity."""
    words = [
        f"{name} {'not finite' if value is None else format(value, '.4g')}"
        for name, value in line.items()
        if name not in _KEYS and isinstance(value, int | float | None)
    ]
    return "  ".join(words[:_NUM_METRICS])


def _age(replica: ReplicaStatus, line: dict[str, Any]) -> str:
    """Says how long ago the metrics were written, or else the replica was started."""
    since = line.get("time", replica.started_at)
    return "" if since is None else f"{max(0.0, time.time() - since):.0f} s ago"
