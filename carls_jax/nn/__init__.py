"""Flax modules built on the hooks."""

from carls_jax.nn.dynamic_embedding import DynamicEmbedding

__all__ = ["DynamicEmbedding"]
