"""Starts a program (roles, counts, wiring) and keeps it running; and what experiments make of that.

program.py      what a program is: roles, how many of each, restarts
local.py        starts it on this machine; with supervisor.py, replica.py and guardian.py
status.py       what a launcher tells of it; shown by progress.py
addresses.py    how the roles find one another

experiment.py   `Experiment`, `RunConfig`, and how an experiment's file is read
running.py      `run_experiment`: one launch of an experiment from start to end
wiring.py       from an experiment to a program
roles.py        what makers' and trainers' processes do, and how all run inline
serving.py      what a bank server's process does
securing.py     who may use the bank: its token and certificates
record.py       `run.json`: with which values a run was begun
sweep.py        grids of runs
inspecting.py   a run's bank, status and results
explaining.py   who wrote a row, when, and from which step
"""

from __future__ import annotations

from carls_jax.launch.addresses import publish, resolve, socket_directory, withdraw
from carls_jax.launch.local import LaunchedProgram, Outcome, run_program, start_program
from carls_jax.launch.program import Program, RestartPolicy, Role
from carls_jax.launch.progress import Screen, open_screen
from carls_jax.launch.status import LaunchEvent, ReplicaStatus, is_launched, read_processes

__all__ = [
    "LaunchEvent",
    "LaunchedProgram",
    "Outcome",
    "Program",
    "ReplicaStatus",
    "RestartPolicy",
    "Role",
    "Screen",
    "is_launched",
    "open_screen",
    "publish",
    "read_processes",
    "resolve",
    "run_program",
    "socket_directory",
    "start_program",
    "withdraw",
]
