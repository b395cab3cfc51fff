"""Which files of an OCDBT database hold a chunk of an array, for those who tell what is damaged."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorstore as ts

# What tensorstore calls a piece of a file: its kind, its name, where it begins, its bytes.
_PIECE = re.compile(r"\w+::?(?P<file>.*):\d+:\d+")


def files_of_chunks(database_url: str, prefix: str, chunks: range) -> list[str]:
    """Returns the names, below the database's directory, of the files that hold chunks of an array.

    Args:
      database_url: Where the database is.
      prefix: What the keys of the array's chunks begin with, up to their first index.
      chunks: The chunks by that index.

    Raises:
      ValueError: The database itself cannot be read.
    """
    wanted = re.compile(rf"{re.escape(prefix)}(\d+)(/.*)?")
    files = {
        file
        for key, file in _values(ts.KvStore.open(database_url).result())
        if (found := wanted.fullmatch(key)) and int(found[1]) in chunks
    }
    return sorted(files)


def _values(base: ts.KvStore) -> Iterator[tuple[str, str]]:
    """Yields the keys of the newest version whose values lie in files, and these files."""
    # Each node of the tree leaves out of its keys what all below it begin with.
    newest = ts.ocdbt.dump(base).result()["versions"][-1]
    nodes = [("", newest["root"]["location"])] if "location" in newest["root"] else []
    while nodes:
        prefix, location = nodes.pop()
        for entry in ts.ocdbt.dump(base, location).result()["entries"]:
            if "location" in entry:
                below = prefix + entry["subtree_common_prefix"].decode()
                nodes.append((below, entry["location"]))
            elif piece := _PIECE.fullmatch(str(entry.get("indirect_value", ""))):
                yield prefix + entry["key"].decode(), piece["file"]
