"""Data sets, one file each, and batches of them."""

from carls_jax.data.batches import Batches

__all__ = ["Batches"]
