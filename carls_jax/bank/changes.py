"""What alters a bank: `Change`, serialisable, and the functions that make each kind.

A change is its wire header (`knowledge_bank.proto`) and its arrays. The same bytes are sent to a
server and can be kept in a journal; applying the same changes in the same order to equal banks
gives equal banks, since a change holds every time, step and name that its application uses.

n is the number of keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.specs import TableSpec, check_name
from carls_jax.errors import CarlsError, InvalidInputError

Keys = NDArray[np.int64]
NO_STEP = -1
DEFAULT_CLOCK = "main"
NO_KEYS: Keys = np.empty(0, np.int64)


@dataclass(frozen=True)
class Change:
    """Holds one change.

    Attributes:
      header: What is done, to which table, by whom.
      keys: int64 `[n]`; -1 is padding.
      values: By field name, `[n, ...]`: new values of an update, gradients of a push.
    """

    header: pb.Change
    keys: Keys = field(default_factory=lambda: NO_KEYS)
    values: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the kind, such as "update"; "None" if the header has none."""
        return str(self.header.WhichOneof("kind"))

    def copy(self, *, updated_at: float) -> Change:
        """Returns a change that nobody else can alter, stamped if its author gave no time."""
        header = pb.Change()
        header.CopyFrom(self.header)
        header.author.updated_at = header.author.updated_at or updated_at
        values = {name: _own(value) for name, value in self.values.items()}
        return Change(header, _own(self.keys), values)


def _own(array: NDArray[Any]) -> NDArray[Any]:
    """Copies an array, unless it is read-only and has memory of its own."""
    flags = array.flags
    if flags.owndata and flags.c_contiguous and not flags.writeable:
        return array
    return np.array(array, order="C")


def author(
    *, step: int = NO_STEP, clock: str = DEFAULT_CLOCK, source: str = "", updated_at: float = 0.0
) -> pb.Author:
    """Says who writes: a job's name, the model step it used and the clock which that step is on.

    Raises:
      InvalidInputError: `step` is not an integer of at least -1, a name is not one, or
        `updated_at` is not a number of seconds since the epoch.
    """
    _check_author(step, clock, source, updated_at)
    return pb.Author(step=int(step), clock=clock, source=source, updated_at=updated_at)


def check_author(by: pb.Author) -> None:
    """Checks who a client says it is; raises InvalidInputError as `author` does."""
    _check_author(by.step, by.clock, by.source, by.updated_at)


def _check_author(step: Any, clock: object, source: object, updated_at: float) -> None:
    is_integer = isinstance(step, int | np.integer) and not isinstance(step, bool)
    if not is_integer or not NO_STEP <= step < 1 << 63:
        raise InvalidInputError(f"step={step!r}: allowed are integers from 0, or -1 for no step")
    check_name(clock, argument="clock")
    if source != "":
        check_name(source, argument="source")
    if not 0.0 <= updated_at < math.inf:
        raise InvalidInputError(f"updated_at={updated_at}: allowed are seconds since the epoch")


def create_table(spec: TableSpec) -> Change:
    """Makes a table."""
    text = json.dumps(spec.to_dict())
    return Change(pb.Change(table=spec.name, create_table=pb.CreateTable(spec_json=text)))


def alter(spec: TableSpec) -> Change:
    """Gives the table of a spec's name that spec."""
    text = json.dumps(spec.to_dict())
    return Change(pb.Change(table=spec.name, alter=pb.Alter(spec_json=text)))


def spec_of(change: Change) -> TableSpec:
    """Returns the spec of a table that a change makes or alters.

    Raises:
      InvalidInputError: The change does not describe a table, or one of another name.
    """
    try:
        spec = TableSpec.from_dict(json.loads(getattr(change.header, change.kind).spec_json))
    except CarlsError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(f"spec_json describes no TableSpec: {error!r}") from error
    if spec.name != change.header.table:
        raise InvalidInputError(
            f"table={change.header.table!r}: the spec is of table {spec.name!r}"
        )
    return spec


def create_rows(table: str, keys: Keys, *, by: pb.Author) -> Change:
    """Gives each key that has no row its initial row."""
    return Change(pb.Change(table=table, author=by, create_rows=pb.CreateRows()), keys)


def update(
    table: str,
    keys: Keys,
    values: Mapping[str, NDArray[np.generic]],
    *,
    by: pb.Author,
    if_newer: bool | Sequence[str] = False,
    blend: float = 0.0,
) -> Change:
    """Overwrites fields, or blends them, creating rows that are not there."""
    some = () if isinstance(if_newer, bool) else if_newer
    kind = pb.Update(if_newer=if_newer is True, if_newer_fields=some, blend=blend)
    return Change(pb.Change(table=table, author=by, update=kind), keys, values)


def push(
    table: str,
    keys: Keys,
    gradients: Mapping[str, NDArray[np.generic]],
    *,
    by: pb.Author,
    combine: Literal["sum", "mean"] = "sum",
    create: bool = True,
) -> Change:
    """Applies gradients by the fields' optimizers."""
    kind = pb.Push(combine=combine, create=create)
    return Change(pb.Change(table=table, author=by, push=kind), keys, gradients)


def delete(table: str, keys: Keys, *, by: pb.Author) -> Change:
    """Removes rows; in a per-source table those of the author's source."""
    return Change(pb.Change(table=table, author=by, delete=pb.Delete()), keys)


def flush(table: str, keys: Keys, fields: Sequence[str], *, by: pb.Author) -> Change:
    """Applies what lazy fields gathered; in a per-source table for rows of the author's source.

    Steps and sources are those of the gathered gradients; of the author the time alone counts.
    """
    return Change(pb.Change(table=table, author=by, flush=pb.Flush(fields=fields)), keys)


def evict(table: str, keys: Keys, *, reason: Literal["limit", "expired"], by: pb.Author) -> Change:
    """Removes rows that the bank chose; in a per-source table those of the author's source."""
    return Change(pb.Change(table=table, author=by, evict=pb.Evict(reason=reason)), keys)


def advance(*, by: pb.Author) -> Change:
    """Tells a clock's step without writing a row."""
    return Change(pb.Change(author=by, advance=pb.Advance()))
