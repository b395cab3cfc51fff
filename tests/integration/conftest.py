"""How long the tests that hurt go on, and what their random moments follow from."""

from __future__ import annotations

import random

import pytest


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether minutes may be spent."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def num_kills(request: pytest.FixtureRequest, is_long: bool) -> int:
    """How often a server is killed."""
    return request.config.getoption("--kills") or (200 if is_long else 15)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Gives random numbers; the seed is printed where the test fails."""
    seed = request.config.getoption("--seed")
    print(f"--seed={seed}")
    return random.Random(seed)
