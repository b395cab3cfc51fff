"""kill -9 of servers and writers at random moments: what was acknowledged is there, and once."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from carls_jax.bank.connect import connect
from carls_jax.bank.local import LocalBank

from .checker import Checker, Verdict
from .servers import ServerProcess
from .writing import Load

# Calls that are acknowledged between two kills, at most.
MOST_CALLS = 150
# One kill in so many comes while the server starts.
STARTS = 4
LONGEST_START_S = 0.3
NUM_SHARDS = 3
SHORT_JOURNAL = ("--max-journal-bytes", "500000")


def kill_at_random(server: ServerProcess, load: Load, chance: random.Random) -> None:
    """Kills a server under load, or while it recovers, and starts it again."""
    server.prepare()
    load.wait_for(chance.randint(1, MOST_CALLS))
    server.kill()
    server.start()
    while chance.randrange(STARTS) == 0:
        server.prepare()
        assert server.run_for(chance.uniform(0, LONGEST_START_S))
        server.kill()
        server.start()
    server.wait_ready()


@pytest.mark.timeout(3600)
def test_a_killed_server_keeps_what_it_acknowledged(
    tmp_path: Path, chance: random.Random, num_kills: int
) -> None:
    root, address = tmp_path / "root", f"unix:{tmp_path}/s"
    checker, began = Checker(), time.monotonic()
    with ExitStack() as held:
        server = held.enter_context(ServerProcess(root, address, *SHORT_JOURNAL))
        one, two = (held.enter_context(connect(address, timeout_s=60.0)) for _ in range(2))
        load = held.enter_context(Load(checker))
        server.start()
        server.wait_ready()
        for bank in (one, one, two):
            load.add_thread(bank)
        load.add_process(address)
        load.snapshots(two)
        for _ in range(num_kills):
            kill_at_random(server, load, chance)
        load.finish()
        through_the_server = checker.check(one)
        server.kill()
        with LocalBank(root) as recovered:
            verdict = checker.check(recovered)
    tell(verdict, f"{num_kills} kills of a server", began)
    assert through_the_server.is_good, through_the_server
    assert verdict.is_good, verdict


@pytest.mark.timeout(3600)
def test_a_killed_writer_leaves_each_call_whole_or_undone(
    tmp_path: Path, chance: random.Random, num_kills: int
) -> None:
    root, address = tmp_path / "root", f"unix:{tmp_path}/s"
    checker, began = Checker(), time.monotonic()
    with ExitStack() as held:
        server = held.enter_context(ServerProcess(root, address, *SHORT_JOURNAL))
        load = held.enter_context(Load(checker))
        server.start()
        server.wait_ready()
        for _ in range(num_kills // 3):
            writer = load.add_process(address)
            load.wait_for(chance.randint(1, 50))
            writer.kill()
            writer.wait()
        load.finish()
        with connect(address) as bank:
            verdict = checker.check(bank)
        server.kill()
        with LocalBank(root) as recovered:
            assert checker.check(recovered).is_good
    tell(verdict, f"{num_kills // 3} kills of a writer", began)
    assert verdict.is_good, verdict


@pytest.mark.timeout(3600)
def test_shards_that_are_killed_one_after_another_keep_all(
    tmp_path: Path, chance: random.Random, num_kills: int
) -> None:
    addresses = [f"unix:{tmp_path}/{index}" for index in range(NUM_SHARDS)]
    checker, began = Checker(), time.monotonic()
    with ExitStack() as held:
        servers = [
            held.enter_context(
                ServerProcess(
                    tmp_path / f"root-{index}",
                    address,
                    *SHORT_JOURNAL,
                    *("--bank-id", "b", "--shard", f"{index}/{NUM_SHARDS}"),
                )
            )
            for index, address in enumerate(addresses)
        ]
        bank = held.enter_context(connect(",".join(addresses), timeout_s=60.0))
        load = held.enter_context(Load(checker))
        for server in servers:
            server.start()
        for server in servers:
            server.wait_ready()
        load.add_thread(bank)
        load.add_thread(bank)
        load.add_process(",".join(addresses))
        for number in range(num_kills // 2):
            kill_at_random(servers[number % NUM_SHARDS], load, chance)
        load.finish()
        verdict = checker.check(bank)
    tell(verdict, f"{num_kills // 2} kills of shards", began)
    assert verdict.is_good, verdict


def tell(verdict: Verdict, what: str, began: float) -> None:
    """Prints the figures of a test."""
    print(f"{what} in {time.monotonic() - began:.0f} s: {verdict}")
