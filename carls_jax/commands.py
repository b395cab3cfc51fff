"""What each command of `carls-jax` does with its options; `cli.py` declares them.

All that a command needs is imported when it is run, so that a bank server starts without JAX.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from carls_jax.errors import ConfigError


def launch(options: Namespace) -> int:
    """Runs an experiment, and tells its results and where everything is."""
    from carls_jax.launch.experiment import load
    from carls_jax.launch.inspecting import describe_results
    from carls_jax.launch.running import run_experiment

    outcome = run_experiment(
        load(options.config, options.overrides),
        options.workdir,
        accept_changes=options.accept_changes,
    )
    if outcome.exit_code:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    else:
        print(f"finished in {outcome.duration_s:.0f} s\n{describe_results(options.workdir)}")
    return outcome.exit_code


def bank(options: Namespace) -> int:
    """Serves a bank, or one shard of it."""
    _leave_accelerators()
    from carls_jax.bank import Tls
    from carls_jax.launch.securing import Security
    from carls_jax.launch.serving import ServerConfig, address_name, root_of, run_bank

    index, count = options.shard
    root, address, workdir = options.root, options.address, options.workdir
    if workdir is None and (root is None or address is None):
        raise ConfigError("give --workdir, or else --root and --address")
    files = {"ca": options.tls_client_ca, "cert": options.tls_cert, "key": options.tls_key}
    tls = Tls(**files) if any(files.values()) else None
    run_bank(
        ServerConfig(
            root=root or root_of(workdir, shard_index=index, num_shards=count),
            address=address or f"unix:{workdir / address_name(index)}.sock",
            workdir=workdir,
            shard_index=index,
            num_shards=count,
            bank_id=options.bank_id,
            journal=options.journal,
            max_journal_bytes=options.max_journal_bytes,
            max_rows_per_s=options.max_rows_per_second,
            security=Security(options.token_file, tls, options.insecure),
        )
    )
    return 0


def make(options: Namespace) -> int:
    """Runs one worker of a maker."""
    _leave_accelerators()
    from carls_jax.launch.experiment import load
    from carls_jax.launch.roles import run_maker

    loaded = load(options.config, options.overrides)
    run_maker(loaded, options.workdir, name=options.maker, worker=options.worker)
    return 0


def train(options: Namespace) -> int:
    """Runs the training loop, and tells its results."""
    from carls_jax.launch.experiment import load
    from carls_jax.launch.inspecting import describe_results
    from carls_jax.launch.record import record_run
    from carls_jax.launch.roles import run_trainer

    loaded = load(options.config, options.overrides)
    record_run(loaded, options.workdir, accept_changes=options.accept_changes)
    run_trainer(loaded, options.workdir)
    print(describe_results(options.workdir))
    return 0


def status(options: Namespace) -> int:
    """Tells what a run does."""
    from carls_jax.launch.inspecting import describe_run

    print(describe_run(options.workdir))
    return 0


def explain(options: Namespace) -> int:
    """Tells where a row came from."""
    from carls_jax.bank import connect
    from carls_jax.launch import explaining
    from carls_jax.launch.inspecting import bank_of

    with connect(options.address) if options.address else bank_of(options.workdir) as bank:
        print(explaining.explain(bank, options.table, options.key))
    return 0


def sweep(options: Namespace) -> int:
    """Runs a grid of experiments and prints its table."""
    from carls_jax.launch.sweep import run_sweep

    table = run_sweep(
        options.config, options.workdir, axes=options.axes, overrides=options.overrides
    )
    print(table)
    return 0


def bench(options: Namespace) -> int:
    """Runs a benchmark, prints its table and keeps its figures."""
    from carls_jax.bench.running import run_benchmark

    report = run_benchmark(options.benchmark, is_quick=options.quick)
    print(report.to_markdown(), flush=True)
    if options.plot:
        report.plot(options.plot)
    if not options.json:
        print(report.to_json())
        return 0
    with options.json.open("a", encoding="utf-8") as file:
        file.write(report.to_json() + "\n")
    return 0


def _leave_accelerators() -> None:
    """Leaves TPU and GPU to the trainer; only possible before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
