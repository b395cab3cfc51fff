"""What knowledge costs a training step: rows looked up ahead, beside rows already on the device."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from carls_jax.bench import encoder, feeds
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import in_turns
from carls_jax.bench.machine import cpu_seconds
from carls_jax.bench.report import Report
from carls_jax.bench.rows import random_rows

LIMIT = "rows on the device"
LOOK_AHEAD = "look-ahead"
NO_LOOK_AHEAD = "looked up before the step"


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the table.
      num_neighbors: Rows that an example needs.
      min_step_ms: The encoder is made so deep that a step takes at least so long.
      block_steps: Steps that are measured together.
      budget_s: Seconds of measuring.
    """

    num_rows: int = 1_000_000
    num_neighbors: int = 16
    min_step_ms: float = 30.0
    block_steps: int = 10
    budget_s: float = 30.0


QUICK = Scale(num_rows=1000, num_neighbors=2, min_step_ms=0.0, block_steps=2, budget_s=0.1)


def run(scale: Scale) -> Report:
    """Measures a training step and the CPU time that it takes, here and in the bank's server."""
    report = Report(
        "pipeline",
        f"What does a step cost whose {encoder.BATCH_SIZE} examples have {scale.num_neighbors} "
        f"neighbours each, rows of {encoder.EMBEDDING_WIDTH} float32 of {scale.num_rows:,}?",
        notes=[
            f"ms per step; each figure is of {scale.block_steps} steps, waited for together.",
            "CPU time is that of all threads of the trainer's process.",
        ],
    )
    size = (scale.num_rows, scale.num_neighbors)
    with ExitStack() as held:
        server = held.enter_context(bank_server())
        rows = {feeds.ROWS: random_rows(scale.num_rows, encoder.EMBEDDING_WIDTH)}
        table = held.enter_context(loaded(server.address, feeds.TABLE, rows))
        params = encoder.params_for(scale.min_step_ms, num_neighbors=scale.num_neighbors)
        loops = {
            what: feeds.Loop(feed, encoder.step, params, block_steps=scale.block_steps)
            for what, feed in {
                LIMIT: feeds.on_device(scale.num_neighbors),
                LOOK_AHEAD: held.enter_context(feeds.looked_ahead(server.address, *size)),
                NO_LOOK_AHEAD: feeds.looked_up(table, *size),
            }.items()
        }
        works = {what: loop.run_block for what, loop in loops.items()}
        server_s = cpu_seconds(server.pid)
        took = in_turns(works, budget_s=scale.budget_s)
        server_s = cpu_seconds(server.pid) - server_s
    num_lookups = sum(loops[what].num_steps for what in (LOOK_AHEAD, NO_LOOK_AHEAD))
    report.add("time", {what: ms / scale.block_steps for what, ms in took.items()})
    report.add("CPU time", {what: loop.cpu_ms for what, loop in loops.items()})
    report.add("CPU time of the server", {"for each lookup": 1e3 * server_s / num_lookups})
    return report
