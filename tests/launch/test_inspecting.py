from __future__ import annotations

import json

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.bank import BankServer
from carls_jax.errors import ConfigError, SnapshotNotFoundError
from carls_jax.keys import shard_of
from carls_jax.launch import Program, Role, publish, run_program
from carls_jax.launch.inspecting import bank_of, describe_results, describe_run
from carls_jax.metrics import MetricsWriter

NODES = carls.TableSpec("nodes", {"score": carls.Field()})
OURS = carls.TableSpec("carls.makers", {"step": carls.Field()})


def fill(bank: carls.Bank, *keys: int) -> None:
    bank.table(OURS)
    bank.table(NODES).update(keys, {"score": np.ones(len(keys))}, step=3)


def keys_in(bank: carls.Bank) -> list[int]:
    return bank.table("nodes").to_numpy()["keys"].tolist()


def test_a_bank_that_is_served_is_asked(tmp_path):
    bank = carls.LocalBank(tmp_path / "bank")
    with bank, BankServer(bank, f"unix:{tmp_path}/bank-0.sock") as server:
        publish(tmp_path, "bank-0", server.address)
        fill(bank, 1, 2)
        with bank_of(tmp_path) as found:
            assert keys_in(found) == [1, 2]


def test_the_newest_snapshot_stands_for_a_bank_that_is_not_served(tmp_path):
    with carls.LocalBank(tmp_path / "bank") as bank:
        fill(bank, 1)
        bank.snapshot("step-1")
        fill(bank, 2)
        bank.snapshot("step-2")
        fill(bank, 3)
    publish(tmp_path, "bank-0", f"unix:{tmp_path}/bank-0.sock")  # its server was killed
    with bank_of(tmp_path) as found:
        assert keys_in(found) == [1, 2]


def test_the_snapshots_of_all_shards_stand_for_a_bank_of_several(tmp_path):
    shards = [
        carls.LocalBank(tmp_path / f"bank-{index}", bank_id="b", shard_index=index, num_shards=2)
        for index in range(2)
    ]
    with carls.bank.ShardedBank(shards) as bank:
        fill(bank, *range(6))
        bank.snapshot("step-3")
    assert set(shard_of(np.arange(6), 2)) == {0, 1}
    (tmp_path / "bank-0.sock").touch()  # a file, and no root
    with bank_of(tmp_path) as found:
        assert keys_in(found) == list(range(6))


def test_a_run_without_bank_or_snapshot_says_so(tmp_path):
    with (
        pytest.raises(SnapshotNotFoundError, match="no bank is or was served there"),
        bank_of(tmp_path),
    ):
        pass
    carls.LocalBank(tmp_path / "bank").close()
    with (
        pytest.raises(SnapshotNotFoundError, match="no complete snapshot"),
        bank_of(tmp_path),
    ):
        pass


def test_the_status_tells_roles_metrics_and_tables(tmp_path):
    run_program(Program((Role("trainer", ("true",)),)), workdir=tmp_path)
    with carls.LocalBank(tmp_path / "bank") as bank:
        fill(bank, 1, 2)
        bank.snapshot("step-2")
    with MetricsWriter(tmp_path / "metrics", "trainer-0") as writer:
        writer.write(1, {"loss": 9})
        writer.write(2, {"loss": 0.123456, "age/p50": float("nan")})
    with MetricsWriter(tmp_path / "metrics", "smooth-0") as writer:
        writer.write(2, {"rows_written": 5})
    lines = describe_run(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path}: stopped"
    name, told = lines[1].split(maxsplit=1)
    assert (name, told[:16]) == ("trainer-0", "done, 0 restarts")
    assert lines[1].endswith("step 2  loss 0.1235")
    assert lines[2].split()[0] == "smooth-0"
    assert lines[3:] == ["  table nodes: 2 rows, 0.0 MB"]


def test_the_status_of_a_run_without_snapshot_still_tells_its_roles(tmp_path):
    with MetricsWriter(tmp_path / "metrics", "trainer-0") as writer:
        writer.write(1, {"loss": 9})
    lines = describe_run(tmp_path).splitlines()
    assert "step 1  loss 9" in lines[1]
    assert "no bank is or was served" in lines[2]


def test_the_status_of_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        describe_run(tmp_path / "typo")


def test_results_are_told_with_where_everything_is(tmp_path):
    result = {"accuracy": 0.91234, "note": "x", "staleness": {"age_p50": 7}, "ledger": [{"a": 1}]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "metrics").mkdir()
    assert describe_results(tmp_path).splitlines() == [
        "  accuracy 0.9123",
        "  staleness.age_p50 7",
        f"results      {tmp_path}/result.json",
        f"metrics      {tmp_path}/metrics",
        f"see also     tensorboard --logdir {tmp_path}/metrics",
    ]
