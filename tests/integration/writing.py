"""Writers of the crash tests: threads, or processes that can be killed, and how far they came.

    python -m tests.integration.writing ADDRESS WRITER

writes until its standard input ends, and says on its output when a call begins and when it ends.
"""

from __future__ import annotations

import itertools
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from carls_jax.bank.connect import connect
from carls_jax.bank.interface import Bank
from carls_jax.errors import BankTimeoutError, BankUnavailableError

from .checker import Account, Checker, check_own_rows
from .operations import COUNTS, VALUES, Operation, perform

_AWAY = (BankUnavailableError, BankTimeoutError)
_LOOK_EVERY = 5
_SNAPSHOT_EVERY = 60


def open_tables(bank: Bank) -> None:
    """Has a bank make the tables, or find them; later calls then are one change each."""
    for spec in (COUNTS, VALUES):
        while True:
            with suppress(*_AWAY):
                bank.table(spec)
                break


def persist(bank: Bank, done: Operation) -> None:
    """Has a bank do an operation, and goes on with it, as often as the bank goes away meanwhile."""
    try:
        perform(bank, done)
    except _AWAY as error:
        while True:
            try:
                # What creates is a lookup, which is made again.
                perform(bank, done) if done.kind == "create" else bank.resume(error)
                return
            except _AWAY as again:
                error = again


def write(
    bank: Bank, account: Account, *, is_over: Callable[[], bool], told: Callable[[str], None]
) -> None:
    """Makes one call after another, and reads now and then what they have written."""
    open_tables(bank)
    for number in itertools.count(1):
        if is_over():
            return
        done = account.begin(number)
        told("begin")
        persist(bank, done)
        account.end()
        told("end")
        if number % _LOOK_EVERY == 0:
            with suppress(*_AWAY):
                check_own_rows(bank, account)


class Load:
    """Is writers at work, until the end of a `with` block at the latest.

    Args:
      checker: Gets their accounts.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._changed = threading.Condition()
        self._num_ended = 0
        self._failures: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._writers = itertools.count()

    def add_thread(self, bank: Bank) -> None:
        """Adds a writer in this process."""
        account = self._checker.open(next(self._writers))
        self._start(lambda: write(bank, account, is_over=self._is_over.is_set, told=self._note))

    def add_process(self, address: str) -> subprocess.Popen[str]:
        """Adds a writer in a process of its own; the caller may kill it."""
        account = self._checker.open(next(self._writers))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, address, str(account.writer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._processes.append(process)
        self._start(lambda: self._listen(process, account))
        return process

    def snapshots(self, bank: Bank) -> None:
        """Adds what takes a snapshot now and then; a bank that is away takes none."""

        def take() -> None:
            for number in itertools.count():
                self._wait_until_ended(self._num_ended + _SNAPSHOT_EVERY)
                if self._is_over.is_set():
                    return
                with suppress(*_AWAY):
                    bank.snapshot(f"s{number}")

        self._start(take)

    def wait_for(self, num_more: int, *, timeout_s: float = 60.0) -> None:
        """Returns when so many more calls were acknowledged."""
        with self._changed:
            number = self._num_ended + num_more
            in_time = self._changed.wait_for(
                lambda: self._num_ended >= number or bool(self._failures), timeout_s
            )
        self._raise_failure()
        assert in_time, f"no {num_more} calls were acknowledged within {timeout_s} s"

    def finish(self) -> None:
        """Ends all writers, each after the call under way."""
        with self._changed:
            self._is_over.set()
            self._changed.notify_all()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for thread in self._threads:
            thread.join(100.0)
            assert not thread.is_alive(), "a call does not end"
        self._raise_failure()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                with self._changed:
                    self._failures.append(error)
                    self._changed.notify_all()

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def _listen(self, process: subprocess.Popen[str], account: Account) -> None:
        """Follows what a process says until its end, which may be a kill."""
        assert process.stdout is not None
        with process.stdout as lines:
            for number, line in enumerate(lines):
                if line == "begin\n":
                    account.begin(number // 2 + 1)
                if line == "end\n":
                    account.end()
                self._note(line.strip())
        assert process.wait() in (0, -9), f"writer {account.writer} failed: {process.returncode}"

    def _wait_until_ended(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over.is_set() or self._num_ended >= number)

    def _note(self, said: str) -> None:
        with self._changed:
            self._num_ended += said == "end"
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]


def _main(address: str, writer: int) -> None:
    with connect(address, source=f"writer-{writer}", timeout_s=60.0) as bank:
        write(
            bank,
            Account(writer),
            is_over=lambda: bool(select.select([sys.stdin], [], [], 0)[0]),
            told=lambda said: print(said, flush=True),
        )


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
