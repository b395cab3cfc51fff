"""Whatever becomes of a bank's files, opening it gives what it held, or an error that says why not.

"What it held" is its state after one of its changes. No file outside of its directory is altered.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carls_jax.bank import LocalBank, open_snapshot
from carls_jax.bank.stored_bank import StoredBank
from carls_jax.bank.tokens import kept_token
from carls_jax.errors import CarlsError
from tests.bank.stored_rows import EMBEDDINGS, KEYS, fill
from tests.properties.test_histories import state_of

LONG = 10 if os.environ.get("CARLS_LONG_TESTS") == "1" else 1
pytestmark = pytest.mark.timeout(1200 if LONG > 1 else 120)
OPTIONS = settings(max_examples=6 * LONG, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Kept:
    """Is a bank's directory, beside one of another bank and files that are nobody's.

    Attributes:
      states: By sequence, what the bank held after each of its changes since a snapshot.
    """

    root: Path
    another: Path
    outside: Path
    states: dict[int, dict[str, Any]]


def make(root: Path) -> dict[int, dict[str, Any]]:
    """Makes a bank of two snapshots and a journal of several files; returns its states."""
    states = {}
    with LocalBank(root) as bank:
        fill(bank)
        states[bank.stats().sequence] = state_of(bank._open())
    for number in range(3):
        with LocalBank(root) as bank:
            table = bank.table(EMBEDDINGS)  # a change, too
            states[bank.stats().sequence] = state_of(bank._open())
            for step in range(3):
                values = np.full((KEYS.size, 3), number + step, np.float32)
                table.push(KEYS, {"dense": values}, step=step, create=True)
                states[bank.stats().sequence] = state_of(bank._open())
            if number == 0:
                newest = bank.snapshot("second")
                bank.pin("me", [newest])
    kept_token(root / "token")
    return states


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    directory = tmp_path_factory.mktemp("files")
    states = make(directory / "root")
    make(directory / "another")
    outside = directory / "outside"
    outside.mkdir()
    for name in ("precious.log", "precious.json", "empty"):
        (outside / name).write_bytes(b"precious" * 2000 if name != "empty" else b"")
    for path in files(directory / "root"):
        shutil.copy(path, outside / f"copy-{path.name}")
    return Kept(directory / "root", directory / "another", outside, states)


def files(root: Path) -> list[Path]:
    return sorted(one for one in root.rglob("*") if one.is_file() and not one.is_symlink())


FOREIGN = [
    b"", b"{}", b"[]", b"null", b'"x"', b"0", b"[[1, 2]]", b'{"bank_id": 1}', b"\xff" * 5000,
    b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"9" * 9000, b"NaN", b"\0" * 99,
    b'{"format_version": 2, "crc32": 0, "snapshot": {}}', b'{"me": 3}', b'{"me": [[]]}', b"1e999",
    b'{"bank_id": "x", "shard_index": 1e999, "num_shards": null}',
]  # fmt: skip


Damage = Callable[[random.Random, Path, Kept], None]


def flip(chance: random.Random, path: Path, kept: Kept) -> None:
    altered = bytearray(path.read_bytes()) or bytearray(1)
    for _ in range(chance.randint(1, 3)):
        altered[chance.randrange(len(altered))] ^= chance.randint(1, 255)
    path.write_bytes(altered)


def truncate(chance: random.Random, path: Path, kept: Kept) -> None:
    os.truncate(path, chance.randint(0, path.stat().st_size))


def append(chance: random.Random, path: Path, kept: Kept) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 99)))


def splice(chance: random.Random, path: Path, kept: Kept) -> None:
    raw = path.read_bytes()
    start = chance.randint(0, len(raw))
    new = chance.randbytes(chance.randint(0, 300))
    path.write_bytes(raw[:start] + new + raw[start + chance.randint(0, 300) :])


def swap(chance: random.Random, path: Path, kept: Kept) -> None:
    other = chance.choice(files(kept.root))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def of_another_bank(chance: random.Random, path: Path, kept: Kept) -> None:
    alike = [one for one in files(kept.another) if one.suffix == path.suffix]
    shutil.copy(chance.choice(alike), path)


def foreign(chance: random.Random, path: Path, kept: Kept) -> None:
    path.write_bytes(chance.choice(FOREIGN))


def remove(chance: random.Random, path: Path, kept: Kept) -> None:
    path.unlink()


def directory_instead(chance: random.Random, path: Path, kept: Kept) -> None:
    path.unlink()
    path.mkdir()


def link_out(chance: random.Random, path: Path, kept: Kept) -> None:
    path.unlink()
    aims = [*files(kept.outside), kept.outside, kept.outside / "nothing", path]
    path.symlink_to(chance.choice(aims))


def link_to_copy(chance: random.Random, path: Path, kept: Kept) -> None:
    path.unlink()
    path.symlink_to(kept.outside / f"copy-{path.name}")


DAMAGES: list[Damage] = [
    flip, truncate, append, splice, swap, of_another_bank, foreign, remove, directory_instead,
    link_out, link_to_copy,
]  # fmt: skip


def seen(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(one.relative_to(directory)): (one.read_bytes(), one.stat().st_mtime_ns)
        for one in files(directory)
    }


@pytest.fixture(params=[one.__name__ for one in DAMAGES])
def damage(request: pytest.FixtureRequest) -> Damage:
    return next(one for one in DAMAGES if one.__name__ == request.param)


def check_bank(kept: Kept) -> None:
    """Opens a bank, has it take a snapshot, and opens it again."""
    with LocalBank(kept.root) as bank:
        state = state_of(bank._open())
        assert state == kept.states[state["sequence"]]
        bank.snapshot("more")
    with LocalBank(kept.root) as bank:
        assert state_of(bank._open()) == state


def check_snapshot(kept: Kept) -> None:
    with open_snapshot(kept.root) as bank:
        assert isinstance(bank, LocalBank)
        state = state_of(bank._open())
        assert state == kept.states[state["sequence"]]


def check_description(kept: Kept) -> None:
    assert {one.identity.label for one in StoredBank(kept.root).describe()} <= {"full", "second"}


def check_token(kept: Kept) -> None:
    kept_token(kept.root / "token")


CHECKS = [check_snapshot, check_description, check_token, check_bank]


def test_a_damaged_bank_is_what_it_was_or_is_refused(kept: Kept, damage: Damage) -> None:
    @OPTIONS
    @given(st.integers(0, (1 << 32) - 1))
    def damage_and_open(seed: int) -> None:
        chance = random.Random(seed)
        where = chance.choice(sorted({one.parent for one in files(kept.root)}))
        path = chance.choice([one for one in files(kept.root) if one.parent == where])
        with copied(kept) as copy:
            before = seen(copy.outside)
            damage(chance, copy.root / path.relative_to(kept.root), copy)
            for check in CHECKS:
                with suppress(CarlsError):
                    check(copy)
            assert seen(copy.outside) == before

    damage_and_open()


@contextmanager
def copied(kept: Kept) -> Iterator[Kept]:
    with tempfile.TemporaryDirectory() as name:
        copy = replace(kept, root=Path(name, "root"), outside=Path(name, "outside"))
        shutil.copytree(kept.root, copy.root)
        shutil.copytree(kept.outside, copy.outside)
        yield copy
