"""`session`: opens a session with its bank and its makers, all in this process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from carls_jax.bank import TableSpec, connect
from carls_jax.errors import InvalidInputError
from carls_jax.makers import Maker, MakerRunner, Predict
from carls_jax.metrics import MetricsWriter
from carls_jax.training import processes
from carls_jax.training.away import outlast
from carls_jax.training.session import Session, SessionConfig


@contextmanager
def session(
    address: str = "local:",
    *,
    namespace: str | None = None,
    workdir: str | os.PathLike[str] | None = None,
    tables: Sequence[TableSpec] = (),
    makers: Sequence[Maker] = (),
    num_workers: Mapping[str, int] | None = None,
    predict: Predict | None = None,
    data: Any = None,
    seed: int = 0,
    config: SessionConfig | None = None,
) -> Iterator[Session]:
    """Opens a session for a training loop of one's own, with its makers in this process.

    Several processes joined by `jax.distributed` each open one, with the same arguments; the makers
    then run in the first.

    Args:
      address: The bank, as in `connect`. "local:" keeps it in this process.
      namespace: The part of the bank that is the run's, as in `connect`. None: all of it.
      workdir: Directory of the run; a session in it resumes where its last checkpoint was. None: a
        temporary one, removed at the end.
      tables: Tables that are made if they are not there.
      makers: Run one after another at each checkpoint.
      num_workers: Workers by maker; 1 for those not named.
      predict: `predict(variables, inputs)`, which makers call as `ctx.predict`.
      data: What makers find as `ctx.data`.
      seed: Seed of makers' random keys.
      config: How training loop and makers work together.

    Raises:
      InvalidInputError: There are several processes, and the bank or the work directory would be of
        one of them alone.
    """
    if jax.process_count() > 1 and (workdir is None or address.startswith("local:")):
        raise InvalidInputError(
            f"address={address!r}, workdir={workdir!r}: {jax.process_count()} processes need a "
            "bank that a server holds, and one directory"
        )
    with ExitStack() as held:
        if workdir is None:
            workdir = held.enter_context(tempfile.TemporaryDirectory(prefix="carls-"))
        directory = Path(workdir)
        if address == "local:":
            address = f"local:{directory / 'bank'}"
        config = config or SessionConfig()
        patience_s = config.when_away.patience_s
        connected = held.enter_context(
            connect(address, source="trainer", namespace=namespace, timeout_s=patience_s)
        )
        bank = held.enter_context(outlast(connected, config.when_away))
        for table in tables:
            bank.table(table)

        def metrics(role: str) -> MetricsWriter:
            return held.enter_context(MetricsWriter(directory / "metrics", role))

        runners = [
            MakerRunner(
                maker,
                bank,
                data=data,
                predict=predict,
                worker=worker,
                num_workers=count,
                seed=seed,
                state_directory=directory / "makers" / f"{maker.name}-{worker}",
                metrics=metrics(f"{maker.name}-{worker}"),
            )
            for maker in (makers if processes.is_first() else ())
            for count in [(num_workers or {}).get(maker.name, 1)]
            for worker in range(count)
        ]
        yield held.enter_context(
            Session(
                bank,
                directory,
                config,
                runners=runners,
                metrics=metrics(f"trainer-{jax.process_index()}"),
            )
        )
