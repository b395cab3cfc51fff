"""Known defects of the original CARLS, each with a test that shows the opposite.

Source: the open-source version, `research/carls` of `tensorflow/neural-structured-learning`.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import carls_jax as carls
from carls_jax.bank import BankServer, LocalBank, RemoteBank
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.server import MAX_FRAME_BYTES
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import BankError, InvalidInputError, SnapshotCorruptError
from carls_jax.snapshots.exporting import export
from carls_jax.snapshots.tables import snapshot_content
from tests.integration.fuzzed_bank import FuzzedBank, fuzzed_bank, server_process
from tests.integration.malformed_requests import described, framed, lookup, request, update
from tests.properties.test_histories import state_of

RATE = 0.5
SPEC = carls.TableSpec(
    "t", {"x": carls.Field((4,), optimizer=carls.optimizer("adagrad", learning_rate=RATE))}
)
KEYS = np.arange(3)
ONES = np.ones((3, 4), np.float32)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # a socket's path is short
        yield Path(name)


@pytest.fixture(scope="module")
def served() -> Iterator[FuzzedBank]:
    with tempfile.TemporaryDirectory() as name, fuzzed_bank(Path(name), f"unix:{name}/s") as served:
        yield served


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[LocalBank]:
    with LocalBank(tmp_path / "root") as bank:
        yield bank


def test_lost_rows_after_kill_9(directory: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    address, root = f"unix:{directory}/s", directory / "root"
    root.mkdir()
    with RemoteBank(address) as bank:
        with server_process(root, address) as (process, _):
            bank.table(SPEC).update(KEYS, {"x": values}, step=7)
            process.kill()
        with server_process(root, address):
            rows = bank.table("t").lookup(KEYS)
    assert_array_equal(rows["x"], values, strict=True)
    assert_array_equal(rows.step["x"], [7, 7, 7])


def test_an_export_beyond_the_largest_message_is_whole(directory: Path) -> None:
    """The original wrote a bank as one message, of 2 GiB at most. The largest here has 8 MiB."""
    spec = carls.TableSpec("t", {"x": carls.Field((64,))})
    values = np.random.default_rng(0).standard_normal((150_000, 64), np.float32)
    assert values.nbytes > 4 * MAX_FRAME_BYTES
    keys = np.arange(len(values))
    with LocalBank(directory / "root") as bank:
        bank.table(spec).load(keys, {"x": values})
        bank.snapshot("large")
    content = snapshot_content(StoredBank(directory / "root"), "large")
    assert export(content, directory / "large.npz") > values.nbytes
    with np.load(directory / "large.npz", allow_pickle=False) as data:
        order = np.argsort(data["t/key"])
        assert_array_equal(data["t/key"][order], keys)
        assert_array_equal(data["t/value/x"][order], values)


def test_an_export_that_cannot_be_written_is_an_error_and_not_silent(directory: Path) -> None:
    """The largest file that the server may write is made smaller than the snapshot."""
    with fuzzed_bank(directory, f"unix:{directory}/s") as served:
        spec = carls.TableSpec("t", {"x": carls.Field((64,))})
        values = np.random.default_rng(0).standard_normal((20_000, 64), np.float32)
        served.bank.table(spec).load(np.arange(20_000), {"x": values})
        number, limits = served.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(number, resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        with pytest.raises(BankError):
            served.bank.snapshot("large")
        resource.prlimit(number, resource.RLIMIT_FSIZE, limits)
        assert "large" not in [one.label for one in served.bank.snapshots()]
        served.bank.verify(served.bank.snapshot("large"))


KILLED = """
import os, signal, sys
from pathlib import Path
from carls_jax.bank import LocalBank, snapshots
with LocalBank(sys.argv[1]) as bank:
    bank.table("t").update([0, 1, 2], {"x": [[9.0] * 4] * 3})
    snapshots.replace_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    bank.snapshot("new")
