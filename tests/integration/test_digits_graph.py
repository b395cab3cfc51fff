"""The demo's experiment: its graph, worked out by hand, and a short run of each variant."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from carls_jax.launch.experiment import load
from carls_jax.launch.roles import run_inline

FOLDER = Path(__file__).parents[2] / "experiments" / "digits_graph"


@pytest.fixture
def graph():
    load(FOLDER / "config.py")  # puts the folder on the path, as the launcher does
    return sys.modules["graph"]


def test_neighbors_are_the_nearest_others(graph):
    points = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)
    ids, weights = graph.build(points, num_neighbors=2)
    assert ids.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    # Squared distance 1 over the distances to the second neighbours, 3 and 2.
    np.testing.assert_allclose(weights[0, 0], np.exp(-1 / 6), rtol=1e-6)


def test_labels_reach_along_the_graph_and_no_further(graph):
    ids, weights = np.array([[1], [0], [3], [2]]), np.ones((4, 1), np.float32)
    known = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], np.float32)
    labels = graph.propagate(ids, weights, known, alpha=0.9, num_iterations=20)
    assert labels.tolist() == [[1, 0], [1, 0], [0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("knowledge", ["bank", "label_spreading", "none"])
def test_each_variant_trains_and_is_tested(tmp_path, knowledge):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        loaded = load(
            FOLDER / "config.py", ["digits.num_steps=60", f"digits.knowledge={knowledge}"]
        )
        run_inline(loaded, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0.5 < result["test_accuracy"] <= 1
    makers = {"node_embeddings/0", "pseudo_labels/0"} if knowledge == "bank" else set()
    assert set(result["rows_written"]) == makers
