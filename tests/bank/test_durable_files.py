from __future__ import annotations

from pathlib import Path

import pytest

from carls_jax.bank.durable_files import disk_bytes, make_directory, replace_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "new \ud800")
    assert path.read_text() == "old"
    replace_file(path, "ünew")
    assert path.read_text(encoding="utf-8") == "ünew"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_directories_are_made(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "a")


def test_the_bytes_on_disk_are_those_of_blocks_and_not_of_holes(tmp_path: Path) -> None:
    empty = disk_bytes(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data").write_bytes(b"x" * 100_000)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    assert 100_000 <= disk_bytes(tmp_path) - empty < 200_000
    assert disk_bytes(tmp_path / "nowhere") == 0
