"""Numbers about a run: the metrics of each role, the ledger of what was moved, the run record.

This module imports neither JAX nor TensorFlow, so that every role can afford it.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, SupportsFloat, get_args

from carls_jax.errors import InvalidInputError

Direction = Literal["lookup", "update", "push", "load", "scan", "checkpoint"]

_log = logging.getLogger(__name__)
_DIRECTIONS = get_args(Direction)
_RESERVED = frozenset({"time", "role", "step"})
_PACKAGES = (
    "carls-jax",
    "flax",
    "grpcio",
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
)


class MetricsWriter:
    """Writes the metrics of one role, for people, for the launcher and for TensorBoard.

    `<directory>/<role>.jsonl` gets one JSON object per call, with `time` (seconds since the
    epoch), `role`, `step` and the numbers. It is flushed at each line, so that other processes can
    follow it, and continued where it exists. `<directory>/tensorboard/<role>/` gets the same as
    TensorBoard events. The logger of this module gets it too, at level DEBUG. Any thread may write.

    Raises:
      InvalidInputError: `role` cannot be the name of a file.
    """

    def __init__(self, directory: str | os.PathLike[str], role: str) -> None:
        # Imported here: it costs every role 0.1 s and only those that write metrics need it.
        from tensorboardX import SummaryWriter

        if Path(role).name != role:
            raise InvalidInputError(f"role is {role!r}; it names a file, so it must have no '/'")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._role = role
        self._lock = threading.Lock()
        path = directory / f"{role}.jsonl"
        is_torn = _is_torn(path)
        self._file = path.open("a", encoding="utf-8")
        if is_torn:
            self._file.write("\n")  # what a killed writer left must not swallow our first line
        # The name of an event file has a resolution of one second: a quick restart would
        # overwrite it.
        self._events = SummaryWriter(
            str(directory / "tensorboard" / role),
            filename_suffix=f".{os.getpid()}",
            flush_secs=10,
        )

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is pending and closes the files; a second call does nothing."""
        with self._lock:
            self._file.close()
            self._events.close()

    def write(
        self, step: int, values: Mapping[str, SupportsFloat] | None = None, **more: SupportsFloat
    ) -> None:
        """Writes the numbers of one step.

        NaN and infinity, which JSON lacks, become null there; TensorBoard gets them as they are.

        Args:
          step: The step that the numbers belong to.
          values, more: Number by name: Python's, or scalars and one-element arrays of NumPy or
            JAX. Names such as `age/p50` must go into `values`.

        Raises:
          InvalidInputError: A value is not one number, or a name is `time`, `role` or `step`.
        """
        named = {name: _number(name, value) for name, value in {**(values or {}), **more}.items()}
        now = time.time()
        line = {"time": now, "role": self._role, "step": int(step)}
        line |= {name: value if math.isfinite(value) else None for name, value in named.items()}
        with self._lock:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in named.items():
                self._events.add_scalar(name, value, int(step), walltime=now)
        if _log.isEnabledFor(logging.DEBUG):
            words = "  ".join(f"{name} {value:.4g}" for name, value in named.items())
            _log.debug("%s  step %d  %s", self._role, step, words)


def read(path: str | os.PathLike[str], position: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Reads the lines that a metrics file has gained since `position`, a number of bytes.

    Returns the lines, and the position to give to the next call. A last line that is still being
    written is left for that call. A line that a killed writer left unfinished is left out. A
    missing file has no lines; one that has become shorter is read from its start.
    """
    path = Path(path)
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        if position > os.fstat(file.fileno()).st_size:
            position = 0
        file.seek(position)
        complete, newline, _ = file.read().rpartition(b"\n")
    lines = [_parsed(line) for line in complete.splitlines()]
    return [line for line in lines if line is not None], position + len(complete) + len(newline)


@dataclass(frozen=True)
class Flow:
    """Names one flow of rows: who moved which field of which table, and in which direction."""

    client: str
    table: str
    field: str
    direction: Direction

    def __post_init__(self) -> None:
        if self.direction not in _DIRECTIONS:
            raise InvalidInputError(
                f"direction is {self.direction!r}; it must be one of {', '.join(_DIRECTIONS)}"
            )


@dataclass(frozen=True)
class Amount:
    """Counts what was moved: payload bytes (no headers, no framing) and rows."""

    num_bytes: int = 0
    num_rows: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.num_bytes + other.num_bytes, self.num_rows + other.num_rows)


class Ledger:
    """Adds up what each client moved. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._amounts: dict[Flow, list[int]] = {}  # bytes and rows

    def add(self, flow: Flow, *, num_bytes: int, num_rows: int) -> None:
        """Adds payload bytes and rows to a flow."""
        with self._lock:
            amount = self._amounts.setdefault(flow, [0, 0])
            amount[0] += num_bytes
            amount[1] += num_rows

    def totals(self) -> dict[Direction, Amount]:
        """Returns the sum over clients, tables and fields of each direction that was used."""
        sums: dict[Direction, Amount] = {}
        with self._lock:
            for flow, amount in self._amounts.items():
                sums[flow.direction] = sums.get(flow.direction, Amount()) + Amount(*amount)
        return sums

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dict per flow, sorted: the names of the flow, `num_bytes`, `num_rows`."""
        with self._lock:
            flows = [
                asdict(flow) | asdict(Amount(*amount)) for flow, amount in self._amounts.items()
            ]
        return sorted(flows, key=lambda row: tuple(row.values()))

    def merge(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds the `rows()` of another ledger, of this process or of another."""
        for row in rows:
            flow = Flow(row["client"], row["table"], row["field"], row["direction"])
            self.add(flow, num_bytes=row["num_bytes"], num_rows=row["num_rows"])


def write_run_record(workdir: str | os.PathLike[str], config: Mapping[str, Any]) -> Path:
    """Writes `<workdir>/run.json`: what is needed to run this again. Returns its path.

    It holds the full config, the git commit of the current directory and whether tracked files
    differ from it (null outside a checkout), the versions of the packages (null: not installed),
    the machine and the time. A config value that JSON lacks is written as its `str`.
    """
    changes = _git("status", "--porcelain", "--untracked-files=no")
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": sys.argv,
        "config": config,
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "has_changes": None if changes is None else bool(changes),
        },
        "versions": {"python": platform.python_version()}
        | {package: installed_version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }
    path = Path(workdir) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: a killed writer leaves the old record or the new one.
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def installed_version(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _number(name: str, value: Any) -> int | float:
    if name in _RESERVED:
        raise InvalidInputError(f"a metric cannot be called {name!r}: each line has that already")
    try:
        number = value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError):  # more than one element, or none
        number = None
    if not isinstance(number, numbers.Real):
        got = f"an array of shape {value.shape}" if hasattr(value, "shape") else repr(value)
        raise InvalidInputError(f"metric {name!r} is {got}; give one number, such as its mean")
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def _is_torn(path: Path) -> bool:
    """Tells whether the last line of a file lacks its end."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:  # UnicodeDecodeError and JSONDecodeError: its writer was killed
        return None
    return parsed if isinstance(parsed, dict) else None


def _git(*arguments: str) -> str | None:
    """Returns what git prints; None without git, outside a checkout, or before the first commit."""
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(("git", *arguments), capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None
