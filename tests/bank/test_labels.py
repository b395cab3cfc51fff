from __future__ import annotations

from pathlib import Path

import pytest

from carls_jax.bank.labels import check_label
from carls_jax.bank.local import LocalBank
from carls_jax.errors import InvalidInputError, SnapshotNotFoundError

WRONG = [
    *("", ".", "..", "a/b", "/etc/x", "../x", "a b", "a\n", "ä", "a\0", "-" * 65, "~", "a\\b"),
    *("0" * 32, "0123456789abcdef" * 2, None, 7, b"a"),
]


RIGHT = ["a", "step-1200", "A.b_c-9", "...", "x" * 64, "0" * 31, "F" * 32]


@pytest.mark.parametrize("label", RIGHT)
def test_a_label_is_one(label):
    assert check_label(label) == label


@pytest.mark.parametrize("label", WRONG)
def test_anything_else_is_none(label):
    with pytest.raises(InvalidInputError, match=r"^label=.*a label is 1 to 64 of the characters"):
        check_label(label)


@pytest.mark.parametrize("label", WRONG[:-3])
def test_a_bank_takes_no_snapshot_of_another_name(label, tmp_path: Path):
    with LocalBank(tmp_path / "root") as bank:
        with pytest.raises(InvalidInputError, match=r"^label="):
            bank.snapshot(label)
        assert bank.snapshots() == []
        with pytest.raises(SnapshotNotFoundError):
            bank.restore(label)
