"""Bounds on what a client may ask, whatever else is checked of it.

Those of arrays are in `wire.py`, of keys in `values.py`, of tables in `specs.py`, `shard.py` and
`table_shard.py`; `SECURITY.md` lists all.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message

from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import MAX_FIELDS
from carls_jax.bank.table_shard import MAX_AUTHORS, TableShard
from carls_jax.errors import BankOverloadedError, InvalidInputError

# Of any text and list that has no bound of its own here. Most have a lower one elsewhere.
MAX_LETTERS = 2048
MAX_REPEATS = 4096
# 256 fields, 4 KiB each.
MAX_SPEC_LETTERS = 1 << 20
# Values of one lookup, scan or history. Those of missing rows are zeros, so a short request would
# otherwise fill a machine.
MAX_ANSWER_BYTES = 1 << 32
# Addresses of all tables together. A process has 128 TiB of them, and needs some for itself.
MAX_RESERVED_BYTES = 1 << 46

_LETTERS = {"spec_json": MAX_SPEC_LETTERS}
_REPEATS = {"fields": MAX_FIELDS, "metadata": len(METADATA), "sources": MAX_AUTHORS}


def check_request(message: Message) -> None:
    """Checks how long texts and lists are, of a request and of what is in it.

    Raises:
      InvalidInputError: One is too long.
    """
    for field, value in message.ListFields():
        values = (value,)
        if field.is_repeated:
            allowed = _REPEATS.get(field.name, MAX_REPEATS)
            if len(value) > allowed:
                raise InvalidInputError(f"{len(value)} {field.name}: allowed are {allowed}")
            values = value
        if field.message_type is not None:
            for one in values:
                check_request(one)
        elif field.cpp_type == field.CPPTYPE_STRING:
            _check_texts(field.name, values)


def _check_texts(name: str, texts: Iterable[str]) -> None:
    allowed = _LETTERS.get(name, MAX_LETTERS)
    for text in texts:
        if len(text) > allowed:
            raise InvalidInputError(f"{name}={text[:20]!r}… has {len(text)} letters of {allowed}")


def check_answer(num_rows: int, row_bytes: int, *, what: str) -> None:
    """Raises BankOverloadedError if an answer would be too large to be made."""
    if num_rows * row_bytes > MAX_ANSWER_BYTES:
        raise BankOverloadedError(
            f"{num_rows} {what} of {row_bytes} bytes: allowed are {MAX_ANSWER_BYTES} bytes per "
            "call; ask for fewer"
        )


def check_reserved(tables: Iterable[TableShard]) -> None:
    """Raises BankOverloadedError if tables reserve too many addresses together.

    Args:
      tables: Those that there are, and then a new one.
    """
    *_, new = held = list(tables)
    reserved = sum(part.num_bytes for table in held for part in table.memory.parts.values())
    if reserved > MAX_RESERVED_BYTES:
        raise BankOverloadedError(
            f"table {new.spec.name!r} with max_rows={new.spec.max_rows} is too large: all tables "
            f"would reserve {reserved} bytes of addresses, and {MAX_RESERVED_BYTES} are allowed; "
            "lower max_rows"
        )
