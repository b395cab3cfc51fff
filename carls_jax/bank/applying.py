"""What each kind of change does to a table.

`prepare` checks a change against the table and finds its rows; it alters no row and raises if the
change cannot be applied. The function that it returns applies the change and cannot fail. Between
the two the change gets its number, so whatever has a number was applied. Neither reads a clock nor
draws a random number. Both run under the table's `writer` lock, on arrays that nobody else holds.
`check` is `prepare` without making room for new rows, which a limited table makes in its own way.

n is the number of different keys, without padding, and m that of keys as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bank import flushing
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.blending import blended, check_blend
from carls_jax.bank.changes import NO_KEYS, Change, Keys, check_author
from carls_jax.bank.columns import Slots
from carls_jax.bank.gathering import gather
from carls_jax.bank.interface import Applied
from carls_jax.bank.pushers import pusher
from carls_jax.bank.repeats import Distinct, Places, distinct
from carls_jax.bank.table_shard import TableShard
from carls_jax.bank.values import check_gradients, check_keys, check_values
from carls_jax.errors import InvalidInputError

# By reason, what counts the rows that an eviction removed.
EVICTED = {"limit": "rows_evicted", "expired": "rows_expired"}

Values = Mapping[str, NDArray[Any]]
Commit = Callable[[], Applied]  # `sequence` is filled in by the shard


@dataclass(frozen=True)
class Checked:
    """Holds what was found when a change was checked.

    Attributes:
      commit: Applies the change; cannot fail once there is room for the new rows.
      new_keys: int64 `[k]`, of the rows that it adds.
      slots: intp `[n]`, of the rows that it writes; -1 where there is none, until it was applied.
    """

    commit: Commit
    new_keys: Keys = field(default_factory=lambda: NO_KEYS)
    slots: Slots = field(default_factory=lambda: np.empty(0, np.intp))


def prepare(table: TableShard, change: Change) -> Commit:
    """Checks a change to a table and returns what applies it.

    Raises:
      InvalidInputError: The change cannot be applied; the message says why.
      BankFullError: The table has no room for the new rows.
      BankOverloadedError: The table knows too many sources or clocks.
    """
    checked = check(table, change)
    table.make_room(checked.new_keys, source=change.header.author.source)
    return checked.commit


def check(table: TableShard, change: Change) -> Checked:
    """Checks a change to a table, as `prepare` does, but not whether there is room for new rows."""
    if change.kind not in _CHECK:
        raise InvalidInputError(f"kind={change.kind!r}: allowed are {', '.join(_CHECK)}")
    check_keys(change.keys)
    by = change.header.author
    check_author(by)
    if table.spec.per_source and not by.source:
        raise InvalidInputError(
            f"source='': table {table.spec.name!r} is per_source; name the writer"
        )
    table.sources.check_room(by.source, kind="source")
    table.clocks.check_room(by.clock, kind="clock")
    return _CHECK[change.kind](table, change)


def _check_create_rows(table: TableShard, change: Change) -> Checked:
    keys, by = distinct(change.keys).keys, change.header.author
    slots = table.find(keys, source=by.source)
    is_new = slots < 0
    new_keys = keys[is_new]

    def commit() -> Applied:
        table.counts.add({"create_rows_calls": 1})
        slots[is_new] = table.create(new_keys, by=by)
        return Applied(0, num_created=new_keys.size)

    return Checked(commit, new_keys, slots)


def _check_update(table: TableShard, change: Change) -> Checked:
    check_values(table.spec, change.values, num_keys=change.keys.size)
    check_blend(table.spec, change.values, change.header.update.blend)
    guarded = _guarded(table, change)
    by = change.header.author
    once = distinct(change.keys)
    keys, values = once.keys, change.values
    if keys is not change.keys:
        values = {name: value[once.lasts] for name, value in values.items()}
    slots = table.find(keys, source=by.source)
    missing = slots < 0

    def commit() -> Applied:
        table.counts.add({"update_calls": 1, "rows_updated": keys.size})
        table.rows_written.add({by.source: keys.size})
        flushing.flush(table, values, slots[~missing], updated_at=by.updated_at)
        num_kept = 0
        for part in table.slices(keys.size):
            rows = {name: value[part] for name, value in values.items()}
            num_kept += _overwrite(table, change, guarded, keys[part], slots[part], rows)
        return Applied(0, num_created=int(missing.sum()), num_kept=num_kept)

    return Checked(commit, keys[missing], slots)


def _guarded(table: TableShard, change: Change) -> set[str]:
    """Returns the groups in which an update leaves what is newer."""
    update = change.header.update
    if update.if_newer:
        return {table.spec.group_of(name) for name in change.values}
    for name in update.if_newer_fields:
        if name not in change.values:
            raise InvalidInputError(
                f"if_newer={name!r}: the update writes {', '.join(change.values)}"
            )
    return {table.spec.group_of(name) for name in update.if_newer_fields}


def _overwrite(
    table: TableShard, change: Change, guarded: set[str], keys: Keys, slots: Slots, values: Values
) -> int:
    """Writes one slice of rows, creating what is missing; returns how many values were kept."""
    by, num_kept = change.header.author, 0
    missing = slots < 0
    first_values = table.first_values(keys[missing], but=values) if missing.any() else {}
    with table.lock:
        # Placed, written and then entered: nobody finds a row that was only created.
        slots[missing] = table.place(keys[missing], first_values, by=by)
        groups = list(dict.fromkeys(map(table.spec.group_of, values)))
        for chosen, written in _written(table, change, groups, guarded, slots):
            rows = slots[written]
            names = [name for group in chosen for name in table.spec.groups[group]]
            columns = {
                f"value/{name}": _new_values(table, change, name, rows, values[name][written])
                for name in names
            }
            table.write(chosen, rows, columns, by=by)
            num_kept -= len(names) * rows.size
        table.enter(keys[missing], slots[missing], by=by)
    return num_kept + len(values) * slots.size


def _new_values(
    table: TableShard, change: Change, name: str, slots: Slots, given: NDArray[Any]
) -> NDArray[Any]:
    """Returns what is to be stored of a field in rows, to which the update gives `[n, ...]`."""
    blend = change.header.update.blend
    if not blend:
        return given
    present = table.columns[f"value/{name}"].take(slots, axis=0, mode="clip")
    is_written = table.columns[f"version/{table.spec.group_of(name)}"][slots] > 0
    return blended(table.spec.field(name), blend, present, given, is_written)


def _written(
    table: TableShard, change: Change, groups: list[str], guarded: set[str], slots: Slots
) -> Iterator[tuple[list[str], slice | NDArray[np.bool_]]]:
    """Yields groups and the rows in which just these are overwritten, so that each row is once."""
    if not guarded:
        yield groups, slice(None)
        return
    by = change.header.author
    is_written = np.stack(
        [
            ~_is_newer(table, group, slots, by) if group in guarded else np.ones(slots.size, bool)
            for group in groups
        ]
    )
    for chosen in np.unique(is_written, axis=1).T:
        if chosen.any():
            rows = (is_written == chosen[:, None]).all(axis=0)
            yield [group for group, is_one in zip(groups, chosen, strict=True) if is_one], rows


def _is_newer(table: TableShard, group: str, slots: Slots, by: pb.Author) -> NDArray[np.bool_]:
    """Tells, `[n]`, which rows have a higher step on the author's clock than the author."""
    clock = table.clocks.find(by.clock)
    if clock is None:
        return np.zeros(slots.size, np.bool_)
    higher = table.columns[f"step/{group}"][slots] > by.step
    same_clock = table.columns[f"clock/{group}"][slots] == clock
    return np.asarray(higher & same_clock, np.bool_)


