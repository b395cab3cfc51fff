from __future__ import annotations

import json

import numpy as np
import pytest

from carls_jax.bench.report import Report


@pytest.fixture
def report() -> Report:
    report = Report("lookup", "How long does it take?", notes=["A note."])
    report.add("8 rows", {"limit": np.array([1.0, 2.0, 3.0]), "bank": np.array([4.0, 6.0, 11.0])})
    report.add("memory", {"bank": 2560.0}, unit="bytes")
    return report


def test_a_result_sums_up_its_samples(report):
    bank = report.results[1]
    assert (bank.work, bank.what, bank.unit, bank.num) == ("8 rows", "bank", "ms", 3)
    assert (bank.median, bank.longest) == (6.0, 11.0)
    np.testing.assert_allclose((bank.p10, bank.p90), (4.4, 10.0))


def test_ratios_are_to_the_first_contestant_of_the_work(report):
    assert [one.ratio for one in report.results] == [1.0, 3.0, None]


def test_few_samples_have_no_99th_percentile(report):
    report.add("many", {"bank": np.arange(101.0)})
    assert [one.p99 for one in report.results] == [None, None, None, 99.0]


def test_the_table_has_a_line_for_each_result(report):
    lines = report.to_markdown().splitlines()
    assert lines[:3] == ["# lookup", "", "How long does it take?"]
    assert "| 8 rows | bank | ms | 6.00 | 4.40–10.0 |  | 11.0 | 3 | 3.00 |" in lines
    assert "| memory | bank | bytes | 2,560 |  |  |  | 1 |  |" in lines
    assert "- A note." in lines


def test_the_table_ends_with_the_machine_and_the_commit(report):
    last = report.to_markdown().splitlines()[-1]
    assert str(report.machine["commit"]) in last
    assert f"{report.machine['num_cores']} cores" in last


def test_the_line_of_json_holds_everything(report):
    line = report.to_json()
    assert "\n" not in line
    read = json.loads(line)
    assert read["name"] == "lookup"
    assert read["results"][1]["median"] == 6.0
    assert read["machine"] == report.machine


def test_the_plot_has_a_panel_for_each_unit(report, tmp_path):
    report.plot(tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f"<!-- {label}" in drawn for label in ("ms (median", "bytes (median", "limit"))
