from __future__ import annotations

import json
import math
import struct
import subprocess
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from carls_jax import metrics
from carls_jax.errors import InvalidInputError
from carls_jax.metrics import Amount, Flow, Ledger, MetricsWriter

LOOKUP = Flow("trainer", "nodes", "embedding", "lookup")
PUSH = Flow("trainer", "nodes", "embedding", "push")
UPDATE = Flow("maker", "nodes", "label", "update")


def read_events(directory) -> list[tuple[int, str, float]]:
    """Step, tag and value of each scalar: records of length, crc, payload, crc (TFRecord)."""
    scalars = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + length])
            scalars += [
                (event.step, value.tag, value.simple_value) for value in event.summary.value
            ]
            data = data[12 + length + 4 :]
    return scalars


def test_a_line_holds_time_role_step_and_numbers(tmp_path):
    with MetricsWriter(tmp_path, "trainer") as writer:
        writer.write(3, {"age/p50": np.float32(0.5)}, loss=2, found=np.array([1.5]))
    (line,), _ = metrics.read(tmp_path / "trainer.jsonl")
    assert line.pop("time") > 1.6e9
    assert line == {"role": "trainer", "step": 3, "age/p50": 0.5, "loss": 2, "found": 1.5}


def test_a_line_can_be_read_before_the_writer_is_closed(tmp_path):
    with MetricsWriter(tmp_path, "trainer") as writer:
        writer.write(1, loss=1.0)
        assert len(metrics.read(tmp_path / "trainer.jsonl")[0]) == 1


def test_numbers_that_json_lacks_become_null(tmp_path):
    with MetricsWriter(tmp_path, "trainer") as writer:
        writer.write(0, a=math.nan, b=math.inf, c=np.float32(-np.inf))
    (line,), _ = metrics.read(tmp_path / "trainer.jsonl")
    assert (line["a"], line["b"], line["c"]) == (None, None, None)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path, "trainer") as writer:
        writer.write(1, loss=0.5)
        writer.write(2, loss=0.25, accuracy=1)
        writer.write(3, loss=math.inf)
    assert read_events(tmp_path / "tensorboard" / "trainer") == [
        (1, "loss", 0.5),
        (2, "loss", 0.25),
        (2, "accuracy", 1.0),
        (3, "loss", math.inf),
    ]


def test_a_second_writer_continues_the_file(tmp_path):
    for step in (1, 2):
        with MetricsWriter(tmp_path, "trainer") as writer:
            writer.write(step, loss=0.5)
    lines, _ = metrics.read(tmp_path / "trainer.jsonl")
    assert [line["step"] for line in lines] == [1, 2]


def test_a_half_line_of_a_killed_writer_costs_only_itself(tmp_path):
    (tmp_path / "trainer.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    with MetricsWriter(tmp_path, "trainer") as writer:
        writer.write(3, loss=0.5)
    lines, _ = metrics.read(tmp_path / "trainer.jsonl")
    assert [line["step"] for line in lines] == [1, 3]


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros(0), "1.0", None, 1j])
def test_what_is_not_one_number_is_refused_and_nothing_is_written(tmp_path, value):
    with MetricsWriter(tmp_path, "trainer") as writer:
        with pytest.raises(InvalidInputError, match=r"metric 'loss' is .* one number"):
            writer.write(1, {"fine": 1.0, "loss": value})
        assert metrics.read(tmp_path / "trainer.jsonl")[0] == []


def test_names_that_each_line_has_already_are_refused(tmp_path):
    with (
        MetricsWriter(tmp_path, "trainer") as writer,
        pytest.raises(InvalidInputError, match="cannot be called 'time'"),
    ):
        writer.write(1, time=0.5)


def test_a_role_that_cannot_name_a_file_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="role is 'labels/0'"):
        MetricsWriter(tmp_path, "labels/0")


def test_a_missing_file_has_no_lines(tmp_path):
    assert metrics.read(tmp_path / "missing.jsonl", 10) == ([], 0)


