"""`Fetcher`: carries out a plan's lookups for one batch after another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace

import jax
import numpy as np

from carls_jax.bank import Bank, TableSpec, requests
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import NO_KEYS
from carls_jax.bank.compact import decoded_rows
from carls_jax.bank.values import as_keys
from carls_jax.errors import InvalidInputError
from carls_jax.keys import PADDING
from carls_jax.training.away.last_seen import ALL
from carls_jax.training.held import Found, HeldRows, Keys
from carls_jax.training.knowledge import Fetched, ages_of, known_of
from carls_jax.training.placing import place
from carls_jax.training.plan import Batch, Lookup, Push, Update, name_of


class Fetcher:
    """Looks up what a plan wants for a batch, each row once.

    A key that a batch repeats is looked up once, and a row that was looked up for a batch that is
    still held ahead is not asked for again (see `HeldRows`); rows of per-source tables are, since
    at any moment another author may join. Not for use by several threads at once.

    Args:
      plan: The lookups, by name.
      writes: What is done with a step's outputs, by name.
      bank: Where the rows are.
      depth: How many batches are held ahead, the newest included, and share rows. 1: each lookup
        finds what is in the bank at its moment.
      acknowledged: Returns the number up to which the bank has acknowledged the trainer's writes.
      sharding: Where the knowledge is put. None: the default device.
    """

    def __init__(
        self,
        plan: Mapping[str, Lookup],
        writes: Mapping[str, Update],
        bank: Bank,
        *,
        depth: int = 1,
        acknowledged: Callable[[], int] = lambda: 0,
        sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        self._plan = plan
        self._writes = writes
        self._bank = bank
        self._acknowledged = acknowledged
        self._sharding = sharding
        self._requests = {name: _request(lookup, bank) for name, lookup in plan.items()}
        self._held: dict[Hashable, HeldRows] = defaultdict(lambda: HeldRows(depth))

    def __call__(self, batch: Batch, step: int) -> Fetched:
        """Carries out the lookups of one batch; `step` is the one that will use them.

        Raises:
          InvalidInputError: The batch lacks an entry that holds keys; the message lists what is
            there.
          KeyKindError: Keys are not of their table's kind.
        """
        began_at = time.monotonic()
        as_of = self._acknowledged()
        found: dict[str, Found] = {}
        num_moved = 0
        for name, lookup in self._plan.items():
            keys = _keys(lookup.keys, self._spec(lookup), batch, found)
            found[name], moved = self._find(name, lookup, keys, step=step, as_of=as_of)
            num_moved += moved
        known = {name: known_of(one, now=step) for name, one in found.items()}
        ages = [array for one in found.values() for array in ages_of(one, now=step)]
        return Fetched(
            known=place(known, self._sharding),
            found=found,
            targets={name: self._target(one, batch, found) for name, one in self._writes.items()},
            ages=np.concatenate([np.empty(0, np.int64), *ages]),
            num_found=sum(int(one.mask.sum()) for one in known.values()),
            num_asked=sum(one.mask.size for one in known.values()),
            num_moved=num_moved,
            as_of=min([as_of, *(held.oldest(as_of) for held in self._held.values())]),
            took_s=time.monotonic() - began_at,
        )

    def forget(self) -> None:
        """Lets go of the rows that are held for later batches."""
        self._held.clear()

    def _find(
        self, name: str, lookup: Lookup, keys: Keys, *, step: int, as_of: int
    ) -> tuple[Found, int]:
        """Returns what a lookup finds, and how many rows the bank sent for it."""
        request, last = self._requests[name], lookup.last
        for link in request.links:
            link.now = step
        if self._bank.table(name_of(last.table)).spec.per_source:
            held, held_keys = HeldRows(1), NO_KEYS
        else:
            held = self._held[name_of(last.table), last.fields, last.max_age_steps, last.create]
            held_keys = held.keys(step, max_age_steps=last.max_age_steps)
        followed = self._bank.follow(request, keys.ravel(), held_keys)
        rows = decoded_rows(self._spec(last), followed.rows)
        found = held.complete(replace(followed, rows=rows), step=step, as_of=as_of)
        places = found.places.reshape(keys.shape + found.places.shape[1:])
        num_moved = rows.keys.size
        if found.as_of_step is not None:
            num_moved -= int((found.as_of_step < ALL).sum())
        return replace(found, places=places), num_moved

    def _spec(self, planned: Lookup | Update) -> TableSpec:
        return self._bank.table(name_of(planned.table)).spec

    def _target(self, write: Update, batch: Batch, found: Mapping[str, Found]) -> Keys:
        keys = _keys(write.keys, self._spec(write), batch, found)
        if not isinstance(write, Push) or write.keys not in found:
            return keys
        one = found[write.keys]
        is_found = np.logical_or.reduce(one.rows.found.reshape(one.rows.keys.size, -1), axis=1)
        return np.where(is_found.take(one.places), keys, PADDING)


def _request(lookup: Lookup, bank: Bank) -> pb.Follow:
    """Returns the request for a chain of lookups; `now` is told anew for each batch."""
    links = list(lookup.links)
    return pb.Follow(
        links=[
            requests.lookup(
                bank.table(name_of(link.table)).spec,
                me=bank.source,
                fields=link.fields,
                create=link.create,
                sources=link.sources,
                max_age_steps=link.max_age_steps,
                metadata=("step",) if link is links[-1] else (),
            )
            for link in links
        ]
    )


def _keys(name: str, spec: TableSpec, batch: Batch, found: Mapping[str, Found]) -> Keys:
    """Returns int64 `[B, ...]`, the keys that `name` stands for."""
    if name in found:
        return found[name].keys
    if name not in batch:
        raise InvalidInputError(
            f"keys={name!r}: the batch has {', '.join(map(str, batch))}, and the plan "
            f"{', '.join(found) or 'nothing'} before it"
        )
    keys = np.asarray(batch[name])
    return as_keys(spec, keys.ravel()).reshape(keys.shape)
