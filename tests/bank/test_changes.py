from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from carls_jax.bank import changes
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Change, author, check_author, spec_of
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import InvalidInputError

KEYS = np.array([1, 2])
SPEC = TableSpec("t", {"x": Field((3,))})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (changes.create_table(SPEC), "create_table"),
        (changes.create_rows("t", KEYS, by=author()), "create_rows"),
        (changes.update("t", KEYS, {}, by=author()), "update"),
        (changes.push("t", KEYS, {}, by=author()), "push"),
        (changes.delete("t", KEYS, by=author()), "delete"),
        (changes.advance(by=author(step=3)), "advance"),
        (Change(pb.Change(table="t")), "None"),
    ],
)
def test_a_change_knows_its_kind(change: Change, kind: str) -> None:
    assert change.kind == kind


def test_a_copy_shares_nothing_and_is_stamped() -> None:
    keys, values = KEYS.copy(), np.ones((2, 3))
    change = changes.update("t", keys, {"x": values.T[::-1].T}, by=author(step=4))

    copy = change.copy(updated_at=12.5)
    keys[:], values[:] = 9, 9
    change.header.table = "other"

    assert copy.header.table == "t"
    assert copy.header.author == author(step=4, updated_at=12.5)
    assert change.header.author.updated_at == 0
    assert_array_equal(copy.keys, KEYS)
    assert_array_equal(copy.values["x"], np.ones((2, 3)))
    assert copy.values["x"].flags.c_contiguous


def test_an_array_that_nobody_can_alter_is_not_copied() -> None:
    fixed, seen_through = np.ones((2, 3)), np.ones((2, 3))
    for array in (fixed, view := seen_through[:]):
        array.flags.writeable = False
    copy = changes.update("t", KEYS, {"x": fixed, "y": view}, by=author()).copy(updated_at=1.0)
    seen_through[:] = 7
    assert copy.values["x"] is fixed
    assert_array_equal(copy.values["y"], np.ones((2, 3)))


def test_a_copy_keeps_the_time_that_its_author_gave() -> None:
    change = changes.advance(by=author(step=1, updated_at=7.0))
    assert change.copy(updated_at=12.5).header.author.updated_at == 7.0


# Authors


def test_an_author_has_no_step_and_the_main_clock_by_default() -> None:
    assert author() == pb.Author(step=-1, clock="main", source="", updated_at=0.0)
    assert author(step=np.int32(5)).step == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"step": -2}, "step=-2: allowed are integers from 0, or -1"),
        ({"step": 1.5}, "step=1.5"),
        ({"step": True}, "step=True"),
        ({"step": 1 << 63}, "step=9223372036854775808"),
        ({"clock": ""}, "clock=''"),
        ({"clock": 3}, "clock=3"),
        ({"source": "a b"}, "source='a b'"),
        ({"source": None}, "source=None"),
        ({"updated_at": -1.0}, "updated_at=-1.0: allowed are seconds since the epoch"),
        ({"updated_at": float("nan")}, "updated_at=nan"),
        ({"updated_at": float("inf")}, "updated_at=inf"),
    ],
)
def test_an_author_that_cannot_be_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        author(**arguments)


@pytest.mark.parametrize(
    ("by", "text"),
    [
        (pb.Author(), "clock=''"),
        (pb.Author(step=-2, clock="main"), "step=-2"),
        (pb.Author(clock="main", source="/"), "source='/'"),
        (pb.Author(clock="main", updated_at=float("nan")), "updated_at=nan"),
    ],
)
def test_what_a_client_says_it_is_is_checked(by: pb.Author, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        check_author(by)


# Specs


def test_a_table_travels_as_text() -> None:
    assert spec_of(changes.create_table(SPEC)) == SPEC


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "describes no TableSpec"),
        ("[1]", "describes no TableSpec"),
        ("{}", "describes no TableSpec: KeyError"),
        ('{"name": "t", "fields": {"x": 3}}', "describes no TableSpec"),
        ('{"name": "t", "fields": {}, "color": 1}', "describes no TableSpec.*color"),
        ('{"name": "t", "fields": {}}', "1 to 256 fields"),
    ],
)
def test_a_text_that_describes_no_table_is_refused(text: str, told: str) -> None:
    header = pb.Change(table="t", create_table=pb.CreateTable(spec_json=text))
    with pytest.raises(InvalidInputError, match=told):
        spec_of(Change(header))


def test_a_table_is_made_under_its_own_name() -> None:
    change = changes.create_table(SPEC)
    change.header.table = "u"
    with pytest.raises(InvalidInputError, match="table='u': the spec is of table 't'"):
        spec_of(change)
