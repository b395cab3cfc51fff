"""Checkpoints: written by the trainer, watched and read by makers.

    leaves.py     the leaves of a pytree by name, free of the classes that held them
    about.py      the small JSON beside the arrays: bank identity, iterator state, list of leaves
    watcher.py    reading: `CheckpointWatcher`, for makers
    predictor.py  from variables back to a model that predicts
    writer.py     writing and resuming: `Checkpointer`, for the trainer

The convention that makers rely on: a trainer saves a dict whose "model" holds everything that
prediction needs (parameters, batch statistics, moving averages); the optimizer state, random keys
and counters are its siblings.
"""

from __future__ import annotations

from carls_jax.checkpoints.about import About
from carls_jax.checkpoints.leaves import LeafPath, LeafSpec, into
from carls_jax.checkpoints.predictor import predictor
from carls_jax.checkpoints.watcher import CheckpointWatcher, HostCheckpoint
from carls_jax.checkpoints.writer import Checkpointer, Restored

__all__ = [
    "About",
    "CheckpointWatcher",
    "Checkpointer",
    "HostCheckpoint",
    "LeafPath",
    "LeafSpec",
    "Restored",
    "into",
    "predictor",
]
