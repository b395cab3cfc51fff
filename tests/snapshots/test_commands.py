"""Tests of `carls-jax snapshots`, `inspect` and `diff`, as users give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import BankServer, LocalBank, ShardedBank
from carls_jax.bank.durable_files import disk_bytes
from carls_jax.bank.root import kept_identity
from carls_jax.cli import main

NODES = carls.TableSpec(
    "nodes",
    {
        "score": carls.Field((8,), optimizer=carls.optimizer("sgd", learning_rate=0.5)),
        "label": carls.Field(dtype="int64", history=2),
    },
)

Give = Callable[..., tuple[int, str, str]]


@pytest.fixture
def give(capsys: pytest.CaptureFixture[str]) -> Give:
    """Returns a function that gives a command; returns the exit status and what was told."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(one) for one in arguments])
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture
def banks(tmp_path: Path) -> Path:
    """Gives a directory with those of a bank of two shards and snapshots a, b, c; b is pinned."""
    directory = tmp_path / "banks"
    shards = [
        LocalBank(directory / str(index), bank_id="b", shard_index=index, num_shards=2)
        for index in range(2)
    ]
    with ShardedBank(shards, source="me") as bank:
        for value, label in enumerate("abc"):
            values = {"score": np.full((500, 8), value), "label": np.full(500, value)}
            bank.table(NODES).update(np.arange(500), values, step=value)
            taken = bank.snapshot(label)
            if label == "b":
                bank.pin("runs/a", [taken])
    return directory


