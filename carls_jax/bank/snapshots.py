"""`SnapshotStore`: the complete, durable states of one shard of a bank, in a directory.

    ROOT/snapshots/shard-00000/UUID/manifest.json    written last: what it names is complete
    ROOT/snapshots/shard-00000/UUID/arrays/          an OCDBT database, see `snapshot_arrays.py`

A directory without a manifest was left by a crash; it is never listed, and is removed.
"""

from __future__ import annotations

import builtins
import json
import logging
import re
import shutil
import threading
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from carls_jax.bank.client_windows import Saved
from carls_jax.bank.durable_files import disk_bytes, make_directory, replace_file, sync
from carls_jax.bank.interface import SnapshotIdentity, find_snapshot
from carls_jax.bank.snapshot_arrays import GROUP_BYTES, ArrayWriter, Readable, TableContent
from carls_jax.errors import (
    BankIdentityError,
    InvalidInputError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
)

# Raised when older programs could not read what newer ones write.
FORMAT_VERSION = 2
# What older programs wrote: 1 holds no clients.
_READABLE_VERSIONS = (1, FORMAT_VERSION)

_MANIFEST = "manifest.json"
_UUID = re.compile(r"[0-9a-f]{32}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotContent:
    """Is the state that a snapshot holds of one shard.

    Attributes:
      identity: Which snapshot it is; `num_rows` counts this shard's rows.
      shard_index: Which shard was written.
      clocks: Highest step of each clock.
      sequence: Number of the last change that was applied.
      tables: The tables, whose rows are read only when their `blocks` are asked for.
      clients: Their last changes, as `ClientWindows.save` has them.
    """

    identity: SnapshotIdentity
    shard_index: int
    clocks: Mapping[str, int]
    sequence: int
    tables: list[TableContent]
    clients: Saved = field(default_factory=dict)


class SnapshotStore:
    """Keeps one shard's snapshots.

    All methods may be called from several threads; those that alter the directory wait for one
    another. Only one process may write, others may read. Nothing is kept open between calls.

    Args:
      root: Directory of the bank. It is made by the first `write`.
      bank_id: Identifier of the bank that `root` belongs to.
      shard_index: Which shard this is, from 0.
      group_bytes: How much is written or read at once, and about how much memory that takes.
    """

    def __init__(
        self, root: Path, *, bank_id: str, shard_index: int = 0, group_bytes: int = GROUP_BYTES
    ) -> None:
        self._directory = root.absolute() / "snapshots" / f"shard-{shard_index:05d}"
        self._bank_id = bank_id
        self._shard_index = shard_index
        self._group_bytes = group_bytes
        self._lock = threading.Lock()

    def write(
        self,
        identity: SnapshotIdentity,
        tables: Iterable[Readable],
        *,
        clocks: Mapping[str, int],
        sequence: int,
        clients: Saved = MappingProxyType({}),
    ) -> SnapshotIdentity:
        """Makes a state durable; returns its identity with the number of this shard's rows.

        A crash at any moment leaves the other snapshots as they were and this one unlisted.

        Raises:
          BankIdentityError: The identity names another bank.
          InvalidInputError: The UUID is none, or there is such a snapshot already.
          BankError: The arrays cannot be written; nothing is left behind.
        """
        self._check_new(identity)
        directory = self._directory / identity.uuid
        with self._lock:
            self._remove_orphans()
            make_directory(directory)
            try:
                writer = ArrayWriter(_database_url(directory), group_bytes=self._group_bytes)
                written = [writer.write(image) for image in tables]
                writer.commit()
                identity = replace(identity, num_rows=sum(one.num_rows for one in written))
                content = SnapshotContent(
                    identity, self._shard_index, dict(clocks), sequence, written, clients
                )
                for path in (directory, *directory.rglob("*")):
                    sync(path)
                replace_file(directory / _MANIFEST, _to_json(content))
            except BaseException:
                _remove(directory)
                raise
        return identity

    def list(self) -> builtins.list[SnapshotIdentity]:
        """Returns this bank's complete snapshots, oldest first; damaged ones are logged.

        The order is that of their states: the computer's clock may have gone back between them.
        """
        contents = []
        for uuid in self._uuids():
            try:
                contents.append(self._load(uuid))
            except (SnapshotCorruptError, BankIdentityError) as error:
                _logger.warning("snapshot not listed: %s", error)
        contents.sort(key=lambda one: (one.sequence, one.identity.created_at))
        return [one.identity for one in contents]

    def read(self, snapshot: SnapshotIdentity | str) -> SnapshotContent:
        """Returns the content of a snapshot, named by identity, UUID or (the newest of a) label.

        Raises:
          SnapshotNotFoundError: None is so named; the message lists those there are.
          SnapshotCorruptError: Its manifest, or that of one that may be it, is damaged. Rows are
            checked as they are read.
          BankIdentityError: It is of another bank.
        """
        if isinstance(snapshot, SnapshotIdentity):
            self._check_bank(snapshot)
        uuid = snapshot.uuid if isinstance(snapshot, SnapshotIdentity) else snapshot
        if uuid in self._uuids():
            return self._load(uuid)
        listed = self.list()
        found = find_snapshot(listed, snapshot)
        damaged = sorted(set(self._uuids()) - {one.uuid for one in listed})
        if found is None and damaged:
            raise SnapshotCorruptError(
                f"no readable snapshot {uuid!r} in {self._directory}; the manifests of these are "
                f"damaged: {', '.join(damaged)}"
            )
        if found is None:
            there = ", ".join(f"{one.label} ({one.uuid})" for one in listed) or "none"
            raise SnapshotNotFoundError(
                f"no complete snapshot {uuid!r} in {self._directory}; there are: {there}"
            )
        return self._load(found.uuid)

    def verify(self, snapshot: SnapshotIdentity | str) -> SnapshotIdentity:
        """Reads a whole snapshot and changes nothing; returns which it is.

        Raises:
          SnapshotNotFoundError, BankIdentityError: As `read`.
          SnapshotCorruptError: It is damaged; the message names the file or column.
        """
        content = self.read(snapshot)
        for table in content.tables:
            for _ in table.blocks():
                pass
        return content.identity

    def delete(self, uuid: str) -> None:
        """Removes a snapshot, damaged ones too, and gives its space back.

        Raises:
          SnapshotNotFoundError, BankIdentityError: As `read`; nothing was removed.
        """
        with self._lock:
            try:
                uuid = self.read(uuid).identity.uuid
            except SnapshotCorruptError as error:
                _logger.warning("deleting a damaged snapshot: %s", error)
            _remove(self._directory / uuid)

    def retain(self, max_snapshots: int, *, keep: Collection[str] = ()) -> None:
        """Removes all but the newest `max_snapshots` and those whose UUID is in `keep`.

        The last state stays in any case, whatever the clock was: a journal goes on from there.
        """
        if max_snapshots < 1:
            raise InvalidInputError(f"max_snapshots={max_snapshots}: allowed is 1 and more")
        last = self.last()
        for old in self.list()[:-max_snapshots]:
            if old.uuid not in keep and old != last:
                self.delete(old.uuid)

    def last(self) -> SnapshotIdentity | None:
        """Returns the readable snapshot of the last state, which a server starts from."""
        listed = self.list()
        return listed[-1] if listed else None

    def damaged(self) -> builtins.list[str]:
        """Returns the UUIDs of the snapshots whose manifests cannot be read."""
        readable = {one.uuid for one in self.list()}
        return sorted(set(self._uuids()) - readable)

    def disk_bytes(self, uuid: str) -> int:
        """Returns the bytes that a snapshot takes on disk."""
        return disk_bytes(self._directory / uuid)

    def remove_orphans(self) -> None:
        """Removes what crashes have left; `write` does so first."""
        with self._lock:
            self._remove_orphans()

    def _remove_orphans(self) -> None:
        for uuid in self._uuids(complete=False):
            _logger.warning("removing half-written snapshot %s", self._directory / uuid)
            _remove(self._directory / uuid)

    def _uuids(self, *, complete: bool = True) -> builtins.list[str]:
        if not self._directory.exists():
            return []
        return [
            one.name
            for one in self._directory.iterdir()
            # A link leads out of the directory, where nothing is this store's to remove.
            if _UUID.fullmatch(one.name)
            and not one.is_symlink()
            and (one / _MANIFEST).exists() == complete
        ]

    def _load(self, uuid: str) -> SnapshotContent:
        directory = self._directory / uuid
        content = _from_json(directory / _MANIFEST, database_url=_database_url(directory))
        self._check_bank(content.identity)
        if (content.identity.uuid, content.shard_index) != (uuid, self._shard_index):
            raise SnapshotCorruptError(
                f"{directory} holds snapshot {content.identity.uuid} of shard "
                f"{content.shard_index}: it was put in the wrong place"
            )
        return content

    def _check_bank(self, identity: SnapshotIdentity) -> None:
        if identity.bank_id != self._bank_id:
            raise BankIdentityError(
                f"snapshot {identity.label!r} ({identity.uuid}) is of bank {identity.bank_id}; "
                f"this is bank {self._bank_id}"
            )

    def _check_new(self, identity: SnapshotIdentity) -> None:
        self._check_bank(identity)
        if not _UUID.fullmatch(identity.uuid):
            raise InvalidInputError(f"uuid={identity.uuid!r}: it has 32 digits of 0-9 and a-f")
        if identity.uuid in self._uuids():
            raise InvalidInputError(f"uuid={identity.uuid!r}: there is such a snapshot already")


def _database_url(directory: Path) -> str:
    return f"{directory.as_uri()}/arrays/"


def _to_json(content: SnapshotContent) -> str:
    state = {
        "identity": asdict(content.identity),
        "shard_index": content.shard_index,
        "clocks": dict(content.clocks),
        "sequence": content.sequence,
        "tables": [table.to_dict() for table in content.tables],
        "clients": dict(content.clients),
    }
    return json.dumps(
        {"format_version": FORMAT_VERSION, "crc32": _checksum(state), "snapshot": state}
    )


def _from_json(path: Path, *, database_url: str) -> SnapshotContent:
    try:
        manifest = json.loads(path.read_bytes())
        version, state = manifest["format_version"], manifest["snapshot"]
        if version not in _READABLE_VERSIONS:
            raise SnapshotCorruptError(
                f"{path} has format version {version}; this program reads {FORMAT_VERSION}"
            )
        if manifest["crc32"] != _checksum(state):
            raise SnapshotCorruptError(f"{path} does not have its checksum {manifest['crc32']}")
        tables = [TableContent.from_dict(one, database_url=database_url) for one in state["tables"]]
        return SnapshotContent(
            **{**state, "identity": SnapshotIdentity(**state["identity"]), "tables": tables}
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotCorruptError(f"{path} is no manifest: {error!r}") from error


def _checksum(state: Any) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _remove(directory: Path) -> None:
    """Removes a snapshot; its manifest first, so that it is never listed without its arrays."""
    (directory / _MANIFEST).unlink(missing_ok=True)
    sync(directory)
    shutil.rmtree(directory)
