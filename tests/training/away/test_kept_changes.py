from __future__ import annotations

import numpy as np

from carls_jax.bank import changes
from carls_jax.bank.changes import Change
from carls_jax.training.away.kept_changes import KeptChanges


def update(number: int, *, num_rows: int = 10) -> Change:
    """Returns a change of about 2 kB, with 10 rows, that a number tells from others."""
    keys = np.full(num_rows, number)
    return changes.update(
        "t", keys, {"x": np.zeros((num_rows, 23), np.float32)}, by=changes.author()
    )


def numbers(kept: KeptChanges) -> list[int]:
    return [int(kept.take().keys[0]) for _ in range(len(kept))]


def test_changes_come_out_in_order_and_may_be_put_back() -> None:
    kept = KeptChanges(max_bytes=1 << 20)
    for number in (1, 2, 3):
        kept.append(update(number))
    first = kept.take()
    kept.append(update(4))
    kept.put_back(first)
    assert numbers(kept) == [1, 2, 3, 4]
    assert (kept.num_kept, kept.num_dropped, kept.rows_dropped) == (4, 0, 0)


def test_the_oldest_are_dropped_and_counted() -> None:
    kept = KeptChanges(max_bytes=5000)  # of two
    for number in range(5):
        kept.append(update(number))
    assert (kept.num_kept, kept.num_dropped, kept.rows_dropped) == (5, 3, 30)
    taken = kept.take()
    kept.append(update(5))
    kept.put_back(taken)  # is the oldest again
    assert numbers(kept) == [4, 5]
    assert (kept.num_kept, kept.num_dropped, kept.rows_dropped) == (6, 4, 40)


def test_nothing_may_be_kept_at_all() -> None:
    kept = KeptChanges(max_bytes=0)
    kept.append(update(1))
    assert (len(kept), kept.num_dropped) == (0, 1)


def test_all_can_be_dropped() -> None:
    kept = KeptChanges(max_bytes=1 << 20)
    kept.append(update(1))
    kept.append(update(2, num_rows=3))
    kept.drop_all()
    assert (len(kept), kept.num_dropped, kept.rows_dropped) == (0, 2, 13)
