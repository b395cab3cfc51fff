from __future__ import annotations

import numpy as np
import pytest

from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import METADATA, Rows
from carls_jax.bank.showing import value_text
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import FieldNotFoundError, InvalidInputError

ROWS = Rows(
    keys=np.array([3, 1]),
    values={"x": np.array([[1, 2], [0, 0]], np.float32), "n": np.array([7, 0])},
    found=np.array([True, False]),
    present={"x": np.array([True, False]), "n": np.array([True, False])},
    metadata={"step": {"x": np.array([5, -1]), "n": np.array([6, -1])}},
)


def test_values_and_metadata_are_read_by_field() -> None:
    assert ROWS["x"][0].tolist() == [1.0, 2.0]
    assert ROWS.step["n"].tolist() == [6, -1]
    assert dict(ROWS.step) == ROWS.metadata["step"]
    assert (list(ROWS.step), len(ROWS.step)) == (["x", "n"], 2)


def test_a_field_that_was_not_read_is_told() -> None:
    with pytest.raises(FieldNotFoundError, match="did not ask for field 'y', only x, n"):
        ROWS["y"]
    with pytest.raises(FieldNotFoundError, match="did not ask for field 'y', only x, n"):
        ROWS.step["y"]


@pytest.mark.parametrize("kind", [kind for kind in METADATA if kind != "step"])
def test_metadata_that_were_not_read_are_told(kind: str) -> None:
    metadata = getattr(ROWS, kind)
    with pytest.raises(
        InvalidInputError, match=rf"rows.{kind} was not looked up.*metadata=\('{kind}',\)"
    ):
        metadata["x"]
    assert (list(metadata), len(metadata)) == ([], 0)
    assert repr(metadata) == f"<{kind}: not looked up>"


# How they are shown


def test_rows_show_their_shape_and_not_their_numbers() -> None:
    assert repr(ROWS) == "<Rows 2 keys, 1 found: x float32[2, 2], n int64[2]>"
    assert repr(ROWS.step) == "<step of x, n>"


def test_a_notebook_shows_the_first_rows() -> None:
    html = ROWS._repr_html_()
    titles = "".join(f"<th>{title}</th>" for title in ("key", "x", "x step", "n", "n step"))
    cells = "".join(f"<td>{cell}</td>" for cell in ("3", "[1 2]", "5", "7", "6"))
    missing = "".join(f"<td>{cell}</td>" for cell in ("1", "—", "-1", "—", "-1"))
    assert html == (
        "<p>&lt;Rows 2 keys, 1 found: x float32[2, 2], n int64[2]&gt;</p>"
        f"<table><tr>{titles}</tr><tr>{cells}</tr><tr>{missing}</tr></table>"
    )


def test_a_notebook_shows_rows_of_several_sources() -> None:
    with LocalBank(source="me") as bank:
        table = bank.table(TableSpec("said", {"x": Field()}, per_source=True))
        for source in ("bob", "me"):
            table.update(range(20), {"x": np.arange(20)}, source=source)
        rows = table.lookup(range(20), metadata=())
        assert repr(rows) == "<Rows 20 keys of 2 sources, 40 found: x float32[20, 2]>"
        html = rows._repr_html_()
        assert "<tr><td>1</td><td>bob</td><td>1</td></tr>" in html
        assert html.count("<tr>") == 1 + 10


def test_a_notebook_shows_a_tables_fields() -> None:
    adam = optimizer("adam", learning_rate=0.1)
    spec = TableSpec("nodes", {"z": Field((2,), optimizer=adam, group="g")}, keys="str")
    with LocalBank() as bank:
        table = bank.table(spec)
        html = table._repr_html_()
        assert repr(table) == "<Table 'nodes' fields=['z'] keys=str>"
    assert "table nodes, str keys" in html
    assert "<td>z</td><td>(2,)</td><td>float32</td><td>Constant(value=0)</td><td>adam</td>" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.123456), "0.1235"),
        (np.arange(3), "[0 1 2]"),
        (np.ones((2, 5)), "[1 1 1 1 1 1 …]"),
        (np.array([True, False]), "[1 0]"),
    ],
)
def test_a_value_is_shown_by_its_first_numbers(value: np.ndarray, text: str) -> None:
    assert value_text(value) == text
