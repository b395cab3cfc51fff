"""Runs the experiment beside its peers on three seeds, and kills a maker on the way.

    scripts/demo

For each seed: labels alone; scikit-learn's LabelSpreading before training; knowledge computed once;
and knowledge found while training, by a bank, two makers and a trainer in processes of their own.
Results go to `--workdir`: result.json, plots, and a directory for each run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from plots import draw_plots
from rich.console import Console
from rich.table import Table

from carls_jax import metrics
from carls_jax.errors import CarlsError
from carls_jax.launch import LaunchEvent, read_processes
from carls_jax.launch.experiment import Loaded, load
from carls_jax.launch.explaining import explain
from carls_jax.launch.inspecting import bank_of
from carls_jax.launch.running import run_experiment

CONFIG = Path(__file__).with_name("config.py")
KILLED_MAKER = "pseudo_labels"

# What is compared: name, title, and how its config differs.
INLINE = "run.mode=inline"
VARIANTS = {
    "baseline": ("labels alone", [INLINE, "digits.knowledge=none"]),
    "label_spreading": ("LabelSpreading, then train", [INLINE, "digits.knowledge=label_spreading"]),
    "once": ("knowledge computed once", [INLINE, "run.session.schedule.delay=once"]),
    "carls": ("knowledge found while training", []),
}

console = Console()


def main() -> int:
    """Runs the demo and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--num-steps", type=int, help="training steps (default: the config's)")
    options = parser.parse_args()
    if options.workdir.exists():
        shutil.rmtree(options.workdir)  # a demo begins anew; `carls-jax launch` would resume
    options.workdir.mkdir(parents=True)
    metrics.write_run_record(options.workdir, {"file": str(CONFIG), "variants": VARIANTS})
    steps = [f"digits.num_steps={options.num_steps}"] if options.num_steps else []
    began = time.monotonic()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in range(options.seeds):
        for name, (title, changes) in VARIANTS.items():
            console.rule(f"seed {seed}: {title}", align="left")
            loaded = load(CONFIG, [f"run.seed={seed}", *steps, *changes])
            workdir = options.workdir / f"{name}-{seed}"
            is_killed = name == "carls" and seed == options.seeds // 2
            results[name].append(_run(loaded, workdir, kill_a_maker=is_killed))
            console.print(f"test accuracy {results[name][-1]['test_accuracy']:.3f}")
    result = summarize(results, options.workdir, duration_s=time.monotonic() - began)
    (options.workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    plots = draw_plots(options.workdir, list(VARIANTS), num_seeds=options.seeds)
    show(result)
    show_history(options.workdir / "carls-0")
    console.print(f"\nresult: {options.workdir / 'result.json'}")
    console.print(f"plots:  {', '.join(str(path) for path in plots)}")
    return 0


def _run(loaded: Loaded, workdir: Path, *, kill_a_maker: bool) -> dict[str, Any]:
    stop = threading.Event()
    killer = threading.Thread(target=_kill_a_maker, args=(loaded, workdir, stop))
    if kill_a_maker:
        killer.start()
    processes: set[str] = set()
    try:
        outcome = run_experiment(loaded, workdir, on_event=_collect(processes))
    finally:
        stop.set()
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    result = json.loads((workdir / "result.json").read_text())
    return {**result, "processes": len(processes), "restarts": outcome.restarts}


def _collect(processes: set[str]) -> Callable[[LaunchEvent], None]:
    def note(event: LaunchEvent) -> None:
        if event.replica:
            processes.add(event.replica)

    return note


def _kill_a_maker(loaded: Loaded, workdir: Path, stop: threading.Event) -> None:
    """Kills a maker, as the system does when memory is short, half-way through the run."""
    threshold = loaded.config.digits.num_steps // 2
    position = 0
    while not stop.wait(0.05):
        lines, position = metrics.read(workdir / "metrics" / "trainer-0.jsonl", position)
        if any(line["step"] >= threshold for line in lines):
            break
    for replica in read_processes(workdir):
        if replica.role == KILLED_MAKER and replica.pid and not stop.is_set():
            os.kill(replica.pid, signal.SIGKILL)
            (workdir / "killed.json").write_text(json.dumps({"step": lines[-1]["step"]}))


def summarize(
    results: dict[str, list[dict[str, Any]]], workdir: Path, *, duration_s: float
) -> dict[str, Any]:
    """Returns what result.json holds."""
    summary: dict[str, Any] = {
        name: _mean_and_std([run["test_accuracy"] for run in runs])
        for name, runs in results.items()
    }
    runs = results["carls"]
    sources = sorted({source for run in runs for source in run["rows_written"]} - {"trainer"})
    return {
        **summary,
        "seeds": list(range(len(runs))),
        "processes": min(run["processes"] for run in runs),
        "rows_written": {
            source: sum(run["rows_written"].get(source, 0) for run in runs) for source in sources
        },
        "staleness_steps": {
            "p50": float(np.median([run["staleness"]["age_p50"] for run in runs])),
            "p95": float(np.median([run["staleness"]["age_p95"] for run in runs])),
        },
        "killed_maker": _recovery(workdir / f"carls-{len(runs) // 2}"),
        "restarts": [run["restarts"] for run in runs],
        "duration_s": duration_s,
        "test_images_in_graph": False,
    }


def _recovery(workdir: Path) -> dict[str, Any]:
    """Tells how the age of what was read rose after a maker was killed, and when it was back.

    An age is the 95th percentile, in steps, of what was read since the last line of metrics.
    """
    killed_at = json.loads((workdir / "killed.json").read_text())["step"]
    lines, _ = metrics.read(workdir / "metrics" / "trainer-0.jsonl")
    before = max(line["age_p95"] for line in lines if 50 < line["step"] <= killed_at)
    after = {line["step"]: line["age_p95"] for line in lines if line["step"] > killed_at}
    peak_at = max(after, key=lambda step: after[step])
    back = [step for step, age in after.items() if step > peak_at and age <= 2 * before]
    return {
        "maker": KILLED_MAKER,
        "killed_at_step": killed_at,
        "age_before": before,
        "highest_age": after[peak_at],
        "back_at_step": back[0] if back else None,
    }


def _mean_and_std(accuracies: Sequence[float]) -> dict[str, Any]:
    return {
        "test_accuracy_mean": float(np.mean(accuracies)),
        "test_accuracy_std": float(np.std(accuracies)),
        "test_accuracy": list(accuracies),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the result as a table."""
    table = Table(title="digits, 20 labels, 500 test images that are not in the graph")
    for column in ("knowledge", "test accuracy", "std", "each seed"):
        table.add_column(column)
    for name, (title, _) in VARIANTS.items():
        row = result[name]
        each = " ".join(f"{accuracy:.3f}" for accuracy in row["test_accuracy"])
        mean, std = row["test_accuracy_mean"], row["test_accuracy_std"]
        table.add_row(title, f"{mean:.3f}", f"{std:.3f}", each)
    console.print(table)
    ages = result["staleness_steps"]
    console.print(f"staleness seen: median {ages['p50']:.0f} steps, 95 % below {ages['p95']:.0f}")
    killed = result["killed_maker"]
    back = killed["back_at_step"]
    console.print(
        f"{killed['maker']} was killed at step {killed['killed_at_step']}: what was read grew from "
        f"{killed['age_before']:.0f} to {killed['highest_age']:.0f} steps old; "
        + (f"recovered by step {back}" if back else "not recovered by the end")
    )
    for source, rows in result["rows_written"].items():
        console.print(f"rows written by {source}: {rows}")
    console.print(f"processes: {result['processes']}; all runs took {result['duration_s']:.0f} s")


def show_history(workdir: Path) -> None:
    """Prints where the pseudo-label came from of the image whose label changed most often."""
    with bank_of(workdir) as bank:
        keys = bank.table("nodes").to_numpy(fields=("confidence",))["keys"]
        histories = bank.table("nodes").history(keys, "pseudo_label")
        changes = [
            sum(new.value.argmax() != old.value.argmax() for new, old in pairwise(history))
            for history in histories
        ]
        key = str(keys[np.argmax(changes)])
        console.rule(f"carls-jax explain nodes {key} --workdir {workdir}", align="left")
        console.print(explain(bank, "nodes", key), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CarlsError as error:
        console.print(f"{type(error).__name__}: {error}", style="red")
        sys.exit(1)
