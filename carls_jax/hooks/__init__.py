"""The bank from inside jitted functions."""

from carls_jax.hooks.callbacks import save_lookups
from carls_jax.hooks.failures import check, checking
from carls_jax.hooks.host_words import join_keys, split_keys
from carls_jax.hooks.lookup import lookup, new_handle
from carls_jax.hooks.rows import Rows
from carls_jax.hooks.writes import Receipt, push, update

__all__ = [
    "Receipt",
    "Rows",
    "check",
    "checking",
    "join_keys",
    "lookup",
    "new_handle",
    "push",
    "save_lookups",
    "split_keys",
    "update",
]
