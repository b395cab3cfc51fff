"""Checks what a user asks of a table, and makes the request for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import DEFAULT_CLOCK, NO_STEP
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import TableSpec, check_name
from carls_jax.errors import InvalidInputError


def lookup(
    spec: TableSpec,
    *,
    me: str,
    fields: Sequence[str] | None = None,
    create: bool = False,
    sources: Sequence[str] | str | None = None,
    max_age_steps: int | None = None,
    now: int | None = None,
    clock: str = DEFAULT_CLOCK,
    metadata: Sequence[str] = ("step",),
) -> pb.Lookup:
    """Returns the request for a lookup; the arguments are those of `Table.lookup`.

    Args:
      spec: What the table is.
      me: The client's name.

    Raises:
      As `Table.lookup`.
    """
    return pb.Lookup(
        table=spec.name,
        fields=checked_fields(spec, fields),
        metadata=checked_metadata(metadata),
        create=create,
        sources=checked_sources(spec, sources, me=me),
        max_age_steps=checked_steps(max_age_steps, argument="max_age_steps"),
        now=checked_steps(now, argument="now"),
        clock=check_name(clock, argument="clock"),
        reader=author(spec, step=NO_STEP, clock=clock, source=me) if create else None,
    )


def author(spec: TableSpec, *, step: int, clock: str, source: str) -> pb.Author:
    """Returns who writes; raises InvalidInputError if a per-source table's author has no name."""
    if spec.per_source and not source:
        raise InvalidInputError(
            f"source='': table {spec.name!r} is per_source; name the writer with source=..., here "
            "or in connect"
        )
    return changes.author(step=step, clock=clock, source=source)


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


def checked_if_newer(names: Collection[str], if_newer: bool | Sequence[str]) -> bool | list[str]:
    """Returns whether an update of some fields leaves what is newer, or the fields where it does.

    Raises:
      InvalidInputError: A field is not among those written, or a string stands for several.
    """
    if isinstance(if_newer, bool):
        return if_newer
    if isinstance(if_newer, str):
        raise InvalidInputError(f"if_newer={if_newer!r}: give True, or a tuple, ({if_newer!r},)")
    for name in if_newer:
        if name not in names:
            raise InvalidInputError(f"if_newer={name!r}: the update writes {', '.join(names)}")
    return list(if_newer)


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
