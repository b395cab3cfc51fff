from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from carls_jax.configs import override, to_dataclass, unknown
from carls_jax.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    delay: int | Literal["once", "never"] = 0
    name: str = "adam"

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate={self.rate}: allowed is above 0")


@dataclass(frozen=True)
class Outer:
    steps: int
    _: KW_ONLY
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    kind: Literal["a", "b"] = "a"
    is_on: bool = False
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    rates: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    anything: Any = None
    made: int = field(default=0, init=False)


def outer(**values: Any) -> Outer:
    return to_dataclass(Outer, {"steps": 1, **values})


def message(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        outer(**values)
    return str(caught.value)


def test_values_become_dataclasses_at_every_depth():
    made = to_dataclass(Outer, {"steps": 3, "inner": {"rate": 0.5}, "maybe": {"name": "sgd"}})
    assert made == Outer(3, inner=Inner(rate=0.5), maybe=Inner(name="sgd"))


def test_a_config_dict_and_a_frozen_one_are_values():
    config = ConfigDict({"steps": 3, "inner": {"rate": 0.5}, "sizes": [1, 2], "counts": {"x": 1}})
    expected = Outer(3, inner=Inner(rate=0.5), sizes=(1, 2), counts={"x": 1})
    assert to_dataclass(Outer, config) == expected
    assert to_dataclass(Outer, FrozenConfigDict(config)) == expected


def test_a_dataclass_that_is_given_is_kept():
    inner = Inner(rate=0.5)
    assert outer(inner=inner).inner is inner
    assert to_dataclass(Inner, inner) is inner


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sizes", [1, 2], (1, 2)),
        ("pair", [1, "x"], (1, "x")),
        ("rates", (1, 0.5), [1.0, 0.5]),
        ("counts", {"x": 2}, {"x": 2}),
        ("maybe", None, None),
        ("is_on", True, True),
        ("anything", [1, {"x": None}], [1, {"x": None}]),
    ],
)
def test_a_value_becomes_what_is_declared(name, value, expected):
    converted = getattr(outer(**{name: value}), name)
    assert converted == expected
    assert type(converted) is type(expected)


