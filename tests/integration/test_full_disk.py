"""A full disk: changes are refused, reads go on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank.connect import connect
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.errors import BankError, BankStorageError

from .servers import ServerProcess

DISK_BYTES = 16 << 20
KEYS = np.arange(1000)
SPEC = TableSpec("t", {"x": Field((64,))})
ONES = np.ones((KEYS.size, 64))


class Disk(Protocol):
    """Is a disk that has room or none."""

    root: Path

    def fill(self, server: ServerProcess) -> None:
        """Takes all room."""

    def free(self, server: ServerProcess) -> None:
        """Gives it back."""


class SmallDisk:
    """Is a file system in memory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self._ballast = directory / "ballast"

    def fill(self, server: ServerProcess) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for num_bytes in (1 << 16, 1):
                try:
                    while file.write(bytes(num_bytes)):
                        pass
                except OSError:
                    continue

    def free(self, server: ServerProcess) -> None:
        self._ballast.unlink()


class LimitedFiles:
    """Is a limit on the length of a server's files, where no file system can be made."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"

    def fill(self, server: ServerProcess) -> None:
        longest = max(one.stat().st_size for one in (self.root / "journal").iterdir())
        _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (min(longest, 4096), most))

    def free(self, server: ServerProcess) -> None:
        _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture(params=["small disk", "limited files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "limited files":
        yield LimitedFiles(tmp_path)
        return
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nobody may mount here")
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def fill_up(table: Table) -> int:
    """Writes until a change is refused, and returns how many were not."""
    for number in range(1, 1000):
        try:
            table.update(KEYS, {"x": number * ONES})
        except BankStorageError:
            return number - 1
    raise AssertionError("no change was refused")


def test_a_full_disk_refuses_changes_and_loses_none(tmp_path: Path, disk: Disk) -> None:
    address = f"unix:{tmp_path}/s"
    with (
        ServerProcess(disk.root, address) as server,
        connect(address, timeout_s=20.0) as bank,
    ):
        server.start()
        server.wait_ready()
        table = bank.table(SPEC)
        table.update(KEYS, {"x": 0 * ONES})
        before = bank.snapshot("before")
        disk.fill(server)
        num_written = fill_up(table)
        for _ in range(3):
            with pytest.raises(BankStorageError):
                table.update(KEYS, {"x": -ONES})
        with pytest.raises(BankError):
            bank.snapshot("full")
        assert_array_equal(table.lookup(KEYS)["x"], num_written * ONES)
        assert bank.snapshots() == [before]
        assert bank.verify("before") == before
        server.kill()
        disk.free(server) if isinstance(disk, SmallDisk) else None
        server.start()
        server.wait_ready()
        rows = table.lookup(KEYS, metadata=["version"])
        assert_array_equal(rows["x"], num_written * ONES)
        assert set(rows.version["x"].tolist()) == {num_written + 1}


def test_once_there_is_room_again_changes_and_snapshots_go_on(tmp_path: Path, disk: Disk) -> None:
    address = f"unix:{tmp_path}/s"
    with (
        ServerProcess(disk.root, address) as server,
        connect(address, timeout_s=20.0) as bank,
    ):
        server.start()
        server.wait_ready()
        table = bank.table(SPEC)
        disk.fill(server)
        num_written = fill_up(table)
        disk.free(server)
        table.update(KEYS, {"x": -ONES})
        bank.snapshot("after")
        table.update(KEYS, {"x": -2 * ONES})
        server.kill()
        server.start()
        server.wait_ready()
        rows = table.lookup(KEYS, metadata=["version"])
        assert_array_equal(rows["x"], -2 * ONES)
        assert set(rows.version["x"].tolist()) == {num_written + 2}
        assert [one.label for one in bank.snapshots()] == ["after"]
