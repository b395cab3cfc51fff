"""What people ask about a run: its bank, its status, its results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from carls_jax import metrics
from carls_jax.bank import Bank, connect, open_snapshot
from carls_jax.bank.root import kept_identity
from carls_jax.errors import BankUnavailableError, ConfigError, SnapshotNotFoundError
from carls_jax.launch.addresses import resolve
from carls_jax.launch.securing import token_file
from carls_jax.launch.status import ReplicaStatus, is_launched, read_processes

_MAX_NUMBERS = 8


@contextmanager
def bank_of(workdir: Path) -> Iterator[Bank]:
    """Opens the bank of a run: the one that is served, or else its newest snapshot.

    What is changed in a snapshot that was opened is lost.

    Raises:
      SnapshotNotFoundError: No bank is served, and there is no snapshot.
    """
    with ExitStack() as held:
        if addresses := _addresses(workdir):
            bank = held.enter_context(connect(",".join(addresses), token_file=token_file(workdir)))
            if _answers(bank):
                yield bank
                return
        yield held.enter_context(_stopped_bank(workdir))


def _addresses(workdir: Path) -> list[str]:
    """Returns the addresses of the run's bank servers, in the order of their shards."""
    names = [path.name for path in (workdir / "addresses").glob("bank-*")]
    return [resolve(workdir, name, timeout_s=0) for name in sorted(names, key=_shard_index)]


def _answers(bank: Bank) -> bool:
    try:
        return bool(bank.identity)
    except BankUnavailableError:  # its server was killed
        return False


def _stopped_bank(workdir: Path) -> Bank:
    roots = [path for path in workdir.glob("bank-*") if path.is_dir()]
    roots.sort(key=lambda path: _shard_index(path.name))
    if (workdir / "bank").is_dir():
        roots = [workdir / "bank"]
    if not all(kept_identity(root) for root in roots) or not roots:
        raise SnapshotNotFoundError(f"workdir={workdir}: no bank is or was served there")
    return open_snapshot(*roots)


def _shard_index(name: str) -> int:
    return int(name.removeprefix("bank-"))


def describe_run(workdir: Path) -> str:
    """Returns, in words, what a run's roles do, their last metrics and what its bank holds.

    Raises:
      ConfigError: The directory holds no run.
    """
    if not (workdir / "metrics").is_dir():
        raise ConfigError(f"workdir={workdir} holds no run")
    states = {replica.name: _state(replica) for replica in read_processes(workdir)}
    lasts = {
        path.stem: _last(written[-1])
        for path in sorted((workdir / "metrics").glob("*.jsonl"))
        if (written := metrics.read(path)[0])
    }
    names = list(dict.fromkeys((*states, *lasts)))
    width = max(map(len, names), default=0)
    # Roles that were started by hand have no launcher, but their bank has an address.
    is_running = is_launched(workdir) or bool(_addresses(workdir))
    lines = [f"{workdir}: {'running' if is_running else 'stopped'}"]
    for name in names:
        lines.append(f"  {name:{width}}  {states.get(name, '')}  {lasts.get(name, '')}".rstrip())
    return "\n".join([*lines, *_tables(workdir)])


def _state(replica: ReplicaStatus) -> str:
    pid = f", pid {replica.pid}" if replica.pid else ""
    return f"{replica.state}{pid}, {replica.restarts} restarts"


def _last(line: Mapping[str, Any]) -> str:
    numbers = _numbers({name: line[name] for name in line if name not in ("time", "step", "role")})
    return "  ".join(
        [
            time.strftime("%H:%M:%S", time.localtime(line["time"])),
            f"step {line['step']}",
            *(f"{name} {number:.4g}" for name, number in numbers[:_MAX_NUMBERS]),
        ]
    )


def _tables(workdir: Path) -> list[str]:
    try:
        with bank_of(workdir) as bank:
            tables = bank.stats().tables
    except SnapshotNotFoundError as error:
        return [f"  {error}"]
    return [
        f"  table {name}: {stats.num_rows} rows, {stats.num_bytes / 1e6:.1f} MB"
        for name, stats in tables.items()
        if not name.startswith("carls.")  # tables of our own
    ]


def describe_results(workdir: Path) -> str:
    """Returns, in words, the numbers that a finished run has given, and where everything is."""
    result = json.loads((workdir / "result.json").read_text())
    places = {
        "results": workdir / "result.json",
        "metrics": workdir / "metrics",
        "logs": workdir / "logs",
        "checkpoints": workdir / "checkpoints",
    }
    lines = [f"  {name} {number:.4g}" for name, number in _numbers(result)]
    lines += [f"{name:11}  {path}" for name, path in places.items() if path.exists()]
    return "\n".join([*lines, f"see also     tensorboard --logdir {workdir / 'metrics'}"])


def _numbers(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Returns the numbers among values, those in mappings below it too."""
    numbers = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers += _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            numbers.append((f"{prefix}{name}", value))
    return numbers
