"""The knowledge bank: tables of rows that trainers and makers share."""

from carls_jax.bank.changes import Change
from carls_jax.bank.connect import connect
from carls_jax.bank.interface import (
    Applied,
    Bank,
    BankIdentity,
    BankStats,
    SnapshotIdentity,
    TableStats,
)
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.limits import Limit
from carls_jax.bank.local import LocalBank
from carls_jax.bank.opening import open_snapshot
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.rows import Rows, Written
from carls_jax.bank.server import BankServer
from carls_jax.bank.sharded import ShardedBank
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.bank.table import Table
from carls_jax.bank.tls import Tls

__all__ = [
    "Applied",
    "Bank",
    "BankIdentity",
    "BankServer",
    "BankStats",
    "Change",
    "Field",
    "Lazy",
    "Limit",
    "LocalBank",
    "RemoteBank",
    "Rows",
    "ShardedBank",
    "SnapshotIdentity",
    "Table",
    "TableSpec",
    "TableStats",
    "Tls",
    "Written",
    "connect",
    "open_snapshot",
]
