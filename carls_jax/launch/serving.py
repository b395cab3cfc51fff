"""`run_bank`: what a bank server's process does. It imports no JAX, so that it starts fast."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from carls_jax.bank import Bank, BankServer, LocalBank
from carls_jax.bank.durability import MAX_JOURNAL_BYTES
from carls_jax.bank.incarnation import JournalMode
from carls_jax.errors import AddressInUseError, ConfigError, NotFoundError
from carls_jax.launch.addresses import publish, resolve, withdraw
from carls_jax.launch.securing import Security, Shown, published, token_of
from carls_jax.launch.stopping import CALLS_S, STOP_S, close_in_time, stopped_by_signals
from carls_jax.metrics import MetricsWriter

_STATS_EVERY_S = 1.0
# With several threads, the default of 5 ms lets a busy one hold up the answer to a client.
_SWITCH_INTERVAL_S = 1e-4


@dataclass(frozen=True)
class ServerConfig:
    """Says which bank, or shard of one, a server's process holds, and where it is found.

    Attributes:
      root: Directory of the snapshots and the journal.
      address: Where to listen; port 0 is a free one.
      workdir: Directory of a run, where the address is published and metrics are written. None:
        the server is for no run in particular.
      shard_index: Which shard this is, from 0.
      num_shards: How many there are.
      bank_id: Identifier of the bank, the same for all its shards. None, for a bank of one shard:
        the one kept in `root`, or a new one.
      journal: What changes outlast that no snapshot holds yet, see `LocalBank`.
      max_journal_bytes: When the journal is longer, a snapshot is taken.
      max_rows_per_s: What each client may read and write, see `BankServer`.
      security: Who may use the bank, at a TCP port.

    Raises:
      ConfigError: There is no such shard, or one of several has no `bank_id`, or a unix socket
        would be secured.
    """

    root: Path
    address: str
    workdir: Path | None = None
    shard_index: int = 0
    num_shards: int = 1
    bank_id: str | None = None
    journal: JournalMode = "process"
    max_journal_bytes: int = MAX_JOURNAL_BYTES
    max_rows_per_s: float | None = None
    security: Security = field(default_factory=Security)

    def __post_init__(self) -> None:
        self.security.check(self.address)
        if not 0 <= self.shard_index < self.num_shards:
            raise ConfigError(
                f"shard={self.shard_index}/{self.num_shards}: the first is 0, the last "
                f"{self.num_shards - 1}"
            )
        if self.num_shards > 1 and self.bank_id is None:
            raise ConfigError("a bank of several shards needs a bank_id, the same for all of them")


def address_name(shard_index: int) -> str:
    """Returns the name under which a shard's server publishes its address in a workdir."""
    return f"bank-{shard_index}"


def root_of(workdir: Path, *, shard_index: int, num_shards: int) -> Path:
    """Returns the directory in a workdir that holds a shard's snapshots."""
    # An inline run has its whole bank at the same place.
    return workdir / ("bank" if num_shards == 1 else f"bank-{shard_index}")


def run_bank(config: ServerConfig) -> None:
    """Serves a bank, or one shard of it, until SIGTERM or SIGINT, and ends `STOP_S` seconds later.

    It goes on from the last change that was kept. At the end calls under way have `CALLS_S` seconds
    while others find no server, and a snapshot is taken if anything changed since the last one.

    Raises:
      AddressInUseError: Another server is there.
      InvalidInputError: The address, the token or the certificate cannot be used.
      BankIdentityError: The root belongs to another bank or shard.
      JournalCorruptError, SnapshotCorruptError: What the root holds is damaged.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with ExitStack() as held:
        stop = held.enter_context(stopped_by_signals(within_s=STOP_S))
        bank = _open_bank(config)
        has_journal = config.journal != "off"
        held.callback(close_in_time, bank, config.root, stop, has_journal=has_journal)
        shown = token_of(config.security, config.address, directory=config.workdir or config.root)
        server = _start_server(bank, config, shown)
        held.callback(server.stop, CALLS_S)
        print(f"connect with carls_jax.connect({server.address!r}{shown.hint})", flush=True)
        if config.workdir is None:
            stop.wait()
            return
        name = address_name(config.shard_index)
        held.enter_context(published(config.workdir, shown, shard_index=config.shard_index))
        publish(config.workdir, name, server.address)
        held.callback(withdraw, config.workdir, name)
        metrics = held.enter_context(MetricsWriter(config.workdir / "metrics", name))
        while not stop.wait(_STATS_EVERY_S):
            _write_stats(bank, metrics)
        _write_stats(bank, metrics)


def _open_bank(config: ServerConfig) -> LocalBank:
    return LocalBank(
        config.root,
        bank_id=config.bank_id,
        shard_index=config.shard_index,
        num_shards=config.num_shards,
        journal=config.journal,
        max_journal_bytes=config.max_journal_bytes,
    )


def _start_server(bank: Bank, config: ServerConfig, shown: Shown) -> BankServer:
    security = config.security

    def start(address: str) -> BankServer:
        return BankServer(
            bank,
            address,
            token=shown.token,
            tls=security.tls,
            insecure=security.insecure,
            max_rows_per_s=config.max_rows_per_s,
        )

    earlier = _earlier_address(config)
    if config.address.endswith(":0") and earlier.startswith(config.address[:-1]):
        # This server died and was started again: its clients look for it where it was.
        with suppress(AddressInUseError):
            return start(earlier)
    return start(config.address)


def _earlier_address(config: ServerConfig) -> str:
    if config.workdir is None:
        return ""
    try:
        return resolve(config.workdir, address_name(config.shard_index), timeout_s=0)
    except NotFoundError:
        return ""


def _write_stats(bank: Bank, metrics: MetricsWriter) -> None:
    stats = bank.stats()
    tables = stats.tables.values()
    counts = {
        "rows": sum(table.num_rows for table in tables),
        "changes": stats.sequence,
        "rows_looked_up": sum(table.counters.get("rows_looked_up", 0) for table in tables),
        "megabytes": sum(table.num_bytes for table in tables) / 1e6,
    }
    metrics.write(max(stats.clocks.values(), default=0), counts)
