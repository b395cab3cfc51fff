"""`Difference`: in what two snapshots differ, and how that is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Change:
    """Tells in what a column differs.

    Attributes:
      num_rows: Rows that differ.
      largest: The largest absolute difference of two numbers; NaN: there are only differences to
        NaN or infinity. None: the column holds no numbers to be subtracted.
    """

    num_rows: int
    largest: float | None


@dataclass(frozen=True)
class TableDifference:
    """Tells in what a table differs.

    Attributes:
      only_in_a, only_in_b: Rows that only one side has.
      columns_only_in_a, columns_only_in_b: Columns that only one side has.
      num_changed: Rows that both have and that differ in some column.
      columns: The columns in which rows differ.
    """

    only_in_a: int
    only_in_b: int
    columns_only_in_a: tuple[str, ...]
    columns_only_in_b: tuple[str, ...]
    num_changed: int
    columns: Mapping[str, Change]

    def __bool__(self) -> bool:
        counts = (self.only_in_a, self.only_in_b, self.num_changed)
        return any(counts) or bool(self.columns_only_in_a or self.columns_only_in_b)


@dataclass(frozen=True)
class Difference:
    """Tells in what two snapshots differ; false if in nothing.

    Attributes:
      tables_only_in_a, tables_only_in_b: Tables that only one side has.
      tables: The tables that differ.
      clocks: Steps of the clocks that differ, in A and in B; None: the side does not have it.
    """

    tables_only_in_a: tuple[str, ...] = ()
    tables_only_in_b: tuple[str, ...] = ()
    tables: Mapping[str, TableDifference] = field(default_factory=dict)
    clocks: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tables_only_in_a or self.tables_only_in_b or self.tables or self.clocks)


def describe(difference: Difference, a: str, b: str) -> str:
    """Returns, in words, in what two snapshots differ; A and B are their titles."""
    lines = [f"A is {a}", f"B is {b}"]
    lines += [f"table {name} is only in A" for name in difference.tables_only_in_a]
    lines += [f"table {name} is only in B" for name in difference.tables_only_in_b]
    for name, (in_a, in_b) in difference.clocks.items():
        lines.append(f"clock {name}: {_step(in_a)} in A, {_step(in_b)} in B")
    for name, table in difference.tables.items():
        lines.append(
            f"table {name}: {table.only_in_a} rows only in A, {table.only_in_b} only in B, "
            f"{table.num_changed} changed"
        )
        lines += [f"  {line}" for line in _columns(table)]
    return "\n".join(lines)


def _step(step: int | None) -> str:
    return "none" if step is None else str(step)


def _columns(table: TableDifference) -> Iterator[str]:
    for name in table.columns_only_in_a:
        yield f"{name} is only in A"
    for name in table.columns_only_in_b:
        yield f"{name} is only in B"
    for name, change in table.columns.items():
        largest = "" if change.largest is None else f", largest difference {change.largest:.6g}"
        yield f"{name}: {change.num_rows} rows{largest}"