def damage(root: Path, label: str) -> Path:
    """Overwrites the first half of a file, in which there are values; returns which."""
    (directory,) = (
        path.parent
        for path in (root / "snapshots").rglob("manifest.json")
        if f'"label": "{label}"' in path.read_text()
    )
    largest = max(directory.rglob("arrays/d/*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(b"\xff" * (len(content) // 2) + content[len(content) // 2 :])
    return largest


def test_snapshots_are_listed(banks: Path, give: Give) -> None:
    status, told, _ = give("snapshots", "list", "--root", banks)
    head, *lines = [line.split() for line in told.splitlines()]
    assert status == 0
    assert head == ["LABEL", "UUID", "TAKEN", "ROWS", "MB", "SHARDS", "PINNED", "BY"]
    assert [(line[0], line[4], *line[6:]) for line in lines] == [
        ("a", "500", "all", "-"),
        ("b", "500", "all", "runs/a"),
        ("c", "500", "all", "-"),
    ]
    with LocalBank(banks / "1", bank_id="b", shard_index=1, num_shards=2) as shard:
        shard.snapshot("of-one")
    assert give("snapshots", "list", "--root", banks)[1].splitlines()[-1].split()[6:] == [
        "some:", "incomplete", "-",
    ]  # fmt: skip
    again = give("snapshots", "list", "--root", banks / "0", "--root", banks / "1")
    assert again == give("snapshots", "list", "--root", banks)


def test_a_bank_without_snapshots_is_told_so(tmp_path: Path, give: Give) -> None:
    LocalBank(tmp_path).close()
    assert give("snapshots", "list", "--root", tmp_path) == (0, "no snapshots\n", "")


def test_sound_snapshots_are_verified_and_a_damaged_file_is_named(banks: Path, give: Give) -> None:
    status, told, _ = give("snapshots", "verify", "--root", banks)
    assert (status, told.count(": sound")) == (0, 3)
    damaged = damage(banks / "1", "b")
    status, told, _ = give("snapshots", "verify", "--root", banks)
    assert (status, told.count(": sound")) == (1, 2)
    assert "): damaged\n  column 'key' of table 'nodes' in file://" in told
    assert told.count(f"(in d/{damaged.name})") == told.count("has checksum") > 1
    assert give("snapshots", "verify", "b", "--root", banks)[0] == 1
    assert give("snapshots", "verify", "c", "--root", banks)[0] == 0
    status, _, told = give("snapshots", "verify", "z", "--root", banks)
    assert status == 1
    assert "SnapshotNotFoundError: no snapshot 'z'; there are: a (" in told


def test_a_damaged_manifest_is_told(banks: Path, give: Give) -> None:
    path = next((banks / "0" / "snapshots").rglob("manifest.json"))
    path.write_text("{")
    status, told, _ = give("snapshots", "verify", "--root", banks)
    assert status == 1
    assert f"{path} is no manifest" in told
    listed = give("snapshots", "list", "--root", banks)[1]
    assert f"manifest of {path.parent.name} is damaged" in listed


def test_what_nobody_needs_is_removed_and_its_space_comes_back(banks: Path, give: Give) -> None:
    half_written = banks / "0" / "snapshots" / "shard-00000" / ("0" * 32)
    half_written.mkdir()
    (half_written / "data").write_bytes(bytes(2_000_000))
    before = disk_bytes(banks)
    status, told, _ = give("snapshots", "compact", "--keep", 1, "--root", banks)
    assert status == 0
    removed, measured = told.splitlines()
    assert removed == "removed a"
    came_back = before - disk_bytes(banks)
    assert came_back > 2_000_000
    assert measured == f"{came_back / 1e6:.1f} MB came back"
    assert [
        line.split()[0] for line in give("snapshots", "list", "--root", banks)[1].splitlines()[1:]
    ] == ["b", "c"]
    assert give("snapshots", "release", "runs/a", "--root", banks)[0] == 0
    assert give("snapshots", "compact", "--keep", 1, "--root", banks)[1].startswith("removed b\n")
    with carls.open_snapshot(banks) as bank:
        assert bank.table("nodes").lookup([0])["label"] == 2


def test_a_bank_that_is_in_use_is_not_compacted(banks: Path, give: Give) -> None:
    with LocalBank(banks / "1", bank_id="b", shard_index=1, num_shards=2):
        status, _, told = give("snapshots", "compact", "--keep", 1, "--root", banks)
        assert status == 1
        assert "AddressInUseError" in told
    status, _, told = give("snapshots", "compact", "--keep", 0, "--root", banks)
    assert "max_snapshots=0" in told
    assert len(give("snapshots", "list", "--root", banks)[1].splitlines()) == 4


def test_a_snapshot_is_restored_onto_other_shards(banks: Path, tmp_path: Path, give: Give) -> None:
    new = [tmp_path / f"new/{index}" for index in range(3)]
    arguments = ["snapshots", "restore", "b", "--root", banks]
    for one in new:
        arguments += ["--to", one]
    status, told, _ = give(*arguments)
    assert (status, told.startswith("b (")) == (0, True)
    last = f"  carls-jax bank --root {new[2]} --shard 2/3 --bank-id b --address ADDRESS"
    assert told.splitlines()[-1] == last
    assert [kept_identity(one)["num_shards"] for one in new] == [3, 3, 3]
    with carls.open_snapshot(tmp_path / "new") as bank:
        assert set(bank.table("nodes").lookup(np.arange(500))["label"]) == {1}
    assert "give --to" in give("snapshots", "restore", "b", "--root", banks)[2]


def test_a_served_bank_is_listed_verified_restored_and_released(tmp_path: Path, give: Give) -> None:
    bank = LocalBank(tmp_path / "bank", source="me")
    with bank, BankServer(bank, f"unix:{tmp_path}/socket") as server:
        at = ("--address", server.address)
        assert give("snapshots", "list", *at)[1] == "no snapshots\n"
        bank.table(NODES).update([1], {"label": [1]})
        taken = bank.snapshot("a")
        bank.pin("runs/a", [taken])
        bank.table(NODES).update([1], {"label": [2]})
        assert [line.split()[0] for line in give("snapshots", "list", *at)[1].splitlines()] == [
            "LABEL",
            "a",
        ]
        assert give("snapshots", "verify", *at) == (0, f"a ({taken.uuid}): sound\n", "")
        assert give("snapshots", "restore", "a", *at)[0] == 0
        assert bank.table("nodes").lookup([1])["label"] == 1
        assert give("snapshots", "release", "runs/a", *at)[0] == 0
        assert (tmp_path / "bank" / "pins.json").read_text() == "{}\n"
        told = give("snapshots", "restore", "a", "--to", tmp_path / "x", *at)[2]
        assert "--to is for --root" in told


def test_a_snapshot_is_exported_and_compared(banks: Path, tmp_path: Path, give: Give) -> None:
    path = tmp_path / "b.npz"
    status, told, _ = give("snapshots", "export", path, "--snapshot", "b", "--root", banks)
    assert (status, told.endswith(f" MB in {path}\n")) == (0, True)
    assert give("diff", path, f"{banks}@b") == (0, "", "")
    status, told, _ = give("diff", path, banks)
    assert status == 1
    assert "table nodes: 0 rows only in A, 0 only in B, 500 changed" in told
    assert "  value/score: 500 rows, largest difference 1\n" in told
    status, told, problem = give("diff", path, f"{banks}@z")
    assert (status, told) == (2, "")
    assert "SnapshotNotFoundError: no complete snapshot 'z'" in problem
    assert give("diff", path, tmp_path / "nowhere")[0] == 2


def test_a_table_and_a_row_are_inspected(banks: Path, give: Give) -> None:
    status, told, _ = give("inspect", "nodes", "--root", banks)
    assert status == 0
    head, score, label = told.splitlines()[:3]
    assert head.startswith("table nodes: 500 of at most 268435456 rows, ")
    assert head.endswith("keys are integers")
    assert score.startswith("  score  float32 [8], optimizer sgd(learning_rate=0.5")
    assert label == "  label  int64, history 2"
    told = give("inspect", "nodes", "--key", 7, "--root", banks)[1]
    assert told.startswith("row 7 of table 'nodes'\n  score = ")
    assert "me from step 2" in told
    status, _, told = give("inspect", "node", "--root", banks)
    assert (status, "no table 'node'; this bank has nodes" in told) == (1, True)
    assert give("inspect", "nodes", "--key", 7777, "--root", banks)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["snapshots"], "the following arguments are required: COMMAND"),
        (["snapshots", "lst"], "carls-jax snapshots has no 'lst'; did you mean 'list'?"),
        (["snapshots", "list"], "one of the arguments --root --address is required"),
        (["snapshots", "list", "--rot", "x"], "has no '--rot'; did you mean '--root'?"),
        (["snapshots", "restore", "--root", "x"], "arguments are required: snapshot"),
        (["snapshots", "compact", "--root", "x", "--keep", "few"], "invalid int value: 'few'"),
        (["diff", "a"], "the following arguments are required: B"),
    ],
)
def test_a_command_that_is_wrong_is_told_what_is_right(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(expected)
