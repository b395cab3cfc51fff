"""How far the makers are, told through a table of the bank.

The table is in the bank's snapshots like any other, so what it tells is put back with the rows that
it tells of.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from carls_jax.bank import Bank, Field, Table, TableSpec
from carls_jax.errors import BankError, BankTimeoutError
from carls_jax.keys import string_keys

PROGRESS = TableSpec(
    "carls.makers",
    keys="str",
    fields={
        "done_step": Field(dtype="int64", group="progress"),
        "incarnation": Field(dtype="int64", group="progress"),
        "rows_written": Field(dtype="int64", group="progress"),
        "lag_steps": Field(dtype="int64", group="progress"),
        "seconds": Field(dtype="float64", group="progress"),
    },
)
"""One row per worker, `<maker>/<worker>`: `done_step` is the newest checkpoint it has dealt with,
`incarnation` a fingerprint of the bank's when it began; the others are of its last refresh. Others
that makers wait for may tell their progress here too, such as a trainer that resumes."""

WAIT_S = 1.0
"""How long a wait may last before whoever waits looks around."""

_POLL_S = 0.02


def incarnation_of(bank: Bank) -> int:
    """Returns the fingerprint of the bank's incarnation that a worker tells with its progress."""
    return int(string_keys([bank.identity.incarnation])[0])


def tell(
    bank: Bank,
    source: str,
    *,
    done_step: int,
    incarnation: int,
    numbers: Mapping[str, float] | None = None,
) -> None:
    """Tells that a worker has dealt with a checkpoint.

    Args:
      source: The worker.
      done_step: The checkpoint.
      incarnation: Of the bank, before the worker wrote its first row.
      numbers: The fields of `PROGRESS` that describe the refresh; None: there was nothing to do.
    """
    told = {"rows_written": 0, "lag_steps": 0, "seconds": 0.0, **(numbers or {})}
    values = {**told, "done_step": done_step, "incarnation": incarnation}
    _table(bank).update(
        [source], {name: [value] for name, value in values.items()}, step=done_step, source=source
    )


def done_step(bank: Bank, source: str) -> int:
    """Returns the newest checkpoint that a worker has dealt with; -1: none.

    What was told in an earlier incarnation of the bank does not count: rows of then may be lost.
    """
    return _done_steps(_table(bank), [source])[0]


def has_ever_told(bank: Bank, source: str) -> bool:
    """Says whether a worker has dealt with any checkpoint, in whatever incarnation of the bank."""
    return bool(_table(bank).lookup([source], fields=("done_step",)).found[0])


def wait(
    bank: Bank,
    makers: Mapping[str, int],
    *,
    step: int,
    timeout_s: float,
    stop: threading.Event | None = None,
) -> list[str]:
    """Waits for workers to have dealt with a checkpoint; returns those that then have not.

    Args:
      makers: Number of workers by maker.
      step: The checkpoint.
      timeout_s: Seconds to wait; 0 looks once.
      stop: Ends the wait when it is set.
    """
    sources = [f"{name}/{worker}" for name, count in makers.items() for worker in range(count)]
    if not sources:
        return []
    table, deadline = _table(bank), time.monotonic() + timeout_s
    stop = stop or threading.Event()
    while True:
        done = zip(sources, _done_steps(table, sources), strict=True)
        late = [source for source, done_step in done if done_step < step]
        if not late or time.monotonic() >= deadline or stop.wait(_POLL_S):
            return late


def wait_until_done(bank: Bank, makers: Mapping[str, int], *, step: int, timeout_s: float) -> None:
    """Waits until every worker has dealt with a checkpoint; `makers` is their number by maker.

    Raises:
      BankTimeoutError: After `timeout_s` seconds some have not; the message names them.
      BankError: The bank was put back to an earlier state meanwhile.
    """
    deadline = time.monotonic() + timeout_s
    _table(bank)
    began = incarnation_of(bank)
    while late := wait(bank, makers, step=step, timeout_s=min(WAIT_S, deadline - time.monotonic())):
        if incarnation_of(bank) != began:
            raise BankError(
                f"while makers dealt with checkpoint {step} the bank was put back to an earlier "
                "state: start the trainer again, which resumes from its last checkpoint"
            )
        if time.monotonic() >= deadline:
            raise BankTimeoutError(
                f"after {timeout_s:g} s these makers have not dealt with checkpoint {step}: "
                f"{', '.join(late)}; are they running? See their logs"
            )


def _table(bank: Bank) -> Table:
    # Making the table, though it is there, asks every shard for its present incarnation, and finds
    # out that one is away. A lookup does neither, but takes a third of the time.
    return bank.table(PROGRESS)


def _done_steps(table: Table, sources: Sequence[str]) -> list[int]:
    rows = table.lookup(sources, fields=("done_step", "incarnation"), metadata=())
    counts = rows.found & (rows["incarnation"] == incarnation_of(table.bank))
    return [int(step) for step in np.where(counts, rows["done_step"], -1)]
