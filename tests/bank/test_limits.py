from __future__ import annotations

from typing import Any

import pytest

from carls_jax.bank.limits import Limit
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import ConfigError, InvalidInputError


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "limits nothing: give max_rows, max_bytes, ttl_s or admit_after"),
        ({"evict": "lowest_count", "log": True}, "limits nothing"),
        ({"max_rows": 0}, "max_rows=0; allowed is a whole number of at least 1"),
        ({"max_rows": 2.5}, "max_rows=2.5"),
        ({"max_bytes": -1}, "max_bytes=-1"),
        ({"max_rows": 5, "evict": "random"}, "evict='random'; allowed is 'least_recent' or"),
        ({"ttl_s": 0}, "ttl_s=0"),
        ({"ttl_s": float("nan")}, "ttl_s=nan"),
        ({"admit_after": 0}, "admit_after=0; allowed is a whole number from 1 to 255"),
        ({"admit_after": 256}, "admit_after=256"),
        ({"max_rows": 5, "log": 1}, "log=1; allowed is True or False"),
    ],
)
def test_a_limit_that_cannot_work_says_why(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Limit(**arguments)


def test_rows_and_bytes_both_count() -> None:
    assert Limit(max_rows=10).num_rows(100) == 10
    assert Limit(max_bytes=950).num_rows(100) == 9
    assert Limit(max_rows=3, max_bytes=950).num_rows(100) == 3
    assert Limit(ttl_s=1.0).num_rows(100) is None
    with pytest.raises(ConfigError, match="max_bytes=99; a row takes 100 bytes"):
        Limit(max_bytes=99).num_rows(100)


def test_a_spec_keeps_its_limit_and_is_not_another_table_by_it() -> None:
    limit = Limit(max_bytes=1000, evict="oldest_step", ttl_s=2.5, admit_after=3, log=True)
    spec = TableSpec("t", {"x": Field()}, limit=limit)
    assert TableSpec.from_dict(spec.to_dict()) == spec
    plain = TableSpec("t", {"x": Field()})
    assert TableSpec.from_dict(plain.to_dict()).limit is None
    spec.check_agrees(plain)
    described = plain.to_dict()
    del described["limit"]  # as older versions wrote it
    assert TableSpec.from_dict(described) == plain


def test_a_spec_takes_no_limit_beyond_its_rows() -> None:
    with pytest.raises(InvalidInputError, match="at most the table's max_rows"):
        TableSpec("t", {"x": Field()}, max_rows=10, limit=Limit(max_rows=11))
    with pytest.raises(InvalidInputError, match="give a Limit"):
        TableSpec("t", {"x": Field()}, limit=10)  # type: ignore[arg-type]
