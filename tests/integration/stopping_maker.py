"""A maker's process that writes again and again all rows of a table: each time another number.

    python stopping_maker.py ADDRESS CHECKPOINTS

It says so on standard output when it begins to write.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np

from carls_jax.bank import Field, TableSpec, connect
from carls_jax.checkpoints import CheckpointWatcher
from carls_jax.makers import MakerLoop, MakerRunner, asynchronous, maker

NUM_ROWS = 10_000
MADE = TableSpec("made", {"number": Field((64,))})  # an update is about 2.5 MB


@maker(writes={"made": "number"})
def write_all(ctx):
    keys, number = np.arange(NUM_ROWS), 0
    while True:
        number += 1
        print("writing", flush=True)
        yield keys, {"number": np.full((NUM_ROWS, 64), number, np.float32)}


if __name__ == "__main__":
    with connect(sys.argv[1], source="write_all/0") as bank:
        MakerLoop(
            MakerRunner(write_all, bank),
            CheckpointWatcher(Path(sys.argv[2])),
            schedule=asynchronous(),
            stop=threading.Event(),
        ).run()
