"""The trainer's side: a small classifier, the augmentation of its images, and the loss."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from carls_jax.data.digits import IMAGE_SHAPE, NUM_CLASSES


class Classifier(nnx.Module):
    """Is an MLP of 64, 128, 64 and 10 units; its 64 units, of length one, are the embedding."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 64, rngs=rngs)
        self.out = nnx.Linear(64, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns logits `[B, 10]` and embeddings `[B, 64]` of images `[B, 64]`."""
        hidden = nnx.relu(self.second(nnx.relu(self.first(x))))
        length = jnp.sqrt(jnp.sum(hidden * hidden, axis=-1, keepdims=True) + 1e-8)
        return self.out(hidden), hidden / length


def augment(key: jax.Array, x: jax.Array, *, noise: float) -> jax.Array:
    """Warps images `[B, 64]` by random affine maps (bilinear) and adds Gaussian noise.

    The entries of the 2x2 matrix move by N(0, 0.1), the centre by N(0, 0.35) pixels.
    """
    matrix_key, move_key, noise_key = jax.random.split(key, 3)
    num_images, (height, width) = x.shape[0], IMAGE_SHAPE
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij"), -1)
    grid = pixels.reshape(-1, 2) - centre[None]
    matrix = jnp.eye(2)[None] + 0.1 * jax.random.normal(matrix_key, (num_images, 2, 2))
    move = 0.35 * jax.random.normal(move_key, (num_images, 1, 2))
    at = jnp.einsum("pd,bde->bpe", grid, matrix) + move + centre[None, None]
    # Bilinear weights, [B, 64, 8]: how much of each source row and column a pixel takes.
    rows = jnp.maximum(0.0, 1.0 - jnp.abs(at[..., :1] - jnp.arange(8.0)[None, None]))
    columns = jnp.maximum(0.0, 1.0 - jnp.abs(at[..., 1:] - jnp.arange(8.0)[None, None]))
    warped = jnp.einsum("bpi,bij,bpj->bp", rows, x.reshape(num_images, height, width), columns)
    return warped + noise * jax.random.normal(noise_key, x.shape)


def loss_parts(
    model: Classifier,
    images: Mapping[str, jax.Array],
    knowledge: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Returns the three parts of the loss, each a scalar.

    B is the number of unlabelled images, L of labelled ones, k of neighbours.

    Args:
      images: "labelled" `[L, 64]`, "labels" int `[L]`, "unlabelled" `[B, 64]`.
      knowledge: "pseudo_label" `[B, 10]`, "confidence" `[B]`, "neighbor_embedding" `[B, k, 64]` and
        "neighbor_weight" `[B, k]`; zeros where the bank knows nothing.
    """
    num_labelled = images["labelled"].shape[0]
    logits, embedding = model(jnp.concatenate([images["labelled"], images["unlabelled"]]))
    supervised = optax.softmax_cross_entropy_with_integer_labels(
        logits[:num_labelled], images["labels"]
    ).mean()
    entropies = optax.softmax_cross_entropy(logits[num_labelled:], knowledge["pseudo_label"])
    weight = knowledge["neighbor_weight"]
    weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-8)
    gap = embedding[num_labelled:, None, :] - knowledge["neighbor_embedding"]
    return {
        "supervised": supervised,
        "pseudo_label": (knowledge["confidence"] * entropies).mean(),
        "graph": jnp.sum(weight * jnp.sum(gap * gap, axis=-1), axis=-1).mean(),
    }
