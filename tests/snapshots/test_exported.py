"""Tests of reading exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carls_jax.bank.stored_bank import StoredBank
from carls_jax.errors import InvalidInputError
from carls_jax.snapshots import exported
from carls_jax.snapshots.exported import exported_content
from carls_jax.snapshots.exporting import export
from carls_jax.snapshots.tables import snapshot_content, whole_column
from tests.bank.stored_rows import fill, open_bank


def test_what_was_exported_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bank([tmp_path / "bank"]) as bank:
        fill(bank)
    content = snapshot_content(StoredBank(tmp_path / "bank"))
    export(content, tmp_path / "a.npz")
    monkeypatch.setattr(exported, "BLOCK_BYTES", 200)
    found = exported_content(tmp_path / "a.npz")
    assert (found.identity, found.clocks) == (content.identity, content.clocks)
    assert list(found.tables) == list(content.tables)
    for name, table in found.tables.items():
        expected = content.tables[name]
        assert table.spec.to_dict() == expected.spec.to_dict()
        assert (table.num_rows, table.names) == (expected.num_rows, expected.names)
        assert list(table.columns) == list(expected.columns)
        for column in table.columns:
            one, other = whole_column(table, column), whole_column(expected, column)
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.tobytes() == other.tobytes()
    labels = found.tables["labels"]
    assert len(list(labels.blocks(["key", "value/label"]))) > 2


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "objects.npz", snapshot=np.array([{}], object))
    (tmp_path / "no-zip.npz").write_bytes(b"PK no")
    for name in ("other", "objects", "no-zip", "nowhere"):
        with pytest.raises(InvalidInputError, match=rf"{name}\.npz is no export of a bank"):
            exported_content(tmp_path / f"{name}.npz")
