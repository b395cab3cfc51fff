"""What the tests of makers share: a bank with one table, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from carls_jax.bank import Field, LocalBank, TableSpec
from carls_jax.checkpoints import Checkpointer, HostCheckpoint

NODES = TableSpec("nodes", {"label": Field(), "score": Field((2,)), "rounds": Field(dtype="int64")})


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[LocalBank]:
    with LocalBank(tmp_path / "bank") as bank:
        bank.table(NODES)
        yield bank


@pytest.fixture
def other_bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        bank.table(NODES)
        yield bank


@pytest.fixture
def checkpoint() -> Callable[[int], HostCheckpoint]:
    """Makes the checkpoint of a step, whose one variable is the step; 8 bytes."""
    return lambda step: HostCheckpoint(step, {"weight": np.float64(step)}, None, None, 8)


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        yield checkpointer
