"""The files of a journal: what they are called, and the page that each begins with.

    DIRECTORY/00000000000000000001.log    a segment, named for the sequence of its first record

Its first page says of which bank it is, what its records' mark is, and under which libraries and on
which CPU they were applied. The page is a segment's own and of fixed size, so that a file that is
longer was begun rightly, and one that is not holds no record.
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding
import xxhash

from carls_jax.errors import (
    BankIdentityError,
    BankStorageError,
    InvalidInputError,
    JournalCorruptError,
)
from carls_jax.metrics import installed_version

PAGE_BYTES = 4096
FORMAT = 1

_MAGIC = b"CARLSJNL"
_BEGIN = struct.Struct("<8sQ")  # and the xxh3_64 of the rest of the page
_NAME = re.compile(r"(\d{20})\.log")
_LIBRARIES = ("carls-jax", "numpy", "numba", "llvmlite")


@dataclass(frozen=True)
class SegmentFile:
    """Is one file of a journal.

    Attributes:
      first: Sequence of its first record.
    """

    path: Path
    first: int

    @property
    def num_bytes(self) -> int:
        """Present size in bytes."""
        return self.path.stat().st_size


def segment_path(directory: Path, first: int) -> Path:
    """Returns the path of the segment that begins with a sequence."""
    return directory / f"{first:020d}.log"


def segment_files(directory: Path) -> list[SegmentFile]:
    """Returns the segments of a directory in order; none if there is no such directory."""
    if not directory.is_dir():
        return []
    names = map(_NAME.fullmatch, sorted(os.listdir(directory)))
    return [SegmentFile(directory / one[0], int(one[1])) for one in names if one]


def earlier_segments(directory: Path, after: int) -> Iterator[tuple[SegmentFile, int]]:
    """Gives the segments that are there and their lengths; deletes those without a record."""
    for file in segment_files(directory):
        num_bytes = file.num_bytes
        if num_bytes <= PAGE_BYTES:
            os.unlink(file.path)
        elif file.first > after:
            raise JournalCorruptError(
                f"{file.path} holds change {file.first}, though change {after} is said to be the "
                "last: read the journal before writing it, or move it away"
            )
        else:
            yield file, num_bytes


@dataclass(frozen=True)
class Page:
    """Is what a segment begins with.

    Attributes:
      bank_id, shard_index: Whose changes it holds.
      first: Sequence of the first record.
      mark: What each record begins with, in hexadecimal digits.
      machine: Versions of the libraries, name and features of the CPU, on which the bits of a
        replay depend.
      is_reused: Whether behind the last record there may be what an earlier segment held.
    """

    bank_id: str
    shard_index: int
    first: int
    mark: str
    machine: dict[str, str]
    is_reused: bool

    def encode(self) -> bytes:
        """Returns the page.

        Raises:
          InvalidInputError: The bank's identifier is so long that it does not fit.
        """
        text = json.dumps({"format": FORMAT, **asdict(self)}).encode()
        room = PAGE_BYTES - _BEGIN.size
        if len(text) > room:
            raise InvalidInputError(
                f"bank_id of {len(self.bank_id)} characters: with the CPU's features it takes "
                f"{len(text)} bytes of a journal's page, and {room} are there"
            )
        rest = text.ljust(room)
        return _BEGIN.pack(_MAGIC, xxhash.xxh3_64_intdigest(rest)) + rest

    def check(self, file: SegmentFile, *, bank_id: str, shard_index: int) -> None:
        """Checks that a segment is what its place says.

        Raises:
          BankIdentityError: It is of another bank or shard.
          JournalCorruptError: Its file was renamed.
        """
        if (self.bank_id, self.shard_index) != (bank_id, shard_index):
            raise BankIdentityError(
                f"{file.path} is the journal of shard {self.shard_index} of bank {self.bank_id}, "
                f"not of shard {shard_index} of bank {bank_id}: give another root, or move the "
                "journal away"
            )
        if self.first != file.first:
            raise JournalCorruptError(
                f"{file.path} begins with change {self.first}: name it "
                f"{segment_path(file.path.parent, self.first).name} again"
            )


def read_page(file: SegmentFile) -> Page | None:
    """Returns the page of a segment; None: its writer was stopped before it was whole.

    Raises:
      JournalCorruptError: The page is damaged, or of a format that this version does not know.
    """
    try:
        # Nothing behind a link is read, since a torn tail would be cut off it.
        with open(os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
            data = opened.read(PAGE_BYTES + 1)
    except OSError as error:
        raise BankStorageError(
            f"{file.path} cannot be read: {error}; put the file itself back from a copy"
        ) from error
    begin, rest = data[: _BEGIN.size], data[_BEGIN.size : PAGE_BYTES]
    is_right = begin == _BEGIN.pack(_MAGIC, xxhash.xxh3_64_intdigest(rest))
    if not (is_right and len(data) >= PAGE_BYTES):
        if len(data) <= PAGE_BYTES:
            return None
        raise JournalCorruptError(
            f"{file.path} is damaged in its first {PAGE_BYTES} bytes, without which its records "
            "cannot be read: put the file back from a copy, or give up the changes from number "
            f"{file.first} on and move it, and the files after it, away"
        )
    said: dict[str, Any] = json.loads(rest)
    found = said.pop("format")
    if found != FORMAT:
        raise JournalCorruptError(
            f"{file.path} has format {found}, and this version of carls-jax reads {FORMAT}: start "
            "the bank with the version that wrote it, take a snapshot and stop it"
        )
    return Page(**said)


@functools.cache
def this_machine() -> dict[str, str]:
    """Returns what the bits of a replay depend on: versions, name and features of the CPU."""
    features = llvmlite.binding.get_host_cpu_features()
    return {name: str(installed_version(name)) for name in _LIBRARIES} | {
        "cpu": llvmlite.binding.get_host_cpu_name(),
        "cpu features": ",".join(sorted(name for name, is_there in features.items() if is_there)),
    }


def differences(before: dict[str, str], now: dict[str, str]) -> str:
    """Says in what two machines differ, in a phrase; empty: in nothing."""
    return ", ".join(
        f"{name} {_difference(before.get(name, ''), now.get(name, ''))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )


def _difference(before: str, now: str) -> str:
    if "," not in before + now:
        return f"was {before} and is {now}"
    lost = sorted(set(before.split(",")) - set(now.split(",")))
    added = sorted(set(now.split(",")) - set(before.split(",")))
    return " ".join([f"-{name}" for name in lost] + [f"+{name}" for name in added])
