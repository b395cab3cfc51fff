"""Train with knowledge found while training: trainers, knowledge makers and a knowledge bank.

    import carls_jax as carls

The names below are the public ones, beside those of the packages `carls_jax.bank`, `hooks`, `nn`,
`makers`, `training`, `data` and `launch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carls_jax.bank import (
        Bank,
        Field,
        Lazy,
        Limit,
        LocalBank,
        Rows,
        Table,
        TableSpec,
        open_snapshot,
    )
    from carls_jax.bank import initializers as init
    from carls_jax.bank.connect import connect
    from carls_jax.bank.optimizers import optimizer
    from carls_jax.bank.schedules import schedule
    from carls_jax.bank.tls import Tls
    from carls_jax.checkpoints import predictor
    from carls_jax.launch.experiment import Experiment
    from carls_jax.makers import Context, asynchronous, lockstep
    from carls_jax.makers.maker import maker
    from carls_jax.training import (
        Known,
        Lookup,
        Push,
        Session,
        SessionConfig,
        Task,
        TrainerConfig,
        Update,
        WhenAway,
        fit,
        outlast,
    )
    from carls_jax.training.opening import session

# Where each name is defined. Imported on first use, so that a bank server starts without JAX.
_HOMES = {
    "Bank": "bank",
    "Context": "makers",
    "Experiment": "launch.experiment",
    "Field": "bank",
    "Known": "training",
    "Lazy": "bank",
    "Limit": "bank",
    "LocalBank": "bank",
    "Lookup": "training",
    "Push": "training",
    "Rows": "bank",
    "Session": "training",
    "SessionConfig": "training",
    "Table": "bank",
    "TableSpec": "bank",
    "Task": "training",
    "Tls": "bank",
    "TrainerConfig": "training",
    "Update": "training",
    "WhenAway": "training",
    "asynchronous": "makers",
    "connect": "bank",
    "fit": "training",
    "init": "bank.initializers",
    "lockstep": "makers",
    "maker": "makers",
    "open_snapshot": "bank",
    "optimizer": "bank.optimizers",
    "outlast": "training",
    "predictor": "checkpoints",
    "schedule": "bank.schedules",
    "session": "training",
}

__all__ = [
    "Bank",
    "Context",
    "Experiment",
    "Field",
    "Known",
    "Lazy",
    "Limit",
    "LocalBank",
    "Lookup",
    "Push",
    "Rows",
    "Session",
    "SessionConfig",
    "Table",
    "TableSpec",
    "Task",
    "Tls",
    "TrainerConfig",
    "Update",
    "WhenAway",
    "asynchronous",
    "connect",
    "fit",
    "init",
    "lockstep",
    "maker",
    "open_snapshot",
    "optimizer",
    "outlast",
    "predictor",
    "schedule",
    "session",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"carls_jax.{_HOMES[name]}")
    value = module if name == "init" else getattr(module, name)
    globals()[name] = value
    return value
