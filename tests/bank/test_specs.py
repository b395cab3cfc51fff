from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from carls_jax.bank.initializers import constant, normal, uniform
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.schedules import schedule
from carls_jax.bank.specs import DTYPES, MAX_FIELDS, Field, TableSpec, check_name
from carls_jax.errors import (
    DtypeError,
    FieldNotFoundError,
    InvalidInputError,
    ShapeError,
    SpecMismatchError,
)

SGD = optimizer("sgd", learning_rate=0.1)
FULL = TableSpec(
    "graph/nodes",
    fields={
        "embedding": Field((2, 3), init=normal(0.1), optimizer=SGD),
        "label": Field((7,), group="labels", history=4),
        "confidence": Field((), dtype="float64", init=constant(0.5), group="labels"),
        "neighbors": Field((10,), dtype="int64"),
    },
    keys="str",
    per_source=True,
    seed=3,
    max_rows=1000,
)


# Names


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 64, "runs/3/nodes", "a/" * 127 + "a"])
def test_names_are_letters_digits_and_a_few_marks_joined_by_slashes(name: str) -> None:
    assert check_name(name, argument="label") == name


@pytest.mark.parametrize(
    "name", ["", "a b", "ä", "a//b", "/a", "a/", "x" * 65, "a\n", "a/" * 128 + "a", 3, None]
)
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidInputError, match=r"label=.*1 to 64 of the characters") as raised:
        check_name(name, argument="label")
    assert repr(name)[:40] in str(raised.value)


# Fields


def test_a_field_is_a_single_float32_by_default() -> None:
    assert (Field().shape, Field().dtype, Field().row_bytes) == ((), "float32", 4)
    assert Field((3, 4), dtype="int64").row_bytes == 96


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("float32"), "float32"])
def test_a_dtype_may_be_numpys(dtype: Any) -> None:
    assert Field(dtype=dtype) == Field(dtype="float32")


def test_sizes_may_be_numpy_integers() -> None:
    assert Field((np.int32(3),)).shape == (3,)  # type: ignore[arg-type]


