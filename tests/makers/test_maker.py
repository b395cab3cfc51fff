"""A maker is a function and what it declares."""

from __future__ import annotations

import subprocess
import sys

import pytest

from carls_jax.errors import ConfigError, InvalidInputError
from carls_jax.makers import maker

WRITES = {"nodes": "label"}


def test_one_argument_is_a_refresh_and_two_are_a_make() -> None:
    @maker(writes=WRITES)
    def refresh(ctx, *, rate=0.1, **options):
        yield

    @maker(writes=WRITES)
    def make(ctx, keys, rate=0.1):
        return None

    assert (refresh.name, refresh.is_refresh) == ("refresh", True)
    assert (make.name, make.is_refresh) == ("make", False)


def test_one_name_stands_for_a_tuple_of_it() -> None:
    decorate = maker(reads="edges", writes={"nodes": "label", "edges": ["weight", "age"]}, name="a")
    made = decorate(lambda ctx: iter(()))
    assert made.name == "a"
    assert made.reads == ("edges",)
    assert made.writes == {"nodes": ("label",), "edges": ("weight", "age")}


def test_a_maker_can_be_called_like_its_function() -> None:
    @maker(writes=WRITES)
    def double(ctx, keys):
        return {"label": 2 * keys}

    assert double(None, 3) == {"label": 6}


def functions():
    def nothing(): ...
    def three(ctx, keys, more): ...
    def named_only(ctx, *, rate): ...

    return [nothing, three, named_only]


@pytest.mark.parametrize("function", functions())
def test_other_signatures_are_refused_with_the_two_that_work(function) -> None:
    with pytest.raises(ConfigError, match=rf"{function.__name__}.*refresh\(ctx\), or make\(ctx, "):
        maker(writes=WRITES)(function)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"writes": {}}, r"writes=\{\}: give"),
        ({"writes": {"nodes": ()}}, r"writes=.*nodes.*: give"),
        ({"writes": WRITES, "batch_size": 0}, "batch_size=0: at least 1"),
        ({"writes": WRITES, "blend": 1.0}, "blend=1.0: allowed are numbers from 0 to below 1"),
        ({"writes": {"nodes": "label", "edges": "weight"}}, "one table, not nodes, edges"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message) -> None:
    def make(ctx, keys): ...

    with pytest.raises(ConfigError, match=message):
        maker(**arguments)(make)


def test_a_refresh_takes_no_keys() -> None:
    with pytest.raises(ConfigError, match="takes no keys"):
        maker(writes=WRITES, name="a", keys=lambda data: data)(lambda ctx: iter(()))


def test_a_function_without_a_name_needs_one() -> None:
    with pytest.raises(InvalidInputError, match=r"maker\(name\)='<lambda>'"):
        maker(writes=WRITES)(lambda ctx: iter(()))


def test_makers_import_neither_trainer_nor_hooks() -> None:
    script = (
        "import sys, carls_jax.makers; "
        "print(*(name for name in sys.modules if name.startswith('carls_jax.')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    packages = {name.split(".")[1] for name in answer.stdout.split()}
    assert packages <= {"bank", "checkpoints", "errors", "keys", "makers", "metrics"}
