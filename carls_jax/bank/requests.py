"""Checks what a user asks of a table before it is sent."""

from __future__ import annotations

from collections.abc import Sequence

from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import TableSpec, check_name
from carls_jax.errors import InvalidInputError


def checked_fields(spec: TableSpec, fields: Sequence[str] | None) -> list[str]:
    """Returns the names of the fields to read; None means all.

    Raises:
      FieldNotFoundError: A field does not exist.
      InvalidInputError: There is no name, or a string instead of several.
    """
    if isinstance(fields, str):
        raise InvalidInputError(f"fields={fields!r}: give a tuple of names, ({fields!r},)")
    names = list(spec.fields if fields is None else fields)
    if not names:
        raise InvalidInputError(f"fields=(): name at least one of {', '.join(spec.fields)}")
    for name in names:
        spec.field(name)
    return names


def checked_metadata(names: Sequence[str]) -> list[str]:
    """Returns the kinds of metadata to read; raises InvalidInputError for another kind."""
    if isinstance(names, str):
        raise InvalidInputError(f"metadata={names!r}: give a tuple of names, ({names!r},)")
    for name in names:
        if name not in METADATA:
            raise InvalidInputError(f"metadata={tuple(names)!r}: allowed are {', '.join(METADATA)}")
    return list(names)


def checked_steps(value: int | None, *, argument: str) -> int | None:
    """Returns a number of steps, or None; raises InvalidInputError for a negative one."""
    try:
        is_wrong = value is not None and (value is True or int(value) != value or value < 0)
    except (TypeError, ValueError):
        is_wrong = True
    if is_wrong:
        raise InvalidInputError(f"{argument}={value!r}: allowed are integers from 0")
    return None if value is None else int(value)


def checked_sources(spec: TableSpec, sources: Sequence[str] | str | None, *, me: str) -> list[str]:
    """Returns the authors to read in a per-source table, as the wire names them.

    Raises:
      InvalidInputError: The table has no authors, or a name is not one.
    """
    if not spec.per_source:
        if sources is not None:
            raise InvalidInputError(f"sources={sources!r}: table {spec.name!r} is not per_source")
        return []
    if sources is None or sources == "*":
        return ["*"]
    if sources == "!me":
        if not me:
            raise InvalidInputError("sources='!me': connect with source=... to be somebody")
        return [f"!{me}"]
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise InvalidInputError("sources=(): name at least one source, or '*' for all")
    for name in names:
        check_name(name, argument="sources")
    return names
