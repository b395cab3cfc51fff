"""Lookups in the memory of a bank: what they answer, and what they must leave to the server."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import shared_tables
from carls_jax.bank.access import Access
from carls_jax.bank.changes import Keys
from carls_jax.bank.connect import connect
from carls_jax.bank.interface import Bank, BankIdentity
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.rows import Rows
from carls_jax.bank.same_host_connection import Connection, Kind
from carls_jax.bank.same_host_handshake import new_socket, welcome
from carls_jax.bank.server import BankServer
from carls_jax.bank.shared_tables import SharedTables
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table_shard import TableShard
from carls_jax.bank.table_sharing import SharedTable
from carls_jax.bank.tokens import Token
from carls_jax.errors import (
    BankClosedError,
    BankError,
    BankIdentityError,
    BankTimeoutError,
    BankUnavailableError,
)
from carls_jax.keys import PADDING

SPEC = TableSpec(
    "t",
    {"x": Field((2,)), "n": Field(dtype="int8", group="g"), "m": Field(group="g")},
    max_rows=10_000,
)
OTHER = TableSpec("u", {"x": Field()}, max_rows=1000)
BY_AUTHOR = TableSpec("a", {"x": Field()}, per_source=True, max_rows=1000)
KEYS = np.arange(100)
# A lookup's arguments that the server alone can answer.
ASKS_SERVER: list[dict[str, Any]] = [
    {"max_age_steps": 3},
    {"metadata": ("source",)},
    {"metadata": ("step", "clock")},
    {"create": True},
]


class WatchedBank(LocalBank):
    """Counts the lookups that it is asked for, and may act before it answers one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_lookups = 0
        self.before_lookup: Callable[[], object] = lambda: None
        self.table(OTHER).update(KEYS, {"x": KEYS})
        table = self.table(SPEC)
        values = {"x": np.stack([KEYS, KEYS], axis=1), "n": KEYS, "m": KEYS}
        table.update(KEYS, values, step=7)
        table.update(KEYS[:3], {"x": np.full((3, 2), 50.0)}, step=9)

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        self.num_lookups += 1
        self.before_lookup()
        return super().lookup(request, keys)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/s"


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[WatchedBank]:
    with WatchedBank(tmp_path / "bank") as bank:
        yield bank


@pytest.fixture
def client(bank: WatchedBank, address: str) -> Iterator[Bank]:
    with BankServer(bank, address), connect(address) as client:
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def open_files() -> Counter[str]:
    """Names the memory, sockets and pipes that this process has open."""
    names: Counter[str] = Counter()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            names[os.readlink(f"/proc/self/fd/{descriptor}")] += 1
    kinds = "/memfd:", "socket:", "pipe:"
    return Counter({name: count for name, count in names.items() if name.startswith(kinds)})


def content(rows: Rows) -> dict[str, Any]:
    """Returns rows as plain values."""
    return {
        field.name: {name: np.asarray(one).tolist() for name, one in value.items()}
        if isinstance(value, dict) and field.name != "metadata"
        else value
        for field in dataclasses.fields(rows)
        for value in [getattr(rows, field.name)]
        if field.name in ("values", "present", "sources", "num_created")
    } | {
        "keys": rows.keys.tolist(),
        "found": rows.found.tolist(),
        "metadata": {
            kind: {name: (one.dtype, one.tolist()) for name, one in of_kind.items()}
            for kind, of_kind in rows.metadata.items()
        },
    }


# What is answered, and by whom


def test_rows_are_read_without_the_server_as_it_would_tell_them(
    bank: WatchedBank, client: Bank
) -> None:
    keys = np.array([3, 500, 1, PADDING, 3, 99, -4])
    for arguments in (
        {},
        {"fields": ["n"]},
        {"fields": ["m", "x"], "metadata": ("version", "step", "updated_at")},
        {"metadata": ("step", "step")},
    ):
        told = content(client.table("t").lookup(keys, **arguments))
        assert bank.num_lookups == 0
        assert told == content(LocalBank.table(bank, "t").lookup(keys, **arguments))
        assert told["found"] == [True, False, True, False, True, True, False]
        bank.num_lookups = 0


