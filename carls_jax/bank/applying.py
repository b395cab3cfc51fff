"""What each kind of change does to a table.

`prepare` checks a change against the table and finds its rows; it alters no row and raises if the
change cannot be applied. The function that it returns applies the change and cannot fail. Between
the two the change gets its number, so whatever has a number was applied. Neither reads a clock nor
draws a random number. Both run under the table's `writer` lock, on arrays that nobody else holds.

n is the number of different keys, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, Keys, check_author
from carls_jax.bank.gradients import combine_gradients
from carls_jax.bank.interface import Applied
from carls_jax.bank.table_shard import Slots, TableShard
from carls_jax.bank.values import check_keys, check_values, finite_rows
from carls_jax.errors import InvalidInputError
from carls_jax.keys import PADDING

Values = Mapping[str, NDArray[Any]]
Commit = Callable[[], Applied]  # `sequence` is filled in by the shard


def prepare(table: TableShard, change: Change) -> Commit:
    """Checks a change to a table and returns what applies it.

    Raises:
      InvalidInputError: The change cannot be applied; the message says why.
      BankFullError: The table has no room for the new rows.
      BankOverloadedError: The table knows too many sources or clocks.
    """
    if change.kind not in _PREPARE:
        raise InvalidInputError(f"kind={change.kind!r}: allowed are {', '.join(_PREPARE)}")
    check_keys(change.keys)
    by = change.header.author
    check_author(by)
    if table.spec.per_source and not by.source:
        raise InvalidInputError(
            f"source='': table {table.spec.name!r} is per_source; name the writer"
        )
    table.sources.check_room(by.source, kind="source")
    table.clocks.check_room(by.clock, kind="clock")
    return _PREPARE[change.kind](table, change)


def _prepare_create_rows(table: TableShard, change: Change) -> Commit:
    keys, by = _different(change.keys), change.header.author
    keys = keys[table.find(keys, source=by.source) < 0]
    table.make_room(keys, source=by.source)

    def commit() -> Applied:
        table.counts.add({"create_rows_calls": 1})
        table.create(keys, by=by)
        return Applied(0, num_created=keys.size)

    return commit


def _prepare_update(table: TableShard, change: Change) -> Commit:
    check_values(table.spec, change.values, num_keys=change.keys.size)
    by = change.header.author
    chosen = _last_of_each(change.keys)
    keys = change.keys[chosen]
    values = {name: value[chosen] for name, value in change.values.items()}
    slots = table.find(keys, source=by.source)
    missing = slots < 0
    table.make_room(keys[missing], source=by.source)

    def commit() -> Applied:
        table.counts.add({"update_calls": 1, "rows_updated": keys.size})
        table.rows_written.add({by.source: keys.size})
        num_kept = 0
        for part in table.slices(keys.size):
            rows = {name: value[part] for name, value in values.items()}
            num_kept += _overwrite(table, change, keys[part], slots[part], rows)
        return Applied(0, num_created=int(missing.sum()), num_kept=num_kept)

    return commit


def _last_of_each(keys: Keys) -> slice | NDArray[np.intp]:
    """Returns the places of all but padding and, of repeated keys, all but the last."""
    ordered = np.sort(keys)
    is_last = np.append(ordered[1:] != ordered[:-1], True) & (ordered != PADDING)
    if is_last.all():
        return slice(None)
    places: NDArray[np.intp] = np.argsort(keys, kind="stable")[is_last]
    return places


def _overwrite(table: TableShard, change: Change, keys: Keys, slots: Slots, values: Values) -> int:
    """Writes one slice of rows, creating what is missing; returns how many values were kept."""
    by, num_kept = change.header.author, 0
    missing = slots < 0
    first_values = table.first_values(keys[missing], but=values) if missing.any() else {}
    with table.lock:
        # Created and written at once: nobody sees a row that was only created.
        slots[missing] = table.add(keys[missing], first_values, by=by)
        for group in dict.fromkeys(map(table.spec.group_of, values)):
            names = table.spec.groups[group]
            written: slice | NDArray[np.bool_] = slice(None)
            if change.header.update.if_newer:
                written = ~_is_newer(table, group, slots, by)
                num_kept += int((~written).sum()) * len(names)
            columns = {f"value/{name}": values[name][written] for name in names}
            table.write(group, slots[written], columns, by=by)
    return num_kept


def _is_newer(table: TableShard, group: str, slots: Slots, by: pb.Author) -> NDArray[np.bool_]:
    """Tells, `[n]`, which rows have a higher step on the author's clock than the author."""
    clock = table.clocks.find(by.clock)
    if clock is None:
        return np.zeros(slots.size, np.bool_)
    higher = table.columns[f"step/{group}"][slots] > by.step
    same_clock = table.columns[f"clock/{group}"][slots] == clock
    return np.asarray(higher & same_clock, np.bool_)


