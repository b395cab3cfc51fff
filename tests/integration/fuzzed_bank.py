"""A server process that is sent nonsense, and a twin that does what the server says it did."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from carls_jax.bank import RemoteBank, status, tokens
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.access import Access
from carls_jax.bank.frames import CALL_METHOD, STREAM_METHOD, decode_request
from carls_jax.bank.local import LocalBank
from carls_jax.bank.staging import Staging
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import BankInternalError
from tests.bank.stored_rows import fill, rows_on_disk

IS_LONG = os.environ.get("CARLS_LONG_TESTS") == "1"
COMMAND = [sys.executable, "-m", "carls_jax.cli", "bank", "--bank-id", "b" * 32]
TIMEOUT_S = 30.0
METHODS = {"call": CALL_METHOD, "stream": STREAM_METHOD}
# What a client that sends no frames is told by gRPC, and not by the bank.
NOT_OURS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED)

State = dict[str, Any]


class FuzzedBank:
    """Is a bank in a server process, filled with rows of every kind.

    Attributes:
      counts: Of the requests by how they were answered: the name of an error, or "valid".
    """

    def __init__(self, process: subprocess.Popen[str], address: str, root: Path) -> None:
        token = tokens.read_token(root / "token") if (root / "token").exists() else None
        self.process, self.root = process, root
        self.counts: Counter[str] = Counter()
        self._access = Access(token)
        self.address = address
        self.bank = RemoteBank(address, access=self._access, timeout_s=TIMEOUT_S)
        fill(self.bank)
        self._metadata = token.metadata if token else ()
        self._connect()

    def _connect(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(self.address, options=options)
        self._methods = {
            name: self._channel.stream_stream(method, None, None)
            for name, method in METHODS.items()
        }

    def close(self) -> None:
        self._channel.close()
        self.bank.close()

    def ask(self, frames: Sequence[bytes], method: str = "call") -> bytes | None:
        """Sends frames as they are; returns the first of the answer, None if it is an error."""
        call = self._methods[method](iter(frames), timeout=TIMEOUT_S, metadata=self._metadata)
        try:
            answered = [bytes(one) for one in call]
        except grpc.RpcError as error:
            sent = status.sent_class(error)
            if sent is BankInternalError or not (sent or error.code() in NOT_OURS):
                raise
            self.counts[sent.__name__ if sent else f"gRPC {error.code().name}"] += 1
            if sent is None:  # who sends what is no frame may be left with a connection of no use
                self._channel.close()
                self._connect()
            return None
        self.counts["valid"] += 1
        return answered[0]

    def begin(self, frames: Sequence[bytes]) -> None:
        """Begins a request and takes it back before it is whole."""
        is_cancelled = threading.Event()

        def sent() -> Iterator[bytes]:
            yield from frames
            is_cancelled.wait(TIMEOUT_S)

        call = self._methods["stream"](sent(), timeout=TIMEOUT_S, metadata=self._metadata)
        call.cancel()
        is_cancelled.set()
        self.counts["cancelled"] += 1

    @property
    def num_refused(self) -> int:
        return self.counts.total() - self.counts["valid"] - self.counts["cancelled"]

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def num_files(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def check_alive(self) -> None:
        assert self.process.poll() is None
        assert self.bank.stats().tables

    def defects(self) -> list[str]:
        """Returns what the server logged of its own defects."""
        log = (self.root.parent / "log").read_text(errors="replace")
        return [line for line in log.splitlines() if "a defect of the server" in line]

    def state(self) -> State:
        """Returns all that the server holds, bit for bit, as a snapshot has it."""
        return stored_state(self.root, self.bank.snapshot("state").uuid)


def stored_state(root: Path, uuid: str) -> State:
    (content,) = StoredBank(root).read(uuid_of(root, uuid))
    return {
        "clocks": dict(content.clocks),
        "sequence": content.sequence,
        "clients": {client: list(one) for client, one in content.clients.items()},
        "specs": [table.spec for table in content.tables],
        "rows": rows_on_disk([root], uuid),
    }


def uuid_of(root: Path, uuid: str) -> Any:
    return StoredBank(root).find(uuid)


class Twin:
    """Holds what a server held when it was made, and does what it is told that the server did."""

    def __init__(self, fuzzed: FuzzedBank, root: Path) -> None:
        fuzzed.bank.snapshot("twin")
        # The snapshot holds all changes, so there need not be a journal.
        left_out = shutil.ignore_patterns("journal", "lock", "token", ".*")
        shutil.copytree(fuzzed.root, root, ignore=left_out, dirs_exist_ok=True)
        self.root = root
        self.bank = LocalBank(root)
        self._staging = Staging(self.bank, max_bytes=1 << 30)

    def follow(self, frames: Sequence[bytes]) -> pb.Reply:
        """Does what a server said that it did; raises if it cannot be done."""
        read = [decode_request(one) for one in frames]
        reply, _ = self._staging.answer(
            read[0].message, itertools.chain.from_iterable(one.pieces for one in read)
        )
        return reply

    def state(self) -> State:
        return stored_state(self.root, self.bank.snapshot("state").uuid)


def without_times(state: State) -> State:
    """Leaves out when rows were written, which a server and its twin stamp by themselves."""
    rows = {
        table: {
            place: {name: value for name, value in row.items() if "updated_at" not in name}
            for place, row in by_place.items()
        }
        for table, by_place in state["rows"].items()
    }
    return {**state, "rows": rows}


@contextmanager
def fuzzed_bank(directory: Path, address: str) -> Iterator[FuzzedBank]:
    """Runs a server until the block ends; it must live until then, and log no defect."""
    root = directory / "root"
    root.mkdir(mode=0o700)
    with server_process(root, address) as (process, found):
        fuzzed = FuzzedBank(process, found, root)
        yield fuzzed
        fuzzed.check_alive()
        fuzzed.close()
        assert fuzzed.defects() == []


@contextmanager
def server_process(root: Path, address: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs a server that logs into a file beside its root; gives it and its address."""
    arguments = ["--address", address, "--root", str(root)]
    with (
        (root.parent / "log").open("a") as log,
        subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            told = re.search(r"connect\('([^']*)'", process.stdout.readline())
            assert told, (root.parent / "log").read_text()
            yield process, told[1]
        finally:
            process.kill()
