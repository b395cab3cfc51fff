"""Training loops that read knowledge ahead of their steps and resume exactly.

    plan.py           what a step reads and writes, as data
    knowledge.py      what a plan finds for one batch
    fetching.py       looks it up, each row once
    held.py           the rows that batches held ahead share
    look_ahead.py     fetches for the next steps while the device computes this one
    placing.py        puts it on devices, and tells which rows each process writes
    writes.py         sends the outputs of steps in the background
    behind.py         tells which rows lack what was sent
    processes.py      several processes that run one loop
    checkpointing.py  saves a run as a whole: state, bank, place in the batches
    away/             what is done while the bank is away
    saving.py         when a checkpoint is saved, if the bank may be away
    session.py        a training loop's connection to all of these
    opening.py        opens a session with bank and makers in this process
    trainer.py        the training loop, for those who bring a model and a loss

A loop of one's own needs only a `Session`.
"""

from carls_jax.training.away import WhenAway, outlast
from carls_jax.training.knowledge import Known
from carls_jax.training.opening import session
from carls_jax.training.plan import Lookup, Push, Update
from carls_jax.training.session import Session
from carls_jax.training.session_config import SessionConfig
from carls_jax.training.staleness import Staleness
from carls_jax.training.trainer import Task, TrainerConfig, fit

__all__ = [
    "Known",
    "Lookup",
    "Push",
    "Session",
    "SessionConfig",
    "Staleness",
    "Task",
    "TrainerConfig",
    "Update",
    "WhenAway",
    "fit",
    "outlast",
    "session",
]
