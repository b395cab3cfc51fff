"""Knowledge makers: functions that read checkpoints and write rows to the bank.

maker.py       `maker`, which makes a `Maker` of a function
context.py     `Context`: what the function is given
blocks.py      what the function gives, checked
runner.py      `MakerRunner`: one worker's refresh from one checkpoint
state.py       what a maker keeps from one refresh to the next
schedule.py    `Schedule`: when makers refresh, and from which checkpoint
progress.py    how far they are, told through a table of the bank
loop.py        `MakerLoop`: refresh after refresh, and `run_inline`, in the trainer's process
"""

from carls_jax.makers.context import Context, Predict
from carls_jax.makers.loop import MakerLoop, run_inline
from carls_jax.makers.maker import Maker, maker
from carls_jax.makers.progress import PROGRESS, wait_until_done
from carls_jax.makers.runner import MakerRunner, Report
from carls_jax.makers.schedule import Schedule, asynchronous, lockstep

__all__ = [
    "PROGRESS",
    "Context",
    "Maker",
    "MakerLoop",
    "MakerRunner",
    "Predict",
    "Report",
    "Schedule",
    "asynchronous",
    "lockstep",
    "maker",
    "run_inline",
    "wait_until_done",
]
