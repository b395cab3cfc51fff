"""What a table is, in words."""

from __future__ import annotations

from collections.abc import Mapping

from carls_jax.bank import Bank, Field
from carls_jax.errors import TableNotFoundError

_DEFAULTS = {"init": Field().init.to_dict(), "history": 0}


def describe_table(bank: Bank, name: str) -> str:
    """Returns, in words, a table's fields, its rows, and what was done to them.

    What was done is counted since the server has the table; nothing of it is in a snapshot.

    Raises:
      TableNotFoundError: No such table; the message lists those that exist.
    """
    tables = bank.stats().tables
    if name not in tables:
        there = ", ".join(sorted(tables)) or "none yet"
        raise TableNotFoundError(f"no table {name!r}; this bank has {there}")
    stats = tables[name]
    spec = stats.spec
    kind = "text" if spec.keys == "str" else "integers"
    rows = "rows of each source" if spec.per_source else "rows"
    width = max(map(len, spec.fields))
    lines = [
        f"table {name}: {stats.num_rows} of at most {spec.max_rows} {rows}, "
        f"{stats.num_bytes / 1e6:.1f} MB; keys are {kind}",
        *(f"  {field:{width}}  {_field(one)}" for field, one in spec.fields.items()),
        *(
            f"  {one} {_shown(value)}"
            for one, value in spec.to_dict().items()
            if _is_told(one, value)
        ),
        *_counts("done", stats.counters),
        *_counts("rows written by", stats.rows_written),
    ]
    return "\n".join(lines)


def _is_told(name: str, value: object) -> bool:
    """Whether a table's property is none that the first line tells, or everyone has."""
    return name not in ("name", "fields", "keys", "per_source", "max_rows") and bool(value)


def _field(field: Field) -> str:
    """Tells a field's type, and whatever of it is not as usual."""
    words = [field.dtype + (f" {list(field.shape)}" if field.shape else "")]
    for name, value in field.to_dict().items():
        if name not in ("shape", "dtype") and value is not None and value != _DEFAULTS.get(name):
            words.append(f"{name} {_shown(value)}")
    return ", ".join(words)


def _shown(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    options = {name: one for name, one in value.items() if name not in ("name", "kind")}
    told = ", ".join(f"{name}={_shown(one)}" for name, one in options.items())
    return f"{value.get('name', value.get('kind', ''))}({told})"


def _counts(what: str, counts: Mapping[str, int]) -> list[str]:
    told = ", ".join(f"{name or '(no name)'} {number}" for name, number in sorted(counts.items()))
    return [f"  {what}: {told}"] if told else []