def _prepare_push(table: TableShard, change: Change) -> Commit:
    check_values(table.spec, change.values, num_keys=change.keys.size)
    _check_optimizers(table, change)
    by, push = change.header.author, change.header.push
    keys, gradients = _combined(change)
    slots = table.find(keys, source=by.source)
    is_new = slots < 0
    new_keys = np.sort(keys[is_new])
    if push.create:
        table.make_room(new_keys, source=by.source)

    def commit() -> Applied:
        if push.create:
            slots[is_new] = table.create(keys[is_new], by=by)
            _descend(table, by, slots, gradients)
            return Applied(0, num_created=new_keys.size)
        known = ~is_new if is_new.any() else slice(None)
        _descend(table, by, slots[known], {name: one[known] for name, one in gradients.items()})
        return Applied(0, unknown_keys=new_keys)

    return commit


def _check_optimizers(table: TableShard, change: Change) -> None:
    combine = change.header.push.combine
    if combine not in ("sum", "mean"):
        raise InvalidInputError(f"combine={combine!r}: allowed are 'sum' and 'mean'")
    for name in change.values:
        if name not in table.optimizers:
            raise InvalidInputError(
                f"field {name!r} of table {table.spec.name!r} has no optimizer, so it takes no "
                "gradients: declare it with Field(optimizer=...)"
            )


def _combined(change: Change) -> tuple[Keys, dict[str, NDArray[Any]]]:
    """Returns each key once, without padding, and its combined gradients by field."""
    is_real = change.keys != PADDING
    real = slice(None) if is_real.all() else is_real
    keys, combined = change.keys[real], {}
    # A sum that overflows spoils its own row alone; see `_moved`.
    with np.errstate(over="ignore", invalid="ignore"):
        for name, gradients in change.values.items():
            different, combined[name] = combine_gradients(
                keys, gradients[real], how=change.header.push.combine
            )
    return different, combined


def _descend(table: TableShard, by: pb.Author, slots: Slots, gradients: Values) -> None:
    """Applies the fields' optimizers to rows that are there."""
    table.counts.add({"push_calls": 1, "rows_pushed": slots.size})
    table.rows_written.add({by.source: slots.size})
    groups = dict.fromkeys(map(table.spec.group_of, gradients))
    for part in table.slices(slots.size):
        # Only this thread writes, so rows may be read and worked on while others read them.
        moved = {
            group: _moved(
                table,
                slots[part],
                {name: gradients[name][part] for name in table.spec.groups[group]},
                step=by.step,
            )
            for group in groups
        }
        with table.lock:
            for group, (good_slots, columns) in moved.items():
                table.write(group, good_slots, columns, by=by)


def _moved(
    table: TableShard, slots: Slots, gradients: Values, *, step: int
) -> tuple[Slots, dict[str, NDArray[Any]]]:
    """Computes what a push makes of rows: the slots of those that it moves, and their columns."""
    columns = {}
    for name, gradient in gradients.items():
        optimizer = table.optimizers[name]
        values = _taken(table, f"value/{name}", slots)
        state = {key: _taken(table, f"state/{name}/{key}", slots) for key in optimizer.state_fields}
        optimizer.update(values, gradient, state, step=step)
        columns[f"value/{name}"] = values
        columns |= {f"state/{name}/{key}": rows for key, rows in state.items()}
    if all(np.isfinite(rows).all() for rows in columns.values()):
        return slots, columns
    # An overflow must not spoil a row, or what its optimizer remembers, for good: such a row stays
    # as it was.
    is_good = np.logical_and.reduce([finite_rows(rows) for rows in columns.values()])
    table.counts.add({"rows_overflowed": int((~is_good).sum())})
    return slots[is_good], {name: rows[is_good] for name, rows in columns.items()}


def _taken(table: TableShard, column: str, slots: Slots) -> NDArray[Any]:
    return table.columns[column].take(slots, axis=0, mode="clip")


def _prepare_delete(table: TableShard, change: Change) -> Commit:
    keys, by = _different(change.keys), change.header.author
    slots = table.find(keys, source=by.source)
    keys, slots = keys[slots >= 0], slots[slots >= 0]

    def commit() -> Applied:
        table.counts.add({"delete_calls": 1})
        for part in table.slices(keys.size):
            with table.lock:
                table.remove(keys[part], slots[part], by=by)
        return Applied(0, num_deleted=keys.size)

    return commit


def _different(keys: Keys) -> Keys:
    """Returns each key once, ascending, without padding."""
    ordered = np.sort(keys)  # np.unique takes twenty times as long
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    different: Keys = ordered[is_first & (ordered != PADDING)]
    return different


_PREPARE: dict[str, Callable[[TableShard, Change], Commit]] = {
    "create_rows": _prepare_create_rows,
    "update": _prepare_update,
    "push": _prepare_push,
    "delete": _prepare_delete,
}