@pytest.mark.parametrize("arguments", ASKS_SERVER, ids=str)
def test_what_the_server_alone_knows_is_asked_of_it(
    bank: WatchedBank, client: Bank, arguments: dict[str, Any]
) -> None:
    rows = client.table("t").lookup([3, 500], **arguments)
    assert bank.num_lookups == 1
    assert rows["x"][0].tolist() == [3, 3]
    assert rows.num_created == int("create" in arguments)


def test_creating_needs_the_server_only_for_what_is_missing(
    bank: WatchedBank, client: Bank
) -> None:
    assert client.table("t").lookup([3, PADDING], create=True).num_created == 0
    assert bank.num_lookups == 0
    assert client.table("t").lookup([3, 500], create=True).num_created == 1
    assert client.table("t").lookup([3, 500], create=True).found.all()
    assert bank.num_lookups == 1


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        (pb.Lookup(table="t"), KEYS),
        (pb.Lookup(table="t", fields=["x", "z"]), KEYS),
        (pb.Lookup(table="t", fields=["x"], metadata=["color"]), KEYS),
        (pb.Lookup(table="none", fields=["x"]), KEYS),
        (pb.Lookup(table="t", fields=["x"]), KEYS[:0]),
        (pb.Lookup(table="t", fields=["x"]), KEYS.astype(np.int32)),
        (pb.Lookup(table="t", fields=["x"]), KEYS.reshape(10, 10)),
        (pb.Lookup(table="t", fields=["x"]), np.zeros((1 << 24) + 1, np.int64)),
    ],
    ids=["no field", "field", "metadata", "table", "no key", "int32", "square", "too many"],
)
def test_bad_requests_are_refused_as_by_the_bank_itself(
    bank: WatchedBank, client: Bank, request_: pb.Lookup, keys: Keys
) -> None:
    client.table("t").lookup([1])
    with pytest.raises(Exception) as expected:  # noqa: PT011, whatever the bank raises
        bank.lookup(request_, keys)
    with pytest.raises(expected.type) as caught:
        client.lookup(request_, keys)
    assert str(caught.value) == str(expected.value)


def test_a_change_is_seen_by_the_next_lookup(bank: WatchedBank, client: Bank) -> None:
    table = client.table("t")
    for number in range(20):
        table.update([5, 1000 + number], {"x": np.full((2, 2), number)})
        assert table.lookup([5, 1000 + number])["x"].ravel().tolist() == [number] * 4
        table.delete([1000 + number])
        assert table.lookup([5, 1000 + number]).found.tolist() == [True, False]
    assert bank.num_lookups == 0


def test_tables_of_authors_are_left_to_the_server_and_take_no_connection(
    bank: WatchedBank, address: str
) -> None:
    bank.table(BY_AUTHOR)
    with BankServer(bank, address) as server, connect(address, source="me") as client:
        client.table("a").update([1], {"x": [1.0]})
        for number in (1, 2, 3):
            assert client.table("a").lookup([1], sources=["me"])["x"].tolist() == [[1.0]]
            assert bank.num_lookups == number
        assert server._same_host is not None
        wait_until(lambda: server._same_host.num_connections == 1)


def test_two_clients_see_one_table(bank: WatchedBank, client: Bank, address: str) -> None:
    with connect(address) as second:
        for number, (writes, reads) in enumerate([(client, second), (second, client)] * 3):
            writes.table("t").update([3], {"x": [[number, number]]})
            assert reads.table("t").lookup([3])["x"].tolist() == [[number, number]]
    assert bank.num_lookups == 0


def test_lookups_are_counted_as_in_a_bank_of_this_process(bank: WatchedBank, client: Bank) -> None:
    with WatchedBank() as alike:
        for one in (alike, client):
            for arguments in ({}, *ASKS_SERVER, {"create": True}):
                one.table("t").lookup([3, 3, 500, PADDING], **arguments)
            one.table("u").lookup(KEYS)
            one.table("t").update([PADDING], {"x": [[0, 0]]})
        for name in ("t", "u"):
            assert client.stats().tables[name].counters == alike.stats().tables[name].counters
        assert alike.stats().tables["t"].counters["lookup_calls"] == 6
        assert alike.stats().tables["t"].counters["rows_looked_up"] == 24