BAD_FIELDS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown dtype": ({"dtype": "float16"}, DtypeError, "'float16'.*float32, float64"),
    "no dtype at all": ({"dtype": 3}, DtypeError, "dtype=3"),
    "shape of one size": ({"shape": 3}, ShapeError, r"such as \(3,\)"),
    "size of zero": ({"shape": (3, 0)}, ShapeError, r"\(3, 0\).*positive"),
    "half a size": ({"shape": (1.5,)}, ShapeError, "positive integers"),
    "too many sizes": ({"shape": (1,) * 9}, ShapeError, "at most 8"),
    "too large": ({"shape": (1 << 23,)}, ShapeError, "33554432 bytes.*allowed are 16777216"),
    "number as initializer": ({"init": 0.5}, InvalidInputError, r"init=0.5.*constant\(0.5\)"),
    "random integers": ({"init": uniform(0, 1), "dtype": "int32"}, DtypeError, "float dtype"),
    "optimizer by name": ({"optimizer": "sgd"}, InvalidInputError, r"'sgd'.*optimizer\("),
    "integer gradients": ({"optimizer": SGD, "dtype": "int32"}, DtypeError, "float32 or float64"),
    "long history": ({"history": 1025}, InvalidInputError, "1025.*0 to 1024"),
    "negative history": ({"history": -1}, InvalidInputError, r"Field\(history\)=-1"),
    "bad group": ({"group": "a b"}, InvalidInputError, "'a b'"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_work_is_refused(name: str) -> None:
    arguments, error, text = BAD_FIELDS[name]
    with pytest.raises(error, match=text):
        Field(**arguments)


# Tables


BAD_TABLES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "bad name": ({"name": "a b"}, InvalidInputError, r"TableSpec\(name\)='a b'"),
    "other keys": ({"keys": "float"}, InvalidInputError, "'float'.*'int' and 'str'"),
    "no rows": ({"max_rows": 0}, InvalidInputError, r"max_rows\)=0.*1 to 2147483647"),
    "too many rows": ({"max_rows": 1 << 31}, InvalidInputError, "max_rows"),
    "half a row": ({"max_rows": 1e6}, InvalidInputError, "1000000.0"),
    "negative seed": ({"seed": -1}, InvalidInputError, r"seed\)=-1"),
    "no fields": ({"fields": {}}, InvalidInputError, "1 to 256 fields"),
    "a list of fields": ({"fields": ["x"]}, InvalidInputError, r"by name, not \['x'\]"),
    "too many fields": (
        {"fields": {f"f{i}": Field() for i in range(MAX_FIELDS + 1)}},
        InvalidInputError,
        "1 to 256 fields",
    ),
    "no field": ({"fields": {"x": (3,)}}, InvalidInputError, r"'x'.*\(3,\).*is not a Field"),
    "bad field name": ({"fields": {"a b": Field()}}, InvalidInputError, "'a b'"),
    "group named as a field outside": (
        {"fields": {"x": Field(), "y": Field(group="x")}},
        InvalidInputError,
        "group 'x' has the name of a field",
    ),
    "group half with optimizer": (
        {"fields": {"x": Field(group="g", optimizer=SGD), "y": Field(group="g")}},
        InvalidInputError,
        "x, y of group 'g' are pushed together",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_cannot_work_is_refused(name: str) -> None:
    arguments, error, text = BAD_TABLES[name]
    with pytest.raises(error, match=text):
        TableSpec(**{"name": "t", "fields": {"x": Field()}, **arguments})


def test_a_field_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(FieldNotFoundError, match="no field 'x'; it has embedding, label"):
        FULL.field("x")


def test_fields_belong_to_their_group_or_to_themselves() -> None:
    assert FULL.group_of("label") == "labels"
    assert FULL.groups == {
        "embedding": ("embedding",),
        "labels": ("label", "confidence"),
        "neighbors": ("neighbors",),
    }


def test_a_group_may_have_the_name_of_a_field_in_it() -> None:
    spec = TableSpec("t", {"x": Field(group="x"), "y": Field(group="x")})
    assert spec.groups == {"x": ("x", "y")}


def test_a_spec_cannot_be_altered_from_outside() -> None:
    fields = {"x": Field()}
    spec = TableSpec("t", fields)
    fields["y"] = Field()
    assert list(spec.fields) == ["x"]
    with pytest.raises(TypeError):
        spec.fields["z"] = Field()  # type: ignore[index]


def test_a_spec_survives_json_pickle_and_copy() -> None:
    rate = schedule("cosine_decay", init_value=0.1, decay_steps=100)
    adam = optimizer("adam", learning_rate=rate, clip=1.0)
    spec = TableSpec("t", {**FULL.fields, "w": Field((4,), optimizer=adam)}, seed=9)
    assert TableSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert copy.deepcopy(spec) == spec


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_survives_json(dtype: str) -> None:
    assert Field.from_dict(json.loads(json.dumps(Field(dtype=dtype).to_dict()))).dtype == dtype


# Agreement


def test_specs_agree_whatever_their_hyper_parameters() -> None:
    def spec(rate: float) -> TableSpec:
        return TableSpec("t", {"x": Field(optimizer=optimizer("sgd", learning_rate=rate))})

    spec(0.1).check_agrees(spec(0.2))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"keys": "str"}, "keys: given str, existing int"),
        ({"per_source": True}, "per_source: given True, existing False"),
        ({"seed": 1}, "seed: given 1, existing 0"),
        ({"max_rows": 9}, "max_rows: given 9"),
        ({"fields": {"x": Field((3,))}}, r"\['x'\].shape: given \[3\], existing \[2\]"),
        ({"fields": {"x": Field((2,), dtype="int8")}}, "dtype: given int8, existing float32"),
        ({"fields": {"x": Field((2,), init=constant(1))}}, r"\['x'\].init"),
        ({"fields": {"x": Field((2,), optimizer=SGD)}}, "optimizer: given sgd, existing None"),
        ({"fields": {"x": Field((2,), group="g")}}, "group: given g, existing None"),
        ({"fields": {"x": Field((2,), history=1)}}, "history: given 1, existing 0"),
        ({"fields": {"y": Field((2,))}}, r"\['y'\].shape: given \[2\], existing nothing"),
    ],
)
def test_specs_that_differ_are_told_where(changed: dict[str, Any], text: str) -> None:
    existing: dict[str, Any] = {"name": "t", "fields": {"x": Field((2,))}}
    with pytest.raises(SpecMismatchError, match=f"'t' exists with another spec.*{text}"):
        TableSpec(**{**existing, **changed}).check_agrees(TableSpec(**existing))
