"""How rows and tables show themselves, at a prompt and in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from carls_jax.bank.rows import Rows
    from carls_jax.bank.specs import Field, TableSpec

MAX_ROWS = 10
MAX_NUMBERS = 6


def rows_text(rows: Rows) -> str:
    """Describes rows in one line."""
    fields = ", ".join(
        f"{name} {array.dtype}{list(array.shape)}" for name, array in rows.values.items()
    )
    of = f" of {len(rows.sources)} sources" if rows.found.ndim == 2 else ""
    return f"<Rows {rows.keys.size} keys{of}, {int(rows.found.sum())} found: {fields}>"


def rows_html(rows: Rows) -> str:
    """Shows the first rows as an HTML table: keys, values and, where looked up, steps."""
    steps = rows.metadata.get("step", {})
    titles = ["key", *(["source"] if rows.found.ndim == 2 else [])]
    for name in rows.values:
        titles += [name, f"{name} step"] if name in steps else [name]
    lines = [_line("th", titles)]
    for place in list(np.ndindex(rows.found.shape))[:MAX_ROWS]:
        cells = [str(rows.keys[place[0]]), *(rows.sources[number] for number in place[1:])]
        for name, values in rows.values.items():
            cells.append(value_text(values[place]) if rows.present[name][place] else "—")
            if name in steps:
                cells.append(str(steps[name][place]))
        lines.append(_line("td", cells))
    return f"<p>{escape(rows_text(rows))}</p><table>{''.join(lines)}</table>"


def table_html(spec: TableSpec) -> str:
    """Shows a table's fields as an HTML table."""
    lines = [_line("th", ["field", "shape", "dtype", "initial value", "optimizer", "group"])]
    for name, field in spec.fields.items():
        optimizer = field.optimizer.name if field.optimizer else ""
        described = [str(field.shape), _form(field), str(field.init), optimizer, field.group or ""]
        lines.append(_line("td", [name, *described]))
    title = f"table {spec.name}, {spec.keys} keys{', a row per source' if spec.per_source else ''}"
    return f"<p>{escape(title)}</p><table>{''.join(lines)}</table>"


def value_text(value: NDArray[Any]) -> str:
    """Writes the first numbers of a value."""
    numbers = np.ravel(value)
    words = [f"{number:.4g}" for number in numbers[:MAX_NUMBERS].tolist()]
    text = " ".join(words) + (" …" if numbers.size > MAX_NUMBERS else "")
    return f"[{text}]" if np.ndim(value) else text


def _line(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _form(field: Field) -> str:
    return f"{field.dtype} as {field.compact}" if field.compact else field.dtype
