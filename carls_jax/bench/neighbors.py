"""What more neighbours cost a training step: looked up in the bank, or encoded inside the step."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from carls_jax.bench import encoder, feeds
from carls_jax.bench.banks import bank_server, loaded
from carls_jax.bench.harness import in_turns
from carls_jax.bench.report import Report
from carls_jax.bench.rows import random_rows

BANK = "looked up in the bank"
INSIDE = "encoded in the step"


@dataclass(frozen=True)
class Scale:
    """Says how much is measured.

    Attributes:
      num_rows: Rows of the table.
      num_neighbors: Rows that an example needs, one after another.
      min_step_ms: The encoder is made so deep that a step with the fewest takes at least so long.
      block_steps: Steps that are measured together.
      budget_s: Seconds of measuring for each number of neighbours.
    """

    num_rows: int = 1_000_000
    num_neighbors: tuple[int, ...] = (1, 4, 16, 64)
    min_step_ms: float = 10.0
    block_steps: int = 4
    budget_s: float = 8.0


QUICK = Scale(num_rows=1000, num_neighbors=(1, 2), min_step_ms=0.0, block_steps=2, budget_s=0.1)


def run(scale: Scale) -> Report:
    """Measures a training step whose examples have ever more neighbours."""
    report = Report(
        "neighbors",
        f"What does a step of {encoder.BATCH_SIZE} examples cost with ever more neighbours, rows "
        f"of {encoder.EMBEDDING_WIDTH} float32 of {scale.num_rows:,}?",
        notes=[
            "Neither way sends gradients through the neighbours: encoded in the step they are "
            "fresh, and cost a forward pass.",
            f"ms per step; each figure is of {scale.block_steps} steps, waited for together.",
        ],
    )
    with ExitStack() as held:
        server = held.enter_context(bank_server())
        rows = {feeds.ROWS: random_rows(scale.num_rows, encoder.EMBEDDING_WIDTH)}
        held.enter_context(loaded(server.address, feeds.TABLE, rows))
        params = encoder.params_for(scale.min_step_ms, num_neighbors=min(scale.num_neighbors))
        for count in scale.num_neighbors:
            with feeds.looked_ahead(server.address, scale.num_rows, count) as ahead:
                loops = {
                    BANK: feeds.Loop(ahead, encoder.step, params, block_steps=scale.block_steps),
                    INSIDE: feeds.Loop(
                        feeds.encoded(count),
                        encoder.encoding_step,
                        params,
                        block_steps=scale.block_steps,
                    ),
                }
                works = {what: loop.run_block for what, loop in loops.items()}
                took = in_turns(works, budget_s=scale.budget_s, min_rounds=3)
            report.add(
                f"{count} per example",
                {what: ms / scale.block_steps for what, ms in took.items()},
            )
    return report