def test_a_half_written_line_is_left_for_the_next_call(tmp_path):
    path = tmp_path / "trainer.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    assert metrics.read(path) == ([{"step": 1}], 12)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    assert metrics.read(path, 12) == ([{"step": 2}], 24)
    assert metrics.read(path, 24) == ([], 24)


def test_a_file_that_became_shorter_is_read_from_its_start(tmp_path):
    path = tmp_path / "trainer.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    assert metrics.read(path, 100) == ([{"step": 1}], 12)


@given(st.lists(st.text()), st.lists(st.integers(0, 200)))
def test_a_follower_sees_each_line_once_however_the_bytes_arrive(tmp_path_factory, texts, cuts):
    path = tmp_path_factory.mktemp("follow") / "role.jsonl"
    lines = [{"text": text} for text in texts]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    seen, position = [], 0
    for cut in [*sorted(cuts), len(content)]:
        path.write_bytes(content[: max(cut, position)])
        new, position = metrics.read(path, position)
        seen += new
    assert seen == lines


def test_a_ledger_adds_up_by_flow_and_by_direction():
    ledger = Ledger()
    ledger.add(LOOKUP, num_bytes=256, num_rows=4)
    ledger.add(LOOKUP, num_bytes=64, num_rows=1)
    ledger.add(UPDATE, num_bytes=8, num_rows=2)
    assert ledger.rows() == [
        {
            "client": "maker",
            "table": "nodes",
            "field": "label",
            "direction": "update",
            "num_bytes": 8,
            "num_rows": 2,
        },
        {
            "client": "trainer",
            "table": "nodes",
            "field": "embedding",
            "direction": "lookup",
            "num_bytes": 320,
            "num_rows": 5,
        },
    ]
    assert ledger.totals() == {"lookup": Amount(320, 5), "update": Amount(8, 2)}


def test_an_empty_ledger_has_no_rows():
    assert (Ledger().rows(), Ledger().totals()) == ([], {})


def test_merging_ledgers_adds_their_flows():
    first, second = Ledger(), Ledger()
    first.add(LOOKUP, num_bytes=1, num_rows=1)
    second.add(LOOKUP, num_bytes=2, num_rows=1)
    second.add(PUSH, num_bytes=4, num_rows=1)
    first.merge(json.loads(json.dumps(second.rows())))
    assert first.totals() == {"lookup": Amount(3, 2), "push": Amount(4, 1)}


def test_a_ledger_loses_nothing_when_threads_add_at_once():
    ledger = Ledger()
    start = threading.Barrier(8)

    def add() -> None:
        start.wait()
        for _ in range(500):
            ledger.add(LOOKUP, num_bytes=3, num_rows=1)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals() == {"lookup": Amount(12_000, 4_000)}


def test_an_unknown_direction_is_refused():
    with pytest.raises(InvalidInputError, match="'pull'; it must be one of lookup, update, push"):
        Flow("trainer", "nodes", "embedding", "pull")


def test_the_run_record_names_config_commit_versions_and_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ("git", "-c", "user.name=n", "-c", "user.email=e")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run((*git, *command), check=True)
    commit = subprocess.run(
        ("git", "rev-parse", "HEAD"), check=True, capture_output=True, text=True
    ).stdout.strip()
    path = metrics.write_run_record(tmp_path / "run", {"seed": 1, "path": tmp_path})
    record = json.loads(path.read_text())
    assert path == tmp_path / "run" / "run.json"
    assert record["config"] == {"seed": 1, "path": str(tmp_path)}
    assert record["git"] == {"commit": commit, "has_changes": False}
    assert record["versions"]["numpy"] == np.__version__
    assert record["cpu_count"] >= 1


def test_the_run_record_has_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    record = json.loads(metrics.write_run_record(tmp_path, {}).read_text())
    assert record["git"] == {"commit": None, "has_changes": None}
