"""`ServerProcess`: a bank's server that is killed and started again at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What `carls-jax` runs, but imports and machine code are loaded before it is told to begin.
_WAITING = """
import sys, tempfile
import carls_jax.launch.serving
from carls_jax.bank import LocalBank
from carls_jax.cli import main
from tests.integration.operations import operation, perform
with tempfile.TemporaryDirectory() as root, LocalBank(root) as bank:
    for number in range(1, 20):
        perform(bank, operation(0, number))
    bank.snapshot("s")
    bank.restore("s")
if sys.stdin.readline():
    sys.exit(main(sys.argv[1:]))
"""


class ServerProcess:
    """Runs `carls-jax bank` until the end of a `with` block.

    Args:
      root: Its directory.
      address: Where it listens, the same each time.
      options: Further ones of the command.
    """

    def __init__(self, root: Path, address: str, *options: str) -> None:
        self.address = address
        self._command = ["bank", "--root", str(root), "--address", address, *options]
        self._process: subprocess.Popen[str] | None = None
        self._next: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Number of the process that serves."""
        assert self._process is not None
        return self._process.pid

    def prepare(self) -> None:
        """Has a process wait to be the next, so that it starts fast."""
        self._next = self._next or self._waiting()

    def start(self) -> None:
        """Has a process begin to serve; none does."""
        assert self._process is None
        self._process, self._next = self._next or self._waiting(), None
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def wait_ready(self) -> None:
        """Returns when it answers."""
        assert self._process is not None
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert "connect with" in said, f"the server ended with {self._process.wait()}: {said}"

    def run_for(self, seconds: float) -> bool:
        """Lets it run for so long; whether it still does."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """Ends it as `kill -9` does, if it runs."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._next is not None:
            _end(self._next)

    def _waiting(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _WAITING, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