def test_an_integer_is_a_float_where_that_is_expected():
    rate = outer(inner={"rate": 1}).inner.rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"steps": 1.0}, "config.steps=1.0: expected int"),
        ({"steps": True}, "config.steps=True: expected int"),
        ({"is_on": 1}, "config.is_on=1: expected bool"),
        ({"kind": "c"}, "config.kind='c': expected 'a' or 'b'"),
        ({"inner": {"rate": "1"}}, "config.inner.rate='1': expected float"),
        ({"inner": {"rate": True}}, "config.inner.rate=True: expected float"),
        ({"inner": {"name": 1}}, "config.inner.name=1: expected str"),
        (
            {"inner": {"delay": "twice"}},
            "config.inner.delay='twice': expected int or 'once' or 'never'",
        ),
        ({"inner": {"delay": False}}, "config.inner.delay=False: expected int or"),
        ({"inner": 3}, "config.inner=3: expected the fields of Inner"),
        ({"inner": None}, "config.inner=None: expected the fields of Inner"),
        ({"maybe": 3}, "config.maybe=3: expected Inner or None"),
        ({"sizes": 3}, "config.sizes=3: expected tuple[int, ...]"),
        ({"sizes": [1, "x"]}, "config.sizes[1]='x': expected int"),
        ({"pair": (1,)}, "config.pair=(1,): expected tuple[int, str]"),
        ({"pair": ("x", 1)}, "config.pair[0]='x': expected int"),
        ({"rates": "12"}, "config.rates='12': expected list[float]"),
        ({"counts": {"x": 1.5}}, "config.counts.x=1.5: expected int"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_place(values, expected):
    assert message(**values).startswith(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"stepz": 1}, "config has no 'stepz'; did you mean 'steps'?"),
        ({"inner": {"rat": 1}}, "config.inner has no 'rat'; did you mean 'rate'?"),
        ({"maybe": {"nam": ""}}, "config.maybe has no 'nam'; did you mean 'name'?"),
        ({"inner": {"xyz": 1}}, "config.inner has no 'xyz'; known are delay, name, rate"),
        ({"made": 1}, "config has no 'made'; did you mean 'maybe'?"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(values, expected):
    assert message(**values) == expected


def test_what_the_dataclass_itself_refuses_is_named_with_its_place():
    assert message(maybe={"rate": -1}) == "config.maybe: rate=-1.0: allowed is above 0"


def test_a_value_without_default_is_needed():
    with pytest.raises(ConfigError, match=r"^config.x needs a value for steps$"):
        to_dataclass(Outer, {}, where="config.x")


def config() -> ConfigDict:
    return ConfigDict(
        {
            "training": {
                "rate": 0.1,
                "steps": 10,
                "name": "adam",
                "is_on": True,
                "sizes": (1, 2),
                "layers": [8],
                "seed": None,
                "limit": placeholder(int),
            }
        }
    )


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("rate=0.5", 0.5),
        ("rate=1", 1.0),
        ("rate=1e-3", 0.001),
        ("steps=20", 20),
        ("name=sgd", "sgd"),
        ("name=12", "12"),
        ("name=None", "None"),
        ("name=a=b", "a=b"),
        ("name=", ""),
        ("is_on=False", False),
        ("is_on=false", False),
        ("is_on=true", True),
        ("sizes=(3,4,5)", (3, 4, 5)),
        ("sizes=[3]", (3,)),
        ("sizes=3,4", (3, 4)),
        ("layers=[16,8]", [16, 8]),
        ("layers=()", []),
        ("seed=3", 3),
        ("seed=none of these", "none of these"),
        ("limit=3", 3),
    ],
)
def test_an_override_is_read_as_the_type_it_replaces(assignment, expected):
    overridden = config()
    override(overridden, [f"training.{assignment}"])
    value = overridden.training[assignment.partition("=")[0]]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.steps=1.5", "config.training.steps='1.5': expected int"),
        ("training.steps=True", "config.training.steps='True': expected int"),
        ("training.steps=many", "config.training.steps='many': expected int"),
        ("training.rate=high", "config.training.rate='high': expected float"),
        ("training.is_on=1", "config.training.is_on='1': expected bool"),
        ("training.sizes=3", "config.training.sizes='3': expected tuple"),
        ("training.limit=x", "config.training.limit='x': expected int"),
        ("training.step=1", "config.training has no 'step'; did you mean 'steps'?"),
        ("traning.steps=1", "config has no 'traning'; did you mean 'training'?"),
        ("training.steps.x=1", "config.training.steps is a value, so it has nothing below it"),
        ("training.seed.x=1", "config.training.seed is a value, so it has nothing below it"),
        ("training=1", "config.training is a section; set a value in it, config.training.NAME"),
        ("training.steps", "'training.steps': write NAME=VALUE"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(assignment, expected):
    overridden = config()
    with pytest.raises(ConfigError) as caught:
        override(overridden, [assignment])
    assert str(caught.value) == expected
    assert overridden.to_dict() == config().to_dict()


def test_the_last_of_two_overrides_counts():
    overridden = config()
    override(overridden, ["training.steps=1", "training.steps=2"])
    assert overridden.training.steps == 2


def test_a_value_that_follows_another_is_overridden_with_it():
    following = ConfigDict({"width": 4})
    following.hidden = following.get_ref("width") * 2
    override(following, ["width=8"])
    assert following.hidden == 16


@pytest.mark.parametrize(
    "given", [{}, {"run": {"inner": {"rate": 0.5}}}, {"run": {"inner": Inner(rate=0.5)}}]
)
def test_overrides_of_a_section_are_of_the_types_that_its_dataclass_declares(given):
    overridden = ConfigDict(given)
    override(
        overridden,
        [
            "run.steps=3",
            "run.inner.delay=once",
            "run.inner.name=12",
            "run.is_on=true",
            "run.sizes=[1,2]",
            "run.counts.x=2",
        ],
        sections=("run",),
    )
    rate = 0.5 if given else 0.1
    assert to_dataclass(Outer, overridden.run) == Outer(
        3,
        inner=Inner(rate=rate, delay="once", name="12"),
        is_on=True,
        sizes=(1, 2),
        counts={"x": 2},
    )


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("run.inner.delay=x", "run.inner.delay='x': expected int or 'once' or 'never'"),
        ("run.inner.rat=1", "run.inner has no 'rat'; did you mean 'rate'?"),
        ("run.inner=1", "run.inner='1': expected Inner"),
        ("run.inner.rate=0", "run.inner: rate=0.0: allowed is above 0"),
    ],
)
def test_an_override_that_does_not_fit_a_section_is_refused_by_its_dataclass(assignment, expected):
    overridden = ConfigDict({"run": {"steps": 1}})
    override(overridden, [assignment], sections=("run",))
    with pytest.raises(ConfigError) as caught:
        to_dataclass(Outer, overridden.run, where="run")
    assert str(caught.value) == expected


def test_a_name_that_is_like_no_other_is_answered_with_all():
    assert unknown("x", ["b", "a"], where="here") == "here has no 'x'; known are a, b"
