"""What makers' and trainers' processes do, and how all roles run in one process, inline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from carls_jax import training
from carls_jax.bank import Bank, connect
from carls_jax.bank.remote import DEFAULT_TIMEOUT_S
from carls_jax.checkpoints import CheckpointWatcher
from carls_jax.errors import ConfigError
from carls_jax.launch.addresses import resolve
from carls_jax.launch.atomic_file import replace_text
from carls_jax.launch.experiment import Loaded
from carls_jax.launch.securing import token_file
from carls_jax.launch.serving import address_name
from carls_jax.launch.status import claim
from carls_jax.launch.stopping import stopped_by_signals
from carls_jax.makers import MakerLoop, MakerRunner
from carls_jax.metrics import MetricsWriter
from carls_jax.training.checkpointing import TRAINER

READY_TIMEOUT_S = 60.0


def run_maker(loaded: Loaded, workdir: Path, *, name: str, worker: int) -> None:
    """Runs one worker of a maker until SIGTERM or SIGINT.

    Raises:
      ConfigError: There is no such maker or worker.
      NotFoundError: No bank is served in this workdir.
    """
    maker = loaded.experiment.maker(name)
    num_workers = loaded.num_workers[name]
    if not 0 <= worker < num_workers:
        raise ConfigError(
            f"worker={worker}: maker {name!r} has {num_workers}, counted from 0; "
            f"--config.run.num_workers.{name} says how many"
        )
    earlier = dict(list(loaded.num_workers.items())[: list(loaded.num_workers).index(name)])
    earlier[TRAINER] = 1
    with ExitStack() as held:
        bank = held.enter_context(connect_to(workdir, loaded, source=f"{name}/{worker}"))
        stop = held.enter_context(stopped_by_signals())
        runner = MakerRunner(
            maker,
            bank,
            data=loaded.experiment.data,
            predict=loaded.experiment.predict,
            worker=worker,
            num_workers=num_workers,
            seed=loaded.run.seed,
            state_directory=workdir / "makers" / f"{name}-{worker}",
            metrics=held.enter_context(MetricsWriter(workdir / "metrics", f"{name}-{worker}")),
        )
        print(f"maker {name}/{worker} watches {workdir / 'checkpoints'}", flush=True)
        MakerLoop(
            runner,
            CheckpointWatcher(workdir / "checkpoints"),
            schedule=loaded.run.session.schedule,
            earlier=earlier,
            stop=stop,
        ).run()


def run_trainer(loaded: Loaded, workdir: Path) -> dict[str, Any]:
    """Runs the experiment's training loop and writes what it returns to `workdir/result.json`."""
    with ExitStack() as held:
        # A second trainer would put the bank back under the first one.
        held.enter_context(claim(workdir, "trainer"))
        patience_s = loaded.run.session.when_away.patience_s
        bank = held.enter_context(
            connect_to(workdir, loaded, source="trainer", timeout_s=patience_s)
        )
        metrics = held.enter_context(MetricsWriter(workdir / "metrics", "trainer-0"))
        session = training.Session(
            bank,
            workdir,
            loaded.run.session,
            remote_makers=loaded.num_workers,
            metrics=metrics,
        )
        return train(loaded, held.enter_context(session))


def run_inline(loaded: Loaded, workdir: Path) -> dict[str, Any]:
    """Runs bank, makers and training loop in this process, as `run_trainer` does in several."""
    experiment = loaded.experiment
    with training.session(
        loaded.run.bank.address or "local:",
        namespace=loaded.run.bank.namespace or None,
        workdir=workdir,
        tables=experiment.tables,
        makers=experiment.makers,
        num_workers=loaded.num_workers,
        predict=experiment.predict,
        data=experiment.data,
        seed=loaded.run.seed,
        config=loaded.run.session,
    ) as session:
        return train(loaded, session)


def train(loaded: Loaded, session: training.Session) -> dict[str, Any]:
    """Runs the training loop in a session and keeps its results beside what the bank counted."""
    results = dict(loaded.experiment.train(session) or {})
    session.flush()
    stats = session.bank.stats()
    written: dict[str, int] = {}
    for name in (table.name for table in loaded.experiment.tables):
        for source, rows in stats.tables[name].rows_written.items():
            written[source] = written.get(source, 0) + rows
    results |= {
        "rows_written": written,
        "staleness": session.staleness.summary(),
        "ledger": session.bank.ledger.rows(),
        "snapshot_bank_id": session.bank.identity.bank_id,
        "away": session.absences,
    }
    replace_text(session.workdir / "result.json", json.dumps(results, indent=2) + "\n")
    return results


@contextmanager
def connect_to(
    workdir: Path, loaded: Loaded, *, source: str, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Iterator[Bank]:
    """Connects to the bank of a run, waits for it and makes the tables."""
    print(f"waiting for the bank of {workdir}", flush=True)
    address, token = loaded.run.bank.address, None
    if not address:
        addresses = [
            resolve(workdir, address_name(index), timeout_s=READY_TIMEOUT_S)
            for index in range(loaded.run.num_shards)
        ]
        address, token = ",".join(addresses), token_file(workdir)
    namespace = loaded.run.bank.namespace or None
    with connect(
        address, source=source, timeout_s=timeout_s, namespace=namespace, token_file=token
    ) as bank:
        bank.wait_ready(READY_TIMEOUT_S)
        for table in loaded.experiment.tables:
            bank.table(table)
        yield bank
