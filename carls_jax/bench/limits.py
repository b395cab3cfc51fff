"""What limits cost: calls of tables that evict rows, or let in few, beside one without a limit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from carls_jax.bank import Field, Limit, Table, TableSpec
from carls_jax.bank.optimizers import optimizer
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import Work, in_turns
from carls_jax.bench.report import Report
from carls_jax.bench.rows import VALUE, Draw, Rows, draws, random_rows

UNLIMITED = "no limit"
DELETES = "no limit, deletes as many rows"


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of each table, which is full.
      width: Numbers in a row, float32.
      num_keys: Rows of one call.
      budget_s: Seconds of measuring for each kind of call.
    """

    num_rows: int = 1_000_000
    width: int = 64
    num_keys: int = 8192
    budget_s: float = 15.0

    @property
    def limits(self) -> dict[str, Limit | None]:
        """The limits that are compared."""
        return {
            UNLIMITED: None,
            "least_recent": Limit(max_rows=self.num_rows, evict="least_recent"),
            "lowest_count": Limit(max_rows=self.num_rows, evict="lowest_count"),
            "oldest_step": Limit(max_rows=self.num_rows, evict="oldest_step"),
            "ttl_s": Limit(ttl_s=1e6),
            "admit_after=2": Limit(admit_after=2),
        }


QUICK = Scale(num_rows=1000, num_keys=32, budget_s=0.1)


def run(scale: Scale) -> Report:
    """Measures lookups of and pushes to rows that are there, and pushes to rows that are not."""
    report = Report(
        "limits",
        f"What do limits cost in full tables of {scale.num_rows:,} × {scale.width} float32, in "
        f"calls of {scale.num_keys:,} rows?",
        notes=[
            "One server process, on a unix socket. A table that evicts the least recent is not "
            "read in shared memory: the server must notice each lookup.",
            "New rows: one that evicts makes room first. admit_after=2: keys that nobody saw "
            "before, which are left out.",
        ],
    )
    rows = random_rows(scale.num_rows, scale.width)
    with bank_server() as server, ExitStack() as held:
        tables = {
            name: held.enter_context(
                loaded(server.address, _spec(name, scale, limit), {VALUE: rows})
            )
            for name, limit in scale.limits.items()
        }
        _let_in(tables["admit_after=2"], rows)
        gradients = random_rows(scale.num_keys, scale.width)
        draw = draws(scale.num_rows, scale.num_keys)
        for kind, works in {
            "lookup": {name: _lookup(table, draw) for name, table in tables.items()},
            "push": {name: _push(table, draw, gradients) for name, table in tables.items()},
            "push to new rows": _additions(scale, tables, gradients),
        }.items():
            report.add(kind, in_turns(works, budget_s=scale.budget_s))
    return report


def _spec(name: str, scale: Scale, limit: Limit | None) -> TableSpec:
    adagrad = optimizer("adagrad", learning_rate=0.01)
    name = name.replace(" ", "-").replace("=", "-")
    return TableSpec(name, {VALUE: Field((scale.width,), optimizer=adagrad)}, limit=limit)


def _let_in(table: Table, rows: Rows) -> None:
    """Writes rows until all of them are there."""
    for part in np.array_split(np.arange(len(rows)), 1 + len(rows) // 100_000):
        while not table.lookup(part[:1], metadata=()).found.all():
            table.load(part, {VALUE: rows[part]})


def _lookup(table: Table, draw: Draw) -> Work:
    return lambda number: table.lookup(draw(number), metadata=())


def _push(table: Table, draw: Draw, gradients: Rows) -> Work:
    return lambda number: table.push(draw(number), {VALUE: gradients}, step=number)


def _additions(scale: Scale, tables: Mapping[str, Table], gradients: Rows) -> dict[str, Work]:
    """Returns what pushes to keys that follow one another; of the first table it deletes, too."""
    old = np.random.default_rng(2).permutation(scale.num_rows)

    def push(table: Table, number: int) -> None:
        first = scale.num_rows + number * scale.num_keys
        table.push(np.arange(first, first + scale.num_keys), {VALUE: gradients}, step=number)

    def delete_and_push(number: int) -> None:
        first = number * scale.num_keys % (scale.num_rows - scale.num_keys)
        tables[UNLIMITED].delete(old[first : first + scale.num_keys])
        push(tables[UNLIMITED], number)

    works: dict[str, Work] = {DELETES: delete_and_push}
    limited = {name: table for name, table in tables.items() if name != UNLIMITED}
    return works | {
        name: lambda number, table=table: push(table, number) for name, table in limited.items()
    }
