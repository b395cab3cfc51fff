"""What `lookup`, `update` and `push` share: sizes, and a table that every contestant holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from carls_jax.bank import Field, Table
from carls_jax.bench import redis_peer
from carls_jax.bench.banks import tables_everywhere
from carls_jax.bench.redis_peer import RedisPeer
from carls_jax.bench.report import Report
from carls_jax.bench.rows import VALUE, Keys, Rows, random_rows, table_of


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the table.
      width: Numbers in a row, float32.
      batches: Rows of one call.
      budget_s: Seconds of measuring for each of the batches.
    """

    num_rows: int = 1_000_000
    width: int = 128
    batches: tuple[int, ...] = (256, 1024, 8192)
    budget_s: float = 8.0

    @property
    def in_words(self) -> str:
        """The size of the table."""
        return f"{self.num_rows:,} × {self.width} float32"


QUICK = Scale(num_rows=2000, batches=(16, 64), budget_s=0.1)


@dataclass(frozen=True)
class Contestants:
    """Holds a table, with keys 0, 1, …, in all places that are compared.

    Attributes:
      rows: float32 `[num_rows, width]`, in this process.
      tables: By kind of bank, with the same rows.
      redis: Empty at first; None where Redis is not installed.
    """

    rows: Rows
    tables: Mapping[str, Table]
    redis: RedisPeer | None


@contextmanager
def contestants(
    scale: Scale, field: Field, report: Report, *, redis_width: int
) -> Iterator[Contestants]:
    """Makes the rows and the tables; notes in the report if Redis is missing."""
    rows = random_rows(scale.num_rows, scale.width)
    with (
        tables_everywhere(table_of(field), {VALUE: rows}) as tables,
        redis_peer.redis_peer(width=redis_width) as redis,
    ):
        report.notes.append("On a unix socket rows go through shared memory, over TCP by gRPC.")
        if redis is None:
            report.notes.append(redis_peer.MISSING)
        yield Contestants(rows, tables, redis)


def check_agree(compared: Contestants, keys: Keys) -> None:
    """Makes sure that all have done the same work: that they hold the same rows of keys."""
    expected = compared.rows[keys]
    found = {kind: table.lookup(keys)[VALUE] for kind, table in compared.tables.items()}
    if compared.redis:
        found[redis_peer.NAME] = compared.redis.get_rows(keys)[:, : expected.shape[1]]
    for kind, rows in found.items():
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4, err_msg=kind)
