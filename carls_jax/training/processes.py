"""Several processes that run one training loop together, joined by `jax.distributed`.

Each has a part of the batch, of the knowledge and of what is written. What must happen once, such
as a snapshot, the first process does. In a run of one process nothing here waits for anybody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Tells whether this process does what must happen once."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Waits until all processes have come to the same place, which has a name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def in_turns(act: Callable[[], None], where: str) -> None:
    """Lets all processes, once they have come to the same place, act one after another."""
    wait_for_all(where)
    for turn in range(jax.process_count()):
        if turn == jax.process_index():
            act()
        wait_for_all(f"{where}, {turn}")


def gathered(value: Any) -> list[Any]:
    """Returns what each process gave, by process; JSON."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(text.size)).ravel()
    padded = np.pad(text, (0, int(sizes.max()) - text.size))
    texts = multihost_utils.process_allgather(padded)
    return [
        json.loads(np.asarray(one)[:size].tobytes()) for one, size in zip(texts, sizes, strict=True)
    ]