def _check_push(table: TableShard, change: Change) -> Checked:
    check_gradients(table.spec, change.values, num_keys=change.keys.size)
    _check_optimizers(table, change)
    by, push = change.header.author, change.header.push
    once = distinct(change.keys)
    slots = table.find(once.keys, source=by.source)
    is_new = slots < 0
    new_keys = once.keys[is_new]

    def commit() -> Applied:
        if push.create:
            slots[is_new] = table.create(new_keys, by=by)
            _descend(table, change, once, slots, once.firsts)
            return Applied(0, num_created=new_keys.size)
        _descend(table, change, once, slots[~is_new], once.firsts[~is_new])
        return Applied(0, unknown_keys=np.sort(new_keys))

    return Checked(commit, new_keys if push.create else NO_KEYS, slots)


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


def _descend(
    table: TableShard, change: Change, once: Distinct, slots: Slots, firsts: Places
) -> None:
    """Applies the fields' optimizers to rows that are there, or gathers for them in lazy fields.

    An overflow must not spoil a row, or what its optimizer remembers, for good: such a row stays as
    it was.
    """
    by = change.header.author
    table.counts.add({"push_calls": 1, "rows_pushed": slots.size})
    table.rows_written.add({by.source: slots.size})
    if not slots.size:
        return
    at_once = dict(change.values)
    for name in table.spec.lazy_fields:
        if at_once.pop(name, None) is not None:
            gather(table, change, name, once, slots, firsts)
    if not at_once:
        return
    move = pusher(table, at_once).begin(
        at_once,
        once,
        is_mean=change.header.push.combine == "mean",
        step=by.step,
        noted={
            "step": by.step,
            "updated_at": by.updated_at,
            "source": table.sources.add(by.source),
            "clock": table.clocks.add(by.clock),
        },
    )
    num_kept = 0
    for part in table.slices(slots.size):
        with table.lock:
            table.keep_before(slots[part])
            is_moved = move(slots[part], firsts[part])
        num_kept += is_moved.size - int(np.count_nonzero(is_moved))
    if num_kept:
        table.counts.add({"rows_overflowed": num_kept})


