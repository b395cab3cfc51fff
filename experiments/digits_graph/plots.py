"""The demo's pictures: accuracy by step, staleness by step, embeddings before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from carls_jax import metrics


def draw_plots(workdir: Path, variants: list[str], *, num_seeds: int) -> list[Path]:
    """Draws all pictures from the runs' files and returns their paths."""
    return [
        _accuracy_by_step(workdir, variants, num_seeds),
        _staleness_by_step(workdir, num_seeds),
        _embeddings(workdir),
    ]


def _lines(run: Path) -> list[dict[str, Any]]:
    return metrics.read(run / "metrics" / "trainer-0.jsonl")[0]


def _accuracy_by_step(workdir: Path, variants: list[str], num_seeds: int) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4))
    for variant in variants:
        runs = [_lines(workdir / f"{variant}-{seed}") for seed in range(num_seeds)]
        steps = [line["step"] for line in runs[0]]
        curves = np.array([[line["test_accuracy"] for line in run] for run in runs])
        axes.plot(steps, curves.mean(0), label=variant)
        axes.fill_between(steps, curves.min(0), curves.max(0), alpha=0.2)
    axes.set(xlabel="step", ylabel="test accuracy", title="mean and range over seeds")
    axes.legend()
    return _saved(figure, workdir / "accuracy.png")


def _staleness_by_step(workdir: Path, num_seeds: int) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4))
    for seed in range(num_seeds):
        run = workdir / f"carls-{seed}"
        lines = [line for line in _lines(run) if line.get("age_p95") is not None]
        steps = [line["step"] for line in lines]
        axes.plot(steps, [line["age_p95"] for line in lines], label=f"seed {seed}, 95 %")
        killed = run / "killed.json"
        if killed.exists():
            step = json.loads(killed.read_text())["step"]
            axes.axvline(step, color="red", linestyle=":", label=f"maker killed (seed {seed})")
    axes.set(xlabel="step", ylabel="age of what was read (steps)", title="staleness")
    axes.legend()
    return _saved(figure, workdir / "staleness.png")


def _embeddings(workdir: Path) -> Path:
    with np.load(workdir / "carls-0" / "embeddings.npz", allow_pickle=False) as file:
        saved = dict(file)
    figure, both = plt.subplots(1, 2, figsize=(10, 4.5))
    for axes, when in zip(both, ("before", "after"), strict=True):
        points = PCA(2, random_state=0).fit_transform(saved[when])
        axes.scatter(*points.T, c=saved["label"], cmap="tab10", s=5)
        axes.set(title=f"embeddings {when} training", xticks=[], yticks=[])
    return _saved(figure, workdir / "embeddings.png")


def _saved(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
