"""How long a bank takes to be as it was before its process ended, beside reading its files."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carls_jax.bank import Field, LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bench.report import Report, Samples
from carls_jax.bench.rows import TABLE, VALUE, Keys, draws, random_rows, table_of

READING = "its files, read"
BANK = "LocalBank"
COLD = "LocalBank, files not in memory"

_BLOCK_BYTES = 16 << 20
_NEVER = 1 << 62


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the snapshot.
      width: Numbers in a row, float32.
      num_pushes: Records of the journal.
      num_keys: Rows of each of them.
      journal_rows: Rows of the table that they are of.
      num_rounds: How often each recovery is done.
    """

    num_rows: int = 1_000_000
    width: int = 128
    num_pushes: int = 2000
    num_keys: int = 1024
    journal_rows: int = 100_000
    num_rounds: int = 5


QUICK = Scale(num_rows=2000, num_pushes=20, num_keys=64, journal_rows=1000, num_rounds=2)


def run(scale: Scale) -> Report:
    """Opens banks from a snapshot, and from a journal alone, each until a first lookup."""
    report = Report(
        "recovery",
        f"How long does a bank take to come back from a snapshot of {scale.num_rows:,} × "
        f"{scale.width} float32, and from {scale.num_pushes:,} pushes of {scale.num_keys:,} rows "
        "in its journal?",
        notes=[
            f"From the start of `LocalBank(root)` to the answer of a lookup of {scale.num_keys:,} "
            "rows. A server process does the same when it starts.",
            "Files are in memory, as after the end of a process, but where it says otherwise.",
            f"The journal: AdaGrad, on a table of {scale.journal_rows:,} rows, which it loads "
            "too; MB are those of its files.",
        ],
    )
    adagrad = optimizer("adagrad", learning_rate=0.01)
    for work, field in {
        "snapshot": Field((scale.width,)),
        "snapshot, AdaGrad": Field((scale.width,), optimizer=adagrad),
    }.items():
        with _root() as root:
            _write_snapshot(root, scale, field)
            took = _in_turns(root, scale, scale.num_rows)
        report.add(work, took, unit="s")
    with _root() as root:
        _write_journal(root, scale, Field((scale.width,), optimizer=adagrad))
        # Every recovery begins another segment, which is empty.
        megabytes = sum(path.stat().st_size for path in _files(root)) / 1e6
        took = _in_turns(root, scale, scale.journal_rows)
    rates = {what: megabytes / of_what for what, of_what in took.items()}
    report.add("journal", rates, unit="MB/s")
    return report


@contextmanager
def _root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="carls-bench-") as directory:
        yield Path(directory)


def _write_snapshot(root: Path, scale: Scale, field: Field) -> None:
    with LocalBank(root, journal="off") as bank:
        rows = random_rows(scale.num_rows, scale.width)
        bank.table(table_of(field)).load(np.arange(scale.num_rows), {VALUE: rows})
        bank.snapshot("measured")


def _write_journal(root: Path, scale: Scale, field: Field) -> None:
    with LocalBank(root, journal="process", max_journal_bytes=_NEVER) as bank:
        table = bank.table(table_of(field))
        rows = random_rows(scale.journal_rows, scale.width)
        table.load(np.arange(scale.journal_rows), {VALUE: rows})
        draw = draws(scale.journal_rows, scale.num_keys)
        gradients = random_rows(scale.num_keys, scale.width)
        for number in range(scale.num_pushes):
            table.push(draw(number), {VALUE: gradients}, step=number)


def _in_turns(root: Path, scale: Scale, num_rows: int) -> dict[str, Samples]:
    """Reads a directory's files and recovers its bank; returns how long it took, in seconds."""
    keys = draws(num_rows, scale.num_keys)(0)
    took: dict[str, list[float]] = {READING: [], BANK: [], COLD: []}
    for number in range(scale.num_rounds + 1):
        of_round = {READING: _read(root), BANK: _recover(root, keys)}
        _forget(root)
        of_round[COLD] = _recover(root, keys)
        for what, seconds in of_round.items():
            if number:  # the first round warms up
                took[what].append(seconds)
    return {what: np.array(of_what) for what, of_what in took.items()}


def _recover(root: Path, keys: Keys) -> float:
    """Opens a bank and looks up; returns how many seconds that took."""
    began = time.perf_counter()
    with LocalBank(root, journal="process", max_journal_bytes=_NEVER) as bank:
        rows = bank.table(TABLE).lookup(keys)
        seconds = time.perf_counter() - began
    assert rows.found.all()
    return seconds


def _read(root: Path) -> float:
    """Reads all files once; returns how many seconds that took."""
    buffer = bytearray(_BLOCK_BYTES)
    began = time.perf_counter()
    for path in _files(root):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def _forget(root: Path) -> None:
    """Has the kernel keep no file of a directory in memory."""
    for path in _files(root):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]