def test_who_gets_no_connection_asks_the_server(bank: WatchedBank, address: str) -> None:
    with (
        BankServer(bank, address, max_same_host_connections=1),
        connect(address) as client,
    ):
        for number in (1, 2, 3):
            assert client.table("t").lookup([3])["x"].tolist() == [[3, 3]]
            assert bank.num_lookups == number


def test_all_connections_may_be_used_and_none_is_lost(bank: WatchedBank, address: str) -> None:
    with BankServer(bank, address) as server:
        assert server._same_host is not None
        clients = [connect(address) for _ in range(65)]
        for one in clients:
            assert one.table("t").lookup([3])["x"].tolist() == [[3, 3]]
        assert server._same_host.num_connections == 64
        assert bank.num_lookups > 0
        for one in clients:
            one.close()
        wait_until(lambda: server._same_host.num_connections == 0)
        with connect(address) as client:
            bank.num_lookups = 0
            client.table("t").lookup([3])
            assert bank.num_lookups == 0


def test_memory_that_cannot_be_shared_leaves_lookups_to_the_server(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memfd_create = os.memfd_create

    def refuse(name: str, flags: int) -> int:
        if name == "carls-jax-table":
            raise PermissionError("not here")
        return memfd_create(name, flags)

    monkeypatch.setattr(os, "memfd_create", refuse)
    with WatchedBank() as bank, BankServer(bank, address), connect(address) as client:
        assert_array_equal(client.table("t").lookup(KEYS)["n"], KEYS)
        assert bank.num_lookups == 1


# What must not be answered from memory


def test_a_row_that_stays_half_written_is_asked_of_the_server(
    bank: WatchedBank, client: Bank
) -> None:
    client.table("t").lookup([3])
    _, table = bank.share("t")
    slot = table.find(np.array([3]))
    table.guards[slot] += 1

    def finish() -> None:
        table.guards[slot] += 1

    bank.before_lookup = finish
    assert client.table("t").lookup([3])["x"].tolist() == [[3, 3]]
    assert bank.num_lookups == 1
    assert client.table("t").lookup([3])["x"].tolist() == [[3, 3]]
    assert bank.num_lookups == 1


def test_after_a_restore_its_rows_are_read(bank: WatchedBank, client: Bank) -> None:
    table = client.table("t")
    for turn in range(3):
        bank.snapshot("here")
        table.update([3], {"x": [[-1, turn]]})
        assert table.lookup([3])["x"].tolist() == [[-1, turn]]
        assert bank.num_lookups == 0
        before = client.identity.incarnation
        bank.restore("here")
        assert table.lookup([3])["x"].tolist() == [[3, 3]]
        assert client.identity.incarnation == bank.identity.incarnation != before
        assert bank.num_lookups == 1  # who found out asked the server
        assert table.lookup([3])["x"].tolist() == [[3, 3]]
        assert bank.num_lookups == 1
        bank.num_lookups = 0


def test_while_a_restore_goes_on_nobody_is_shared_an_old_table_as_new(
    bank: WatchedBank, client: Bank
) -> None:
    """Which would be read, with the new incarnation, until its end."""
    bank.snapshot("here")
    shared: list[tuple[BankIdentity, TableShard, bool]] = []
    retire = TableShard.retire

    def watch(table: TableShard) -> None:
        retire(table)
        identity, now = bank.share("t")
        shared.append((identity, now, bool(now.memory.arrays["retired"][0])))

    old = bank.share("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableShard, "retire", watch)
        bank.restore("here")
    new = bank.share("t")
    assert new[0].incarnation != old[0].incarnation
    assert shared
    for identity, table, _ in shared:
        # All old tables are retired before the first new one can be had.
        assert (identity.incarnation, table) == (old[0].incarnation, old[1])


def test_a_closed_bank_is_not_read(bank: WatchedBank, address: str) -> None:
    with BankServer(bank, address), connect(address, timeout_s=0.1) as client:
        client.table("t").lookup([3])
        bank.close()
        with pytest.raises(BankUnavailableError, match="is stopping"):
            client.table("t").lookup([3])


def test_a_closed_client_reads_no_more(bank: WatchedBank, address: str) -> None:
    with BankServer(bank, address) as server:
        client = connect(address)
        table = client.table("t")
        table.lookup([3])
        client.close()
        with pytest.raises(BankClosedError):
            table.lookup([3])
        assert server._same_host is not None
        wait_until(lambda: server._same_host.num_connections == 0)


def test_what_was_closed_opens_nothing_again(bank: WatchedBank, address: str) -> None:
    with BankServer(bank, address) as server:
        tables = SharedTables(f"{server.address[5:]}.same-host", bank_id=bank.identity.bank_id)
        request = pb.Lookup(table="t", fields=["x"])
        assert tables.lookup(request, KEYS) is not None
        before = open_files()
        tables.close()
        assert tables.lookup(request, KEYS) is None
        assert before - open_files()
        assert not open_files() - before


def test_a_forked_process_is_refused_and_harms_nothing(bank: WatchedBank, client: Bank) -> None:
    client.table("t").lookup([3])
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child, whatever happens.
        try:
            client.table("t").lookup([3])
        except BankClosedError as error:
            client.close()
            os._exit(0 if "connect in each process" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.table("t").lookup([3])["x"].tolist() == [[3, 3]]
    assert bank.num_lookups == 0


def test_a_server_that_came_back_with_another_state_is_read_anew(
    bank: WatchedBank, address: str
) -> None:
    """Whichever table is asked for first."""
    for first in ("t", "u"):
        server = BankServer(bank, address)
        with connect(address) as client:
            for name in ("t", "u"):
                client.table(name).lookup([3])
            server.stop()
            with WatchedBank(bank_id=bank.identity.bank_id) as other:
                other.table("t").update([3], {"x": [[8, 8]]})
                other.table("u").update([3], {"x": [8]})
                with BankServer(other, address):
                    for name in (first, "t", "u"):
                        assert (client.table(name).lookup([3])["x"] == 8).all()
                        assert client.identity.incarnation == other.identity.incarnation


def test_a_server_that_ends_while_rows_are_read_makes_them_void(
    bank: WatchedBank, address: str
) -> None:
    server = BankServer(bank, address)
    path = f"{server.address[5:]}.same-host"
    tables = SharedTables(path, bank_id=bank.identity.bank_id)
    request = pb.Lookup(table="t", fields=["x"])
    assert tables.lookup(request, KEYS) is not None
    reader = tables._tables["t"].reader
    read = reader.read

    def read_late(*args: Any, **options: Any) -> Any:
        rows = read(*args, **options)
        server.stop()
        # Another thread finds out first, and what it opens gets the same descriptors.
        assert tables.lookup(pb.Lookup(table="u", fields=["x"]), KEYS) is None
        tables._retry_at = {}
        assert tables.lookup(pb.Lookup(table="u", fields=["x"]), KEYS) is not None
        return rows

    reader.read = read_late  # type: ignore[method-assign]
    with WatchedBank(bank_id=bank.identity.bank_id) as other:
        stop = server.stop

        def replace() -> None:
            nonlocal second
            stop()
            second = BankServer(other, address)

        second: BankServer | None = None
        server.stop = replace  # type: ignore[method-assign]
        assert tables.lookup(request, KEYS) is None
        assert tables.lookup(request, KEYS) is not None
        tables.close()
        assert second is not None
        second.stop()


# Processes that end

SERVER = """
import sys
import numpy as np
from carls_jax.bank.local import LocalBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec

with LocalBank(bank_id="one") as bank, BankServer(bank, sys.argv[1]):
    keys = np.arange(100)
    table = bank.table(TableSpec("t", {"x": Field((2,))}, max_rows=10_000))
    table.update(keys, {"x": np.ones((100, 2))})
    print("ready", flush=True)
    sys.stdin.read()
"""
CLIENT = """
import sys
from carls_jax.bank.connect import connect

client = connect(sys.argv[1])
for _ in range(7):
    client.table("t").lookup([1, 2, 3])
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def test_a_stopped_server_is_still_read_and_a_killed_one_is_not(
    address: str, tmp_path: Path
) -> None:
    with process(SERVER, address) as server, connect(address, timeout_s=0.3) as client:
        table = client.table("t")
        assert table.lookup(KEYS)["x"].all()

        server.send_signal(signal.SIGSTOP)
        with pytest.raises(BankTimeoutError):
            table.update([3], {"x": [[2, 2]]})
        assert table.lookup(KEYS)["x"].all()
        with pytest.raises(BankTimeoutError):
            table.lookup(KEYS, metadata=("source",))
        assert table.lookup(KEYS)["x"].all()

        with ThreadPoolExecutor(2) as pool:
            num_read, killed = [0, 0], threading.Event()

            def read(number: int) -> BaseException:
                while True:
                    is_killed = killed.is_set()
                    try:
                        assert table.lookup(KEYS).found.all()
                    except BankError as error:
                        return error
                    # A lookup that began when the server was gone must not be answered.
                    assert not is_killed
                    num_read[number] += 1

            reading = [pool.submit(read, number) for number in range(2)]
            wait_until(lambda: min(num_read) > 20)
            server.kill()
            server.wait(20)
            killed.set()
            for one in reading:
                assert isinstance(one.result(20), (BankUnavailableError, BankTimeoutError))

        client._timeout_s = 20.0  # gRPC takes its time to connect again
        with (
            WatchedBank(tmp_path / "other", bank_id="other") as stranger,
            BankServer(stranger, address),
            pytest.raises(BankIdentityError, match="bank one was meant, and bank other answers"),
        ):
            table.lookup(KEYS)
        with WatchedBank(bank_id="one") as again, BankServer(again, address):
            assert_array_equal(table.lookup(KEYS[3:])["x"][:, 0], KEYS[3:])


def test_a_killed_clients_counts_stay_and_its_memory_goes(bank: WatchedBank, address: str) -> None:
    def segments() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:carls-jax")

    before = segments()
    with BankServer(bank, address) as server:
        with process(CLIENT, address) as client:
            assert segments() == before + 2  # for requests, and for tables
            assert bank.stats().tables["t"].counters["lookup_calls"] == 7
            client.kill()
            client.wait(20)
        assert server._same_host is not None
        wait_until(lambda: server._same_host.num_connections == 0)
        wait_until(lambda: segments() == before)
        counters = bank.stats().tables["t"].counters
        assert (counters["lookup_calls"], counters["rows_looked_up"]) == (7, 21)
    assert bank.num_lookups == 0


# Threads, and descriptors


def test_threads_may_read_while_the_bank_is_put_back_and_clients_close(
    bank: WatchedBank, address: str
) -> None:
    bank.snapshot("here")
    with BankServer(bank, address), ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def read(client: Bank) -> int:
            number = 0
            while not stop.is_set():
                try:
                    assert_array_equal(client.table("t").lookup(KEYS)["n"], KEYS)
                except BankClosedError:
                    break
                number += 1
            return number

        with connect(address) as lasting:
            reading = [pool.submit(read, lasting) for _ in range(2)]
            for turn in range(10):
                with connect(address) as leaving:
                    others = [pool.submit(read, leaving) for _ in range(2)]
                    bank.restore("here")
                    assert lasting.table("t").lookup([turn])["n"].tolist() == [turn]
                for one in others:
                    one.result(20)
            stop.set()
            assert all(one.result(20) for one in reading)


def test_no_descriptor_is_lost(bank: WatchedBank, address: str) -> None:
    bank.snapshot("here")
    path = f"{address[5:]}.same-host"
    request = pb.Lookup(table="t", fields=["x"])
    missing = pb.Lookup(table="none", fields=["x"])
    with BankServer(bank, address) as server:
        assert server._same_host is not None
        before = open_files()
        for turn in range(200):
            tables = SharedTables(path, bank_id=bank.identity.bank_id)
            assert tables.lookup(missing, KEYS) is None
            assert tables.lookup(request, KEYS) is not None
            if turn % 50 == 0:
                bank.restore("here")
                assert tables.lookup(request, KEYS) is None
            tables.close()
            del tables
            wait_until(lambda: server._same_host.num_connections == 0)
        assert not open_files() - before


# Servers that break the rules


def a_table(**changed: Any) -> tuple[bytes, TableShard]:
    table = TableShard(SPEC)
    described = SharedTable("one", "i", 0, SPEC, table.memory.parts)
    return dataclasses.replace(described, **changed).encode(), table


def answer_nothing(connection: Connection) -> None:
    connection.shut()


def answer(
    connection: Connection, *, kind: Kind = Kind.TABLE, message: bytes = b"{}", num: int = 1
) -> None:
    _, table = a_table()
    connection.send(kind, 0, message, {}, descriptors=[table.memory.descriptor] * num)


ANSWERS: dict[str, Callable[[Connection], None]] = {
    "goes": answer_nothing,
    "no JSON": lambda connection: answer(connection, message=b"\xff{"),
    "no table": lambda connection: answer(connection),
    "no descriptor": lambda connection: answer(connection, message=a_table()[0], num=0),
    "a reply": lambda connection: answer(connection, kind=Kind.REPLY, message=a_table()[0]),
    "a refusal": lambda connection: answer(connection, kind=Kind.FAILURE, message=b"\xff"),
    "another bank": lambda connection: answer(connection, message=a_table(bank_id="two")[0]),
    "another table": lambda connection: answer(connection, message=a_table(spec=OTHER)[0]),
    "another name": lambda connection: answer(
        connection, message=a_table(spec=dataclasses.replace(SPEC, name="v"))[0]
    ),
    "another file": lambda connection: send_pipe(connection),
}


def send_pipe(connection: Connection) -> None:
    pipe = os.pipe()
    connection.send(Kind.TABLE, 0, a_table()[0], {}, descriptors=pipe[:1])
    for descriptor in pipe:
        os.close(descriptor)


@contextmanager
def answering(path: str, answer: Callable[[Connection], None]) -> Iterator[None]:
    """Runs a server that gives one answer to its one client, and waits until that has gone."""

    def serve() -> None:
        peer, _ = listener.accept()
        connection = welcome(peer)
        connection.deadline = time.monotonic() + 20
        connection.content(connection.receive())
        answer(connection)
        select.select([peer], [], [], 20)
        connection.close()

    with new_socket() as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(path)
        listener.listen()
        serving = pool.submit(serve)
        yield
        serving.result(20)


@pytest.mark.parametrize("what", ANSWERS)
def test_a_forged_answer_leaves_lookups_to_the_server_and_loses_nothing(
    tmp_path: Path, what: str
) -> None:
    before = open_files()
    tables = SharedTables(f"{tmp_path}/s", bank_id="one")
    request = pb.Lookup(table="t", fields=["x"])
    with answering(f"{tmp_path}/s", ANSWERS[what]):
        assert tables.lookup(request, KEYS) is None
        tables.close()
    assert tables.lookup(request, KEYS) is None
    del tables
    assert not open_files() - before


def test_the_right_answer_is_taken(tmp_path: Path) -> None:
    """The forged ones differ from it in one thing each."""
    tables = SharedTables(f"{tmp_path}/s", bank_id="one")
    right = ANSWERS["no table"], lambda connection: answer(connection, message=a_table()[0])
    with answering(f"{tmp_path}/s", right[1]):
        rows = tables.lookup(pb.Lookup(table="t", fields=["x"]), KEYS)
        assert rows is not None
        assert not rows.found.any()
        assert tables.incarnation == "i"
        tables.close()


def test_an_answer_that_comes_too_late_is_not_taken_for_another_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_again = threading.Event()

    def late(connection: Connection) -> None:
        assert asked_again.wait(20)
        try:
            answer(connection, message=a_table()[0])
        except OSError:
            return  # the client has gone, as it should

    tables = SharedTables(f"{tmp_path}/s", bank_id="one")
    monkeypatch.setattr(shared_tables, "OPENING_S", 0.05)
    with answering(f"{tmp_path}/s", late):
        assert tables.lookup(pb.Lookup(table="t", fields=["x"]), KEYS) is None
        assert tables._link is None
        asked_again.set()
        assert tables.lookup(pb.Lookup(table="u", fields=["x"]), KEYS) is None
        tables.close()


def test_remote_banks_elsewhere_share_nothing(bank: WatchedBank) -> None:
    access = Access(Token("t" * 32))
    with (
        BankServer(bank, "127.0.0.1:0", token=access.token) as server,
        RemoteBank(server.address, access=access) as client,
    ):
        assert_array_equal(client.table("t").lookup(KEYS)["n"], KEYS)
        assert bank.num_lookups == 1
