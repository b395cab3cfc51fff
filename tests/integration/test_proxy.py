"""Clients behind a bad network: what was acknowledged is there once, and nothing is there twice."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from carls_jax.bank.access import Access
from carls_jax.bank.local import LocalBank
from carls_jax.bank.remote import RemoteBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.tokens import Token

from .checker import Checker
from .proxy import FaultyProxy
from .writing import Load

FAULTS = {"cut": 0.01, "drop": 0.01, "delay": 0.02, "duplicate": 0.01}
TOKEN = Token("0123456789abcdef" * 2)


@pytest.mark.timeout(3600)
def test_a_bad_network_loses_nothing_and_repeats_nothing(
    tmp_path: Path, chance: random.Random, is_long: bool
) -> None:
    checker = Checker()
    with ExitStack() as held:
        local = held.enter_context(LocalBank(tmp_path / "root", max_journal_bytes=500_000))
        server = held.enter_context(BankServer(local, "127.0.0.1:0", token=TOKEN))
        port = int(server.address.rpartition(":")[2])
        proxy = held.enter_context(FaultyProxy(port, dict(FAULTS), chance))
        load = held.enter_context(Load(checker))
        for _ in range(3):
            bank = RemoteBank(
                f"127.0.0.1:{proxy.port}",
                timeout_s=60.0,
                try_timeout_s=1.0,
                access=Access(TOKEN),
            )
            bank.wait_ready()
            held.enter_context(bank)
            load.add_thread(bank)
            load.add_thread(bank)
        load.wait_for(20_000 if is_long else 400)
        proxy.stop_faults()
        load.finish()
        verdict = checker.check(local)
        assert verdict.is_good, verdict
        print(f"{dict(proxy.counts)}: {verdict}")
        assert set(proxy.counts) == set(FAULTS), "not every fault came"
