"""`outlast`: the bank of a training loop, which does by a policy without the bank itself."""

from __future__ import annotations

from carls_jax.bank import Bank, LocalBank
from carls_jax.bank.namespaces import NamespacedBank
from carls_jax.bank.sharded import ShardedBank
from carls_jax.training.away.keeping import KeepingBank
from carls_jax.training.away.outlasting_bank import OutlastingBank
from carls_jax.training.away.remembering import RememberingBank
from carls_jax.training.away.waiting import WaitingBank
from carls_jax.training.away.when_away import WhenAway


def outlast(bank: Bank, when_away: WhenAway) -> OutlastingBank:
    """Returns a bank object that does what a policy says when the bank is away.

    Its tables' lookups and writes, and those of hooks that are given them, follow the policy; those
    of the bank object itself do not. A bank in this process is never away.

    Args:
      bank: The bank; it stays open when what is returned is closed.
      when_away: The policy.
    """
    if isinstance(bank, OutlastingBank):
        return bank
    if when_away.policy == "fail" or _is_local(bank):
        return OutlastingBank(bank)
    if when_away.policy == "wait":
        return WaitingBank(bank, wait_s=when_away.wait_s)
    around, servers = _of_servers(bank, when_away)
    return RememberingBank(bank, around, servers, when_away=when_away)


def _is_local(bank: Bank) -> bool:
    return isinstance(bank.whole if isinstance(bank, NamespacedBank) else bank, LocalBank)


def _of_servers(bank: Bank, when_away: WhenAway) -> tuple[Bank, list[KeepingBank]]:
    """Returns the same bank made of servers that are done without, and these."""
    if isinstance(bank, NamespacedBank):
        whole, servers = _of_servers(bank.whole, when_away)
        return _with_ledger(NamespacedBank(whole, bank.name, closes=True), bank), servers
    if not isinstance(bank, ShardedBank):
        server = KeepingBank(bank, who="the bank", max_kept_bytes=when_away.max_kept_bytes)
        return server, [server]
    num_shards = len(bank.shards)
    servers = [
        KeepingBank(
            shard,
            who=f"shard {index} of the bank",
            max_kept_bytes=when_away.max_kept_bytes // num_shards,
        )
        for index, shard in enumerate(bank.shards)
    ]
    return _with_ledger(ShardedBank(servers, source=bank.source), bank), servers


def _with_ledger(bank: Bank, other: Bank) -> Bank:
    """Returns a bank that counts where another counts."""
    bank.ledger = other.ledger
    return bank
