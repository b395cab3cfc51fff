"""Says what a run was made on, and what a process takes of it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from carls_jax.metrics import installed_version

_ROOT = Path(__file__).parents[2]


def describe() -> dict[str, Any]:
    """Returns the hardware, versions, commit and time of this run, as JSON types."""
    changes = _git("status", "--porcelain", "--", "carls_jax")  # not the results of other runs
    return {
        "time": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "has_changes": None if changes is None else bool(changes),
        "cpu": _cpu(),
        "num_cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: installed_version(name) for name in ("carls-jax", "jax", "grpcio")},
        },
    }


def in_words(machine: dict[str, Any]) -> str:
    """Writes what `describe` returned as one line."""
    changes = " with uncommitted changes" if machine["has_changes"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['time']}, commit {machine['commit']}{changes}; {machine['cpu']}, "
        f"{machine['num_cores']} cores, {machine['memory_gb']} GB, load {machine['load']} before; "
        f"{versions}"
    )


def free_bytes() -> int:
    """Returns the memory that processes may still take, caches that would give way included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def resident_bytes(pid: int) -> int:
    """Returns the memory that a process takes now."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that a process has taken so far, in user and kernel mode."""
    # After the program's name, which may hold spaces, `utime` and `stime` are 12th and 13th.
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str | None:
    """Returns what git prints about this checkout; None where there is no git or no checkout."""
    try:
        answer = subprocess.run(
            ("git", "-C", str(_ROOT), *arguments), capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
