"""What is remembered is what was seen last, whatever else was; and it stays within its bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from carls_jax.bank import Field, Rows, TableSpec, requests
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.training.away.last_seen import LastSeen, blank_rows

MIB = 1 << 20
SPEC = TableSpec("t", {"x": Field((2,)), "y": Field(dtype="int64")})
WIDE = TableSpec("wide", {"x": Field((256,))})
OPINIONS = TableSpec("opinions", {"p": Field()}, per_source=True)


def request(spec: TableSpec, **asked: Any) -> pb.Lookup:
    return requests.lookup(spec, me="me", **asked)


def answer(spec: TableSpec, asked: pb.Lookup, told: dict[int, float | None]) -> Rows:
    """Returns rows whose every number is the one told for the key; None: not found."""
    rows = blank_rows(spec, asked, np.array([*told], np.int64))
    for place, number in enumerate(told.values()):
        if number is not None:
            rows.found[place] = True
            for name in rows.values:
                rows.values[name][place] = number
                rows.present[name][place] = True
                rows.metadata["step"][name][place] = int(number)
    return rows


Sightings = st.lists(
    st.dictionaries(st.integers(-1, 30), st.none() | st.integers(0, 1000), min_size=1), max_size=12
)


@given(sightings=Sightings, asked=st.lists(st.integers(-1, 40), min_size=1, max_size=40))
@settings(deadline=None)
def test_the_last_sighting_of_each_key_counts(
    sightings: list[dict[int, float | None]], asked: list[int]
) -> None:
    seen, about = LastSeen(max_bytes=MIB), request(SPEC)
    expected: dict[int, tuple[float, int]] = {}
    for number, told in enumerate(sightings):
        rows = answer(SPEC, about, {key: None if key == -1 else one for key, one in told.items()})
        seen.remember(about, rows, as_of=number)
        for key, one in told.items():
            expected.pop(key, None)
            if one is not None and key != -1:
                expected[key] = (one, number)
    rows = seen.recall(SPEC, about, np.array(asked))
    assert_array_equal(rows.keys, asked)
    for place, key in enumerate(asked):
        value, number = expected.get(key, (0, -1))
        assert rows.found[place] == (key in expected)
        assert_array_equal(rows["x"][place], [value, value])
        assert rows["y"][place] == value
        assert rows.present["y"][place] == (key in expected)
        assert rows.step["y"][place] == (value if key in expected else -1)
        if key in expected:
            assert rows.as_of[place] == number


def test_kinds_of_lookups_are_apart() -> None:
    seen = LastSeen(max_bytes=MIB)
    both, one, bare = request(SPEC), request(SPEC, fields=("x",)), request(SPEC, metadata=())
    seen.remember(both, answer(SPEC, both, {1: 5}), as_of=0)
    assert seen.recall(SPEC, both, np.array([1])).found.all()
    assert not seen.recall(SPEC, one, np.array([1])).found.any()
    assert seen.recall(SPEC, bare, np.array([1])).metadata == {}
    # Whatever step the reader is at, and however old the rows may be, the kind is the same.
    later = request(SPEC, now=9, max_age_steps=3)
    assert seen.recall(SPEC, later, np.array([1])).found.all()


def test_it_stays_within_its_bytes_and_keeps_the_newest() -> None:
    seen, about = LastSeen(max_bytes=4 * MIB), request(WIDE)
    for start in range(0, 20_000, 500):
        seen.remember(
            about, answer(WIDE, about, dict.fromkeys(range(start, start + 500), start)), as_of=0
        )
        assert seen.num_bytes <= 4 * MIB
    found = seen.recall(WIDE, about, np.arange(20_000)).found
    # A row takes somewhat more than 1 KiB; up to 1 in 16 of the bytes is free.
    assert 3400 < found.sum() <= 4096
    assert found[-3400:].all()


def test_a_lookup_that_is_larger_than_all_of_it_leaves_its_last_rows() -> None:
    seen, about = LastSeen(max_bytes=MIB), request(WIDE)
    seen.remember(about, answer(WIDE, about, dict.fromkeys(range(3000), 1)), as_of=0)
    assert seen.num_bytes <= MIB
    assert seen.recall(WIDE, about, np.arange(2900, 3000)).found.all()


def test_nothing_may_be_remembered_at_all() -> None:
    seen, about = LastSeen(max_bytes=0), request(SPEC)
    seen.remember(about, answer(SPEC, about, {1: 5}), as_of=0)
    assert seen.num_bytes == 0
    assert not seen.recall(SPEC, about, np.array([1])).found.any()


def test_rows_that_are_given_out_are_the_callers_own() -> None:
    seen, about = LastSeen(max_bytes=MIB), request(SPEC)
    rows = answer(SPEC, about, {1: 5, 2: 6})
    seen.remember(about, rows, as_of=0)
    rows.values["x"][:] = 0
    seen.recall(SPEC, about, np.array([1]))["x"][:] = 0
    assert_array_equal(seen.recall(SPEC, about, np.array([2, 1]))["x"], [[6, 6], [5, 5]])


def of_authors(asked: pb.Lookup, sources: tuple[str, ...], key: int, values: list[float]) -> Rows:
    rows = blank_rows(OPINIONS, asked, np.array([key]), sources=sources)
    rows.values["p"][0] = values
    rows.found[0] = rows.present["p"][0] = np.array(values) > 0
    return rows


def test_rows_of_several_authors_are_remembered_with_them() -> None:
    seen, about = LastSeen(max_bytes=MIB), request(OPINIONS)
    seen.remember(about, of_authors(about, ("a",), 1, [2.0]), as_of=0)
    seen.remember(about, of_authors(about, ("a", "b"), 2, [0.0, 3.0]), as_of=0)
    rows = seen.recall(OPINIONS, about, np.array([2, 1, -1]))
    assert rows.sources == ("a", "b")
    assert_array_equal(rows["p"], [[0, 3], [2, 0], [0, 0]])
    assert_array_equal(rows.found, [[False, True], [True, False], [False, False]])


@pytest.mark.parametrize("kind", ["version", "step", "updated_at", "source", "clock"])
def test_blank_rows_have_all_metadata(kind: str) -> None:
    about = request(SPEC, metadata=(kind,))
    rows = blank_rows(SPEC, about, np.array([1, 2]))
    assert (
        rows.metadata[kind]["y"].tolist()
        == [{"step": -1, "source": "", "clock": ""}.get(kind, 0)] * 2
    )
