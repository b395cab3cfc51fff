"""`explain`: who wrote a row, when, and from which step."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from carls_jax.bank import Bank, Rows, Table, Written
from carls_jax.bank.changes import DEFAULT_CLOCK
from carls_jax.bank.rows import METADATA
from carls_jax.errors import InvalidInputError, KeyNotFoundError

_MAX_SHOWN = 8


def explain(bank: Bank, table_name: str, key: str) -> str:
    """Returns, in words, who wrote each field of a row, when, and from which step.

    Of a field with history, the writes before are told too, newest first; of a per-source table,
    what each author wrote.

    Args:
      bank: The bank.
      table_name: Name of the table.
      key: The row's key, as text, whatever kind of keys the table has.

    Raises:
      TableNotFoundError: No such table; the message lists those that exist.
      KeyNotFoundError: The table has no such row.
      InvalidInputError: `key` is not of the table's kind.
    """
    table = bank.table(table_name)
    keys = [key] if table.spec.keys == "str" else [_int(key)]
    rows = table.lookup(keys, metadata=METADATA)
    authors = rows.sources if table.spec.per_source else ("",)
    lines = [f"row {key} of table {table_name!r}"]
    for index, author in enumerate(authors):
        place = (0, index) if table.spec.per_source else (0,)
        if rows.found[place]:
            lines += [f"  by {author}:"] if author else []
            for name in table.spec.fields:
                last = _last_written(rows, name, place)
                lines.append(f"  {name} = {_told(last)}")
                lines += [
                    f"    was {_told(one)}"
                    for one in _history(table, keys, name, source=author)
                    if one.version != last.version
                ]
    if len(lines) == 1:
        raise KeyNotFoundError(f"table {table_name!r} has no row {key}; it has {len(table)} rows")
    return "\n".join(lines)


def _int(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise InvalidInputError(f"key={key!r}: the table has integer keys") from None


def _last_written(rows: Rows, name: str, place: tuple[int, ...]) -> Written:
    return Written(
        version=int(rows.version[name][place]),
        step=int(rows.step[name][place]),
        updated_at=float(rows.updated_at[name][place]),
        source=str(rows.source[name][place]),
        clock=str(rows.clock[name][place]),
        value=rows[name][place],
    )


def _history(table: Table, keys: list[Any], name: str, *, source: str) -> list[Written]:
    """Returns the writes of a field that are still known, newest first."""
    if not table.spec.field(name).history:
        return []
    (written,) = table.history(keys, name, source=source)
    return written


def _told(written: Written) -> str:
    if not written.version:
        return f"{_shown(written.value)}  (initial value, never written)"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written.updated_at))
    step = "no step" if written.step < 0 else f"step {written.step}"
    step += "" if written.clock == DEFAULT_CLOCK else f" of clock {written.clock!r}"
    author = written.source or "somebody without a name"
    return f"{_shown(written.value)}  (version {written.version} by {author} from {step}, {when})"


def _shown(value: np.ndarray) -> str:
    flat = np.ravel(value)
    if np.ndim(value) == 0:
        return _number(flat[0], smallest=0)
    smallest = 1e-4 * np.abs(flat).max()
    words = [_number(number, smallest=smallest) for number in flat[:_MAX_SHOWN]]
    text = " ".join(words) + (" …" if flat.size > _MAX_SHOWN else "")
    # A distribution over classes is read by its peak.
    is_distribution = (
        flat.dtype.kind == "f"
        and flat.size > 2
        and flat.min() >= 0
        and np.isclose(flat.sum(), 1, atol=1e-3)
    )
    return f"[{text}]" + (f" peak at {int(flat.argmax())}" if is_distribution else "")


def _number(number: np.generic, *, smallest: float) -> str:
    """Writes a number; a float far below the others of its value is as good as 0."""
    if number.dtype.kind != "f":
        return str(number)
    return f"{number:.4g}" if abs(number) >= smallest else "0"  # type: ignore[arg-type]
