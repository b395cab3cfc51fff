"""What the makers compute: a neighbour graph, and labels spread over it. NumPy and SciPy alone.

n is the number of images, k of neighbours, C of classes.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def features(pixels: Floats, embedding: Floats, *, embedding_share: float) -> Floats:
    """Joins pixels `[n, 64]` and embeddings `[n, d]`, each of length one, for distances.

    Squared distances are mixed: `embedding_share` of the embeddings', the rest of the pixels'.
    """
    parts = [
        np.sqrt(1.0 - embedding_share) * _unit(pixels),
        np.sqrt(embedding_share) * _unit(embedding),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def build(points: Floats, *, num_neighbors: int) -> tuple[Ids, Floats]:
    """Finds each point's nearest neighbours, nearest first, never itself.

    Returns:
      ids `[n, k]` and weights `[n, k]` in (0, 1]: exp(-d_ij^2 / (s_i s_j)) with s_i the distance
      from i to its k-th neighbour (Zelnik-Manor and Perona, *Self-Tuning Spectral Clustering*,
      2004, eq. 1).
    """
    squares = np.einsum("nd,nd->n", points, points)
    distances = squares[:, None] + squares[None, :] - 2.0 * (points @ points.T)
    np.fill_diagonal(distances, np.inf)
    ids = np.argpartition(distances, num_neighbors, axis=1)[:, :num_neighbors]
    near = np.take_along_axis(distances, ids, axis=1)
    order = np.argsort(near, axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    near = np.maximum(np.take_along_axis(near, order, axis=1), 0.0)
    scale = np.sqrt(near[:, -1]) + 1e-8
    weights = np.exp(-near / (scale[:, None] * scale[ids]))
    return ids.astype(np.int64), weights.astype(np.float32)


def propagate(
    ids: Ids, weights: Floats, known: Floats, *, alpha: float, num_iterations: int
) -> Floats:
    """Spreads known labels over the graph and gives every class the same total mass.

    Iterates F <- alpha S F + (1 - alpha) Y with S = D^-1/2 W D^-1/2 and W made symmetric (Zhou et
    al., *Learning with Local and Global Consistency*, 2004), then divides each class by its sum
    (class mass normalisation, Zhu et al. 2003).

    Args:
      ids, weights: `[n, k]`, from `build`.
      known: `[n, C]`, one-hot rows where the label is known, zeros elsewhere.
      alpha: Share of a row that comes from its neighbours.
      num_iterations: How far labels spread.

    Returns:
      Probabilities `[n, C]`; a row that no label reaches is uniform.
    """
    num_nodes, num_neighbors = ids.shape
    starts = np.arange(0, num_nodes * num_neighbors + 1, num_neighbors)
    graph = sp.csr_matrix((weights.ravel(), ids.ravel(), starts), shape=(num_nodes, num_nodes))
    graph = (graph + graph.T) * 0.5
    inverse_root = sp.diags(1.0 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12)))
    spread = (inverse_root @ graph @ inverse_root).tocsr().astype(np.float32)
    labels = known
    for _ in range(num_iterations):
        labels = alpha * (spread @ labels) + (1.0 - alpha) * known
    labels = labels / np.maximum(labels.sum(0, keepdims=True), 1e-12)
    total = labels.sum(1, keepdims=True)
    uniform = np.float32(1.0 / known.shape[1])
    return np.where(total > 1e-12, labels / np.maximum(total, 1e-12), uniform).astype(np.float32)


def balance(probabilities: Floats, *, sharpen: float, num_rounds: int = 10) -> Floats:
    """Raises probabilities `[n, C]` to a power, then gives all classes equal mass (Sinkhorn)."""
    balanced = np.maximum(probabilities, 1e-30).astype(np.float64)
    balanced = (balanced / balanced.sum(1, keepdims=True)) ** sharpen
    for _ in range(num_rounds):
        balanced = balanced / balanced.sum(0, keepdims=True)
        balanced = balanced / balanced.sum(1, keepdims=True)
    return (balanced / balanced.sum(1, keepdims=True)).astype(np.float32)


def confidence(probabilities: Floats) -> Floats:
    """Returns 1 - entropy / log C, `[n]`: 1 for a one-hot row, 0 for the uniform one."""
    logs = np.log(np.maximum(probabilities, 1e-12))
    entropy = -np.sum(probabilities * logs, axis=1)
    return (1.0 - entropy / np.log(probabilities.shape[1])).astype(np.float32)


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
