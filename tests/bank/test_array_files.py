from __future__ import annotations

from pathlib import Path

import pytest
import tensorstore as ts

from carls_jax.bank.array_files import files_of_chunks


@pytest.fixture
def database(tmp_path: Path) -> str:
    """Gives a database whose tree has several levels, written by two commits."""
    spec = {
        "driver": "ocdbt",
        "base": f"file://{tmp_path}/",
        "config": {"max_decoded_node_bytes": 400},
    }
    store = ts.KvStore.open(spec).result()
    for commit in range(2):
        with ts.Transaction() as transaction:
            for index in range(30):
                key = f"a%2Fb/key/c/{30 * commit + index}/0"
                store.with_transaction(transaction).write(key, b"x" * 200).result()
            other = f"a/key/c/{commit}"
            store.with_transaction(transaction).write(other, b"x" * 200).result()
    return f"file://{tmp_path}/"


def test_the_files_of_chunks_are_found_in_a_deep_tree(database: str, tmp_path: Path) -> None:
    first = files_of_chunks(database, "a%2Fb/key/c/", range(3))
    second = files_of_chunks(database, "a%2Fb/key/c/", range(30, 31))
    both = files_of_chunks(database, "a%2Fb/key/c/", range(29, 31))
    assert len(first) == len(second) == 1
    assert both == sorted(first + second)
    assert all((tmp_path / name).is_file() for name in both)
    assert files_of_chunks(database, "a/key/c/", range(1)) == first
    assert files_of_chunks(database, "a%2Fb/key/c/", range(60, 99)) == []


def test_a_database_that_cannot_be_read_is_an_error(database: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(ValueError, match="manifest"):
        files_of_chunks(database, "a/key/c/", range(1))
