"""Every benchmark runs, in a setting of seconds, and what it gives is well-formed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from carls_jax.bench import BENCHMARKS, redis_peer
from carls_jax.cli import main

# A work of each, and contestants that it has on every machine.
EXPECTED = {
    "lookup": ("64 rows", ["np.take", "LocalBank", "RemoteBank, unix socket"]),
    "size": ("of 2,000", ["np.take", "RemoteBank, unix socket"]),
    "update": ("64 rows", ["NumPy", "LocalBank", "RemoteBank, unix socket"]),
    "push": ("64 rows", ["NumPy", "LocalBank", "RemoteBank, unix socket"]),
    "pipeline": ("time", ["rows on the device", "look-ahead", "looked up before the step"]),
    "neighbors": ("2 per example", ["looked up in the bank", "encoded in the step"]),
    "concurrency": ("clients", ["1 at once", "2 at once"]),
    "memory": ("with AdaGrad", ["the numbers alone", "bank server"]),
    "growth": ("lookup", ["at rest", "rows are overwritten", "rows are added"]),
    "limits": ("push", ["no limit", "least_recent", "lowest_count", "oldest_step"]),
    "snapshot": ("lookup", ["at rest", "while a snapshot is written"]),
    "journal": ("1 × 64 × 8", ["off", "process"]),
    "recovery": ("journal", ["its files, read", "LocalBank"]),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_gives_a_table_a_line_of_json_and_a_plot(name, tmp_path, capsys):
    record, plot = tmp_path / "results.jsonl", tmp_path / "plot.png"
    assert main(["bench", name, "--quick", "--json", str(record), "--plot", str(plot)]) == 0
    (line,) = record.read_text().splitlines()
    results = json.loads(line)["results"]
    work, expected = EXPECTED[name]
    found = [one["what"] for one in results if one["work"] == work]
    assert found[: len(expected)] == expected
    for one in results:
        figures = [one[key] for key in ("p10", "median", "p90", "longest")]
        assert one["num"] >= 1
        assert np.isfinite(figures).all()
        assert figures == sorted(figures)
        # A server is not asked for rows that its clients read in its memory.
        assert figures[0] > 0 or one["work"] == "CPU time of the server"
    table = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert len(table) == len(results) + 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_a_file_the_line_of_json_is_printed(capsys):
    assert main(["bench", "concurrency", "--quick"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "concurrency"


def test_lines_are_added_to_those_of_earlier_runs(tmp_path):
    record = tmp_path / "results.jsonl"
    record.write_text("{}\n")
    assert main(["bench", "concurrency", "--quick", "--json", str(record)]) == 0
    first, second = record.read_text().splitlines()
    assert first == "{}"
    assert json.loads(second)["name"] == "concurrency"


def test_a_benchmark_that_is_unknown_is_refused_and_the_others_are_told(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "lookups"])
    assert "lookup" in capsys.readouterr().err


def test_without_redis_it_is_left_out_and_that_is_told(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", "lookup", "--quick"]) == 0
    told = capsys.readouterr().out
    assert redis_peer.MISSING in told
    assert f"| {redis_peer.NAME} |" not in told
