from __future__ import annotations

import sys
from pathlib import Path

import pytest

from carls_jax.launch.experiment import load
from carls_jax.launch.wiring import program_of

TINY = Path(__file__).with_name("tiny_experiment.py")
COMMAND = (sys.executable, "-m", "carls_jax.cli")


@pytest.fixture
def program(tmp_path):
    """Returns a function that wires the tiny experiment, with overrides."""

    def make(*overrides: str, **options):
        return program_of(
            load(TINY, overrides), tmp_path / "run", sockets=Path("/sockets"), **options
        )

    return make


def test_a_program_has_a_bank_the_makers_in_their_order_and_a_trainer(program):
    roles = program("rate=1").roles
    assert [(role.name, role.count, role.is_service) for role in roles] == [
        ("bank", 1, True),
        ("whole", 1, True),
        ("each", 1, True),
        ("trainer", 1, False),
    ]


def test_each_role_is_a_command_that_can_be_given_by_hand(program, tmp_path):
    bank, whole, _, trainer = program("rate=1", "run.seed=3").roles
    experiment = ("--config", str(TINY), "--workdir", str(tmp_path / "run"))
    overrides = ("--config.rate=1", "--config.run.seed=3")
    assert bank.replica_argv(0) == (
        *(*COMMAND, "bank", "--workdir", str(tmp_path / "run")),
        *("--address", "unix:/sockets/bank-0.sock", "--journal", "process"),
    )
    assert whole.replica_argv(0) == (
        *(*COMMAND, "make", *experiment, *overrides, "--maker", "whole", "--worker", "0"),
    )
    assert trainer.replica_argv(0) == (*COMMAND, "train", *experiment, *overrides)


def test_makers_end_before_the_bank(program):
    orders = {role.name: role.stop_order for role in program().roles}
    assert orders["whole"] == orders["each"] < orders["bank"]


def test_workers_of_a_maker_are_replicas_of_its_role(program):
    each = program("run.num_workers.each=3").roles[2]
    assert each.count == 3
    assert each.replica_argv(2)[-4:] == ("--maker", "each", "--worker", "2")


def test_shards_are_replicas_that_share_an_id(program):
    bank = program("run.num_shards=3").roles[0]
    assert bank.count == 3
    first, last = bank.replica_argv(0), bank.replica_argv(2)
    assert last[last.index("--address") + 1] == "unix:/sockets/bank-2.sock"
    assert last[last.index("--shard") + 1] == "2/3"
    bank_id = last[last.index("--bank-id") + 1]
    assert bank_id == first[first.index("--bank-id") + 1]
    again = program("run.num_shards=3").roles[0].replica_argv(1)
    assert again[again.index("--bank-id") + 1] == bank_id  # it is kept in the workdir


@pytest.mark.parametrize("num_shards", [1, 3])
def test_tcp_takes_free_ports(program, num_shards):
    bank = program("run.transport=tcp", f"run.num_shards={num_shards}").roles[0]
    for index in range(num_shards):
        argv = bank.replica_argv(index)
        assert argv[argv.index("--address") + 1] == "127.0.0.1:0"


def test_changes_are_accepted_by_the_trainer_alone(program):
    roles = program(accept_changes=True).roles
    assert [role.name for role in roles if "--accept-changes" in role.argv] == ["trainer"]


def test_a_run_that_uses_a_bank_of_others_starts_none(program):
    roles = program("run.bank.address='unix:/shared/bank.sock'", "run.bank.namespace='b'").roles
    assert [role.name for role in roles] == ["whole", "each", "trainer"]