def _check_delete(table: TableShard, change: Change) -> Checked:
    keys, by = distinct(change.keys).keys, change.header.author
    slots = table.find(keys, source=by.source)
    keys, slots = keys[slots >= 0], slots[slots >= 0]

    def commit() -> Applied:
        table.counts.add({"delete_calls": 1, "rows_deleted": keys.size})
        _remove(table, keys, slots, by)
        return Applied(0, num_deleted=keys.size)

    return Checked(commit)


def _check_evict(table: TableShard, change: Change) -> Checked:
    reason, by = change.header.evict.reason, change.header.author
    if reason not in EVICTED:
        raise InvalidInputError(f"reason={reason!r}: allowed are {', '.join(EVICTED)}")
    keys = distinct(change.keys).keys
    slots = table.find(keys, source=by.source)
    keys, slots = keys[slots >= 0], slots[slots >= 0]

    def commit() -> Applied:
        table.counts.add({EVICTED[reason]: keys.size})
        _remove(table, keys, slots, by)
        return Applied(0, num_evicted=keys.size)

    return Checked(commit)


def _remove(table: TableShard, keys: Keys, slots: Slots, by: pb.Author) -> None:
    for part in table.slices(keys.size):
        with table.lock:
            table.remove(keys[part], slots[part], by=by)


def _check_flush(table: TableShard, change: Change) -> Checked:
    by, fields = change.header.author, change.header.flush.fields
    for name in fields:
        if not table.spec.field(name).lazy:
            raise InvalidInputError(
                f"field {name!r} of table {table.spec.name!r} gathers no gradients: declare it "
                "with Field(lazy=...)"
            )
    slots = table.find(distinct(change.keys).keys, source=by.source)

    def commit() -> Applied:
        table.counts.add({"flush_calls": 1})
        flushing.flush(table, fields, slots[slots >= 0], updated_at=by.updated_at)
        return Applied(0)

    return Checked(commit)


_CHECK: dict[str, Callable[[TableShard, Change], Checked]] = {
    "create_rows": _check_create_rows,
    "update": _check_update,
    "push": _check_push,
    "delete": _check_delete,
    "flush": _check_flush,
    "evict": _check_evict,
}