"""


def test_an_export_killed_half_way_destroys_the_old_one(directory: Path) -> None:
    """It is killed when all is written but what makes it valid."""
    root = directory / "root"
    with LocalBank(root) as bank:
        bank.table(SPEC).update(KEYS, {"x": ONES})
        bank.snapshot("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with carls.open_snapshot(root) as old:
        assert_array_equal(old.table("t").lookup(KEYS)["x"], ONES)
    with LocalBank(root) as bank:  # which also has the change of before the kill
        assert [one.label for one in bank.snapshots()] == ["old"]
        assert_array_equal(bank.table("t").lookup(KEYS)["x"], 9 * ONES)
        bank.restore("old")
        assert_array_equal(bank.table("t").lookup(KEYS)["x"], ONES)


def test_a_failed_import_wipes_the_live_bank(bank: LocalBank, tmp_path: Path) -> None:
    bank.table(SPEC).update(KEYS, {"x": ONES})
    snapshot = bank.snapshot("damaged")
    bank.table(SPEC).update(KEYS, {"x": 2 * ONES})
    bank.table(SPEC).push(KEYS, {"x": ONES})
    before = state_of(bank._open())
    arrays = tmp_path / f"root/snapshots/shard-00000/{snapshot.uuid}/arrays"
    for path in arrays.rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
    with pytest.raises(SnapshotCorruptError):
        bank.restore(snapshot)
    assert state_of(bank._open()) == before


def _not_a_number(value: float, *, kind: str) -> Any:
    values = np.ones((3, 3), np.float32)
    values[1, 2] = value
    more = {"push": pb.Push(combine="sum", create=True)} if kind == "push" else {}
    return update({"value/dense": values}, **more)


def _forged_session() -> Any:
    asked, sent = update()
    asked.change.client, asked.change.number = "../forged", 2**64 - 1
    return asked, sent


def _empty(kind: str) -> Any:
    if kind == "lookup":
        sent = described({"keys": np.empty(0, np.int64)})
        return request(sent, lookup=lookup()), sent
    return update({"keys": np.empty(0, np.int64), "value/dense": np.empty((0, 3), np.float32)})


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (_forged_session(), "InvalidInputError"),
        (update({"value/dense": np.ones((3, 4), np.float32)}), "ShapeError"),
        (update({"value/dense": np.ones((3, 0), np.float32)}), "ShapeError"),
        (_empty("update"), "ShapeError"),
        (_empty("lookup"), "ShapeError"),
        *[
            (_not_a_number(value, kind=kind), "NonFiniteError")
            for value in (np.nan, np.inf, -np.inf)
            for kind in ("push", "update")
        ],
    ],
    ids=["forged session", "changed width", "no width", "empty update", "empty lookup"]
    + [
        f"{kind} of {value}" for value in ("NaN", "inf", "-inf") for kind in ("gradients", "values")
    ],
)
def test_a_server_brought_down_by_one_malformed_request(
    served: FuzzedBank, asked: Any, error: str
) -> None:
    before, counted = served.state(), served.counts[error]
    assert served.ask([framed(*asked)]) is None
    assert served.counts[error] == counted + 1
    served.check_alive()
    assert served.state() == before


def test_a_server_brought_down_by_reading_an_empty_bank(served: FuzzedBank) -> None:
    empty = served.bank.table("empty")
    rows = empty.lookup([1, 2])
    assert not rows.found.any()
    assert_array_equal(rows["x"], [0.0, 0.0])
    assert [block.keys.size for block in empty.scan()] in ([], [0])
    assert empty.to_numpy()["keys"].size == 0
    served.check_alive()


def test_a_row_of_wrong_width_accepted(bank: LocalBank) -> None:
    table = bank.table(SPEC)
    table.update(KEYS, {"x": ONES})
    for call in (table.update, table.push):
        for width in (0, 1, 3, 5):
            with pytest.raises(carls.errors.ShapeError, match=rf"\[3, {width}\]"):
                call(KEYS, {"x": np.ones((3, width), np.float32)})
    assert_array_equal(table.lookup(KEYS)["x"], ONES)


def test_one_unknown_key_rejecting_a_whole_gradient_batch(bank: LocalBank) -> None:
    table = bank.table(SPEC)
    table.update(KEYS, {"x": ONES})
    pushed = table.push([0, 77, 2], {"x": ONES}, create=False)
    assert_array_equal(pushed.unknown_keys, [77])
    rows = table.lookup([0, 1, 2, 77])
    assert_array_equal(rows.found, [True, True, True, False])
    assert (rows["x"][[0, 2]] < 1).all()
    assert_array_equal(rows["x"][1], ONES[0])


def test_nan_gradients_accepted(bank: LocalBank) -> None:
    table = bank.table(SPEC)
    table.update(KEYS, {"x": ONES})
    before = state_of(bank._open())
    for value in (np.nan, np.inf, -np.inf):
        gradients = ONES.copy()
        gradients[2, 3] = value
        with pytest.raises(carls.errors.NonFiniteError, match="first in row 2"):
            table.push(KEYS, {"x": gradients})
    assert state_of(bank._open()) == before


def test_rows_set_by_value_sharing_one_optimizer_state(bank: LocalBank) -> None:
    """AdaGrad's sum of squares is each row's own: a large gradient of one slows no other."""
    table = bank.table(SPEC)
    table.update(KEYS, {"x": ONES})
    scales = np.array([[100.0], [1.0], [1.0]], np.float32)
    for _ in range(2):
        table.push(KEYS, {"x": scales * ONES})
    moved = 1 - table.lookup(KEYS)["x"]
    with LocalBank() as alone:
        other = alone.table(SPEC)
        other.update([1], {"x": ONES[:1]})
        for _ in range(2):
            other.push([1], {"x": ONES[:1]})
        expected = 1 - other.lookup([1])["x"]
    assert_array_equal(moved[1:], np.repeat(expected, 2, axis=0))
    # By hand: 0.5 * 1 / sqrt(0.1 + 1) + 0.5 * 1 / sqrt(0.1 + 2); 0.1 is where the sum begins.
    np.testing.assert_allclose(moved[1:], RATE / np.sqrt(1.1) + RATE / np.sqrt(2.1), rtol=1e-5)


def test_one_slow_call_stalling_every_other_table(bank: LocalBank, tmp_path: Path) -> None:
    slow = carls.TableSpec("slow", {"x": carls.Field((4,))})
    bank.table(slow).update(KEYS, {"x": ONES})
    with (
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        RemoteBank(server.address, timeout_s=20) as remote,
        ThreadPoolExecutor(1) as pool,
    ):
        fast = remote.table(SPEC)
        with bank._open().table("slow").writer:  # as a call has it that does not end
            waiting = pool.submit(remote.table("slow").update, KEYS, {"x": 2 * ONES})
            for _ in range(3):
                fast.update(KEYS, {"x": ONES})
                fast.push(KEYS, {"x": ONES})
                assert fast.lookup(KEYS).found.all()
            assert_array_equal(remote.table("slow").lookup(KEYS)["x"], ONES)
            assert not waiting.done()
        waiting.result(20)
        assert_array_equal(remote.table("slow").lookup(KEYS)["x"], 2 * ONES)


def test_a_client_choosing_the_path_that_the_server_writes_to(served: FuzzedBank) -> None:
    outside = Path(tempfile.mkdtemp(dir=served.root.parent))
    for label in (f"{outside}/x", f"../../{outside.name}/x", "..", "a/b", "~", "file:///tmp/x"):
        for call in (served.bank.snapshot, served.bank.restore, served.bank.verify):
            with pytest.raises((InvalidInputError, LookupError)):
                call(label)
    for uuid in (f"{outside}/x", "../" * 10 + "aa", "A" * 32):
        asked = request(take_snapshot=pb.TakeSnapshot(label="fine", uuid=uuid))
        assert served.ask([framed(asked)]) is None
    assert list(outside.iterdir()) == []
    assert {one.name for one in served.root.iterdir()} <= {
        "bank.json", "incarnation.json", "journal", "lock", "pins.json", "snapshots"
    }  # fmt: skip
