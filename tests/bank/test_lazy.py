from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.changes import Keys
from carls_jax.bank.connect import connect
from carls_jax.bank.lazy import Lazy
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import Rows
from carls_jax.bank.server import BankServer
from carls_jax.bank.specs import Field, TableSpec
from carls_jax.errors import ConfigError, InvalidInputError, SpecMismatchError

SGD = optimizer("sgd", learning_rate=1.0)


def table(**more: Any) -> TableSpec:
    return TableSpec("t", {"x": Field((2,), optimizer=SGD, **more)})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_wait_s": 0}, r"max_wait_s=0; allowed is a finite float32 number in \(0, inf\)"),
        ({"max_wait_s": None}, "max_wait_s=None"),
        ({"max_wait_s": "10"}, "max_wait_s='10'"),
        ({"max_wait_s": float("inf")}, "max_wait_s=inf"),
        ({"combine": "median"}, "combine='median'; allowed is 'mean' or 'sum'"),
        ({"combine": None}, "combine=None"),
        ({"clip_row_norm": -1.0}, "clip_row_norm=-1.0"),
        ({"reject_above": 0.5}, r"reject_above=0.5; allowed is a finite .* \[1, inf\)"),
    ],
)
def test_refuses_what_cannot_work(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"Lazy: {says}"):
        Lazy(**given)


def test_is_part_of_a_spec_in_json() -> None:
    lazy = Lazy(max_wait_s=2, combine="sum", clip_row_norm=3.0, reject_above=4)
    spec = table(lazy=lazy)
    assert TableSpec.from_dict(spec.to_dict()) == spec
    assert spec.to_dict()["fields"]["x"]["lazy"] == {
        "max_wait_s": 2.0,
        "combine": "sum",
        "clip_row_norm": 3.0,
        "reject_above": 4.0,
    }
    assert spec.lazy_fields == ("x",)
    assert table().lazy_fields == ()


def test_whether_a_field_is_lazy_belongs_to_a_table_and_how_does_not() -> None:
    table(lazy=Lazy()).check_agrees(table(lazy=Lazy(combine="sum", reject_above=2.0)))
    with pytest.raises(SpecMismatchError, match="lazy: given True, existing False"):
        table(lazy=Lazy()).check_agrees(table())


def test_a_lazy_field_needs_an_optimizer_and_metadata_of_its_own() -> None:
    with pytest.raises(InvalidInputError, match="lazy=True"):
        Field(optimizer=SGD, lazy=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="needs an optimizer"):
        Field(lazy=Lazy())
    fields = {
        "a": Field(optimizer=SGD, lazy=Lazy(), group="g"),
        "b": Field(optimizer=SGD, group="g"),
    }
    with pytest.raises(InvalidInputError, match=r"fields a, b of group 'g'.*lazy"):
        TableSpec("t", fields)
    assert TableSpec("t", {"a": fields["a"]}).groups == {"g": ("a",)}


class CountingBank(LocalBank):
    """Counts the lookups that it is asked for."""

    num_lookups = 0

    def lookup(self, request: pb.Lookup, keys: Keys) -> Rows:
        self.num_lookups += 1
        return super().lookup(request, keys)


def test_a_reader_on_the_same_machine_asks_the_server_only_while_gradients_wait(
    tmp_path: Path,
) -> None:
    address, spec = f"unix:{tmp_path}/s", table(lazy=Lazy(max_wait_s=1e6))
    with CountingBank() as bank, BankServer(bank, address), connect(address) as client:
        rows = client.table(spec)
        asked = []
        for gradients in ([], [1.0], [], [2.0, 4.0], []):
            for gradient in gradients:
                rows.push([5], {"x": [[gradient, gradient]]})
            rows.lookup([5, 6])
            rows.lookup([6])  # nobody pushed to it
            asked.append(bank.num_lookups)
        assert asked == [0, 1, 1, 2, 2]
        assert rows.lookup([5])["x"].tolist() == [[-4.0, -4.0]]
