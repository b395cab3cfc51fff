from __future__ import annotations

import re

import numpy as np
import pytest

import carls_jax as carls
from carls_jax.errors import InvalidInputError, KeyNotFoundError, TableNotFoundError
from carls_jax.launch.explaining import explain

WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def bank():
    with carls.LocalBank(source="maker/0") as bank:
        yield bank


def test_each_field_is_told_with_its_author_step_and_time(bank):
    table = bank.table(
        carls.TableSpec("nodes", {"label": carls.Field((3,)), "degree": carls.Field(dtype="int64")})
    )
    table.update([7], {"label": [[0.25, 0.5, 0.25]]}, step=40)
    lines = explain(bank, "nodes", "7").splitlines()
    assert lines[0] == "row 7 of table 'nodes'"
    assert re.fullmatch(
        r"  label = \[0.25 0.5 0.25\] peak at 1  "
        rf"\(version 1 by maker/0 from step 40, {WHEN}\)",
        lines[1],
    )
    assert lines[2] == "  degree = 0  (initial value, never written)"


def test_only_a_distribution_has_a_peak(bank):
    table = bank.table(carls.TableSpec("nodes", {"x": carls.Field((3,))}))
    table.update([1, 2], {"x": [[0.5, 0.25, 0.125], [1.5, -0.25, -0.25]]})
    assert "x = [0.5 0.25 0.125]  (" in explain(bank, "nodes", "1")
    assert "x = [1.5 -0.25 -0.25]  (" in explain(bank, "nodes", "2")


def test_history_is_told_newest_first(bank):
    table = bank.table(carls.TableSpec("nodes", {"score": carls.Field(history=3)}))
    for step in (10, 20, 30, 40, 50):
        table.update([7], {"score": [step / 10]}, step=step)
    shown = re.findall(r"(\S+) (\d+)  \(version (\d)", explain(bank, "nodes", "7"))
    assert shown == [("=", "5", "5"), ("was", "4", "4"), ("was", "3", "3")]


def test_a_string_key_and_a_negative_one_are_found(bank):
    words = bank.table(carls.TableSpec("words", {"length": carls.Field()}, keys="str"))
    words.update(["two words"], {"length": [9]})
    assert "length = 9  (version 1 by maker/0 from no step, " in explain(bank, "words", "two words")
    nodes = bank.table(carls.TableSpec("nodes", {"score": carls.Field()}))
    nodes.update([-7], {"score": [1]})
    assert explain(bank, "nodes", "-7").startswith("row -7 of table 'nodes'\n  score = 1 ")


def test_a_long_value_is_cut(bank):
    table = bank.table(carls.TableSpec("nodes", {"ids": carls.Field((10,), dtype="int64")}))
    table.update([1], {"ids": [np.arange(10)]}, source="")
    told = explain(bank, "nodes", "1")
    assert "ids = [0 1 2 3 4 5 6 7 …]  (version 1 by somebody without a name" in told


def test_each_author_of_a_per_source_table_is_told(bank):
    spec = carls.TableSpec("messages", {"text": carls.Field(history=2)}, per_source=True)
    table = bank.table(spec)
    table.update([1], {"text": [1]}, source="a", step=1)
    table.update([1], {"text": [2]}, source="a", step=2)
    table.update([1], {"text": [3]}, source="b", step=3)
    table.update([2], {"text": [4]}, source="c", step=4)
    lines = [line.partition("  (")[0] for line in explain(bank, "messages", "1").splitlines()]
    assert lines == [
        "row 1 of table 'messages'",
        "  by a:",
        "  text = 2",
        "    was 1",
        "  by b:",
        "  text = 3",
    ]


def test_what_is_not_there_is_named(bank):
    bank.table(carls.TableSpec("nodes", {"score": carls.Field()})).update([1, 2], {"score": [0, 0]})
    with pytest.raises(TableNotFoundError, match="no table 'node'; this bank has nodes"):
        explain(bank, "node", "1")
    with pytest.raises(KeyNotFoundError, match="table 'nodes' has no row 3; it has 2 rows"):
        explain(bank, "nodes", "3")
    with pytest.raises(InvalidInputError, match="key='one': the table has integer keys"):
        explain(bank, "nodes", "one")
    assert len(bank.table("nodes")) == 2  # asking creates no row
