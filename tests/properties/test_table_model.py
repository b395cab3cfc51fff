"""A table against a plain dictionary, which does what the documentation says a key at a time."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from carls_jax.bank.initializers import constant, uniform
from carls_jax.bank.local import LocalBank
from carls_jax.bank.optimizers import optimizer
from carls_jax.bank.rows import METADATA
from carls_jax.bank.specs import Field, TableSpec

HISTORY = 2
ADAGRAD_EPS = 1e-7
FIELDS = {
    "w": Field((2,), init=constant(8.0), optimizer=optimizer("sgd", learning_rate=0.5)),
    "a": Field((2,), init=uniform(-1.0, 1.0), optimizer=optimizer("adagrad", learning_rate=1.0)),
    "n": Field(dtype="int64", history=HISTORY),
    "p": Field(group="g"),
    "q": Field(group="g", dtype="float64", history=HISTORY),
}
GROUPS = {"w": "w", "a": "a", "n": "n", "p": "g", "q": "g"}
KEYS = [0, 1, 2, 5, -2, 2**40]
SOURCES = ["ann", "bob", "me"]
CLOCKS = ["main", "other"]

key_lists = st.lists(st.sampled_from([*KEYS, -1]), min_size=1, max_size=8)
steps = st.integers(-1, 6)
# Sums and halves of quarters are exact in float32, whatever their order.
quarters = st.integers(-8, 8).map(lambda number: number / 4)


@dataclass
class Written:
    """Is what is known of a field: who wrote it."""

    version: int = 0
    step: int = -1
    source: str = ""
    clock: str = "main"


@dataclass
class Row:
    """Is what a table keeps of a key, in plain Python and NumPy numbers."""

    values: dict[str, Any]
    sum_of_squares: Any = field(default_factory=lambda: np.full(2, 0.1, np.float32))
    groups: dict[str, Written] = field(
        default_factory=lambda: {group: Written() for group in GROUPS.values()}
    )
    history: dict[str, list[Any]] = field(default_factory=lambda: {"n": [], "q": []})

    def write(self, group: str, values: dict[str, Any], *, by: Written) -> None:
        """Overwrites the fields of a group."""
        self.values |= values
        known = self.groups[group]
        self.groups[group] = Written(known.version + 1, by.step, by.source, by.clock)
        for name in values:
            if name in self.history:
                written = (self.groups[group], self.values[name])
                self.history[name] = [written, *self.history[name]][:HISTORY]

    def descend(self, name: str, gradient: Any, *, by: Written) -> None:
        """Applies sgd (learning rate 0.5) or adagrad (learning rate 1)."""
        if name == "w":
            value = self.values["w"] - np.float32(0.5) * gradient
        else:
            self.sum_of_squares = self.sum_of_squares + gradient * gradient
            root = np.sqrt(self.sum_of_squares + np.float32(ADAGRAD_EPS))
            value = self.values["a"] - gradient / root
        self.write(name, {name: value}, by=by)


def new_row(key: int) -> Row:
    drawn = FIELDS["a"].init.rows(np.array([key]), seed=0, field="a", shape=(2,), dtype=np.float32)[
        0
    ]
    return Row({"w": np.full(2, 8, np.float32), "a": drawn, "n": 0, "p": 0.0, "q": 0.0})


@dataclass
class Model:
    """Is a whole table: rows by key and author ("" in a table without authors), and clocks."""

    rows: dict[tuple[int, str], Row] = field(default_factory=dict)
    clocks: dict[str, int] = field(default_factory=dict)
    authors: set[str] = field(default_factory=set)

    def create(self, key: int, author: str) -> bool:
        """Gives a key its first row; tells whether it had none."""
        is_new = (key, author) not in self.rows
        if is_new:
            self.rows[key, author] = new_row(key)
            self.authors.add(author)
        return is_new

    def tell(self, by: Written) -> None:
        if by.step > self.clocks.get(by.clock, -1):
            self.clocks[by.clock] = by.step


class TableMachine(RuleBasedStateMachine):
    """Does the same to a table and to the model; what they answer must be equal."""

    per_source = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.bank = LocalBank(self.directory.name, source="me")
        self.table = self.bank.table(TableSpec("t", FIELDS, per_source=self.per_source))
        self.model = Model()
        self.saved: Model | None = None

    def teardown(self) -> None:
        self.bank.close()
        self.directory.cleanup()

    def author(self, source: str) -> str:
        return source if self.per_source else ""

    @rule(
        keys=key_lists,
        fields=st.sets(st.sampled_from(["w", "n", "g"]), min_size=1),
        first=st.integers(-100, 100),
        step=steps,
        clock=st.sampled_from(CLOCKS),
        source=st.sampled_from(SOURCES),
        if_newer=st.booleans(),
    )
    def update(
        self,
        keys: list[int],
        fields: set[str],
        first: int,
        step: int,
        clock: str,
        source: str,
        if_newer: bool,
    ) -> None:
        numbers = np.arange(first, first + len(keys))
        all_values = {
            "w": np.stack([numbers, -numbers], axis=1).astype(np.float32),
            "n": numbers,
            "p": numbers.astype(np.float32) / 2,
            "q": numbers / 4,
        }
        values = {name: one for name, one in all_values.items() if GROUPS[name] in fields}
        applied = self.table.update(
            keys, values, step=step, clock=clock, source=source, if_newer=if_newer
        )

        by, created, kept = Written(0, step, source, clock), 0, 0
        last = {key: position for position, key in enumerate(keys) if key != -1}
        for key, position in last.items():
            created += self.model.create(key, self.author(source))
            row = self.model.rows[key, self.author(source)]
            for group in dict.fromkeys(GROUPS[name] for name in values):
                new = {name: values[name][position] for name in values if GROUPS[name] == group}
                known = row.groups[group]
                if if_newer and known.clock == clock and known.step > step:
                    kept += len(new)
                else:
                    row.write(group, new, by=by)
        self.model.tell(by)
        assert (applied.num_created, applied.num_kept) == (created, kept)

    @rule(
        keys=key_lists,
        name=st.sampled_from(["w", "a"]),
        numbers=st.lists(quarters, min_size=16, max_size=16),
        step=steps,
        source=st.sampled_from(SOURCES),
        combine=st.sampled_from(["sum", "mean"]),
        create=st.booleans(),
    )
    def push(
        self,
        keys: list[int],
        name: str,
        numbers: list[float],
        step: int,
        source: str,
        combine: Literal["sum", "mean"],
        create: bool,
    ) -> None:
        gradients = np.array(numbers, np.float32).reshape(8, 2)[: len(keys)]
        applied = self.table.push(
            keys, {name: gradients}, step=step, source=source, combine=combine, create=create
        )

        by, created, unknown = Written(0, step, source, "main"), 0, []
        for key in sorted(set(keys) - {-1}):
            if create:
                created += self.model.create(key, self.author(source))
            elif (key, self.author(source)) not in self.model.rows:
                unknown.append(key)
                continue
            mine = gradients[np.array(keys) == key]
            total = mine.sum(axis=0)
            gradient = total / np.float32(len(mine)) if combine == "mean" else total
            self.model.rows[key, self.author(source)].descend(name, gradient, by=by)
        self.model.tell(by)
        assert (applied.num_created, applied.unknown_keys.tolist()) == (created, unknown)

    @rule(keys=key_lists)
    def create(self, keys: list[int]) -> None:
        rows = self.table.lookup(keys, create=True)
        created = [self.model.create(key, self.author("me")) for key in set(keys) - {-1}]
        assert rows.num_created == sum(created)

    @rule(keys=key_lists, source=st.sampled_from(SOURCES))
    def delete(self, keys: list[int], source: str) -> None:
        there = {(key, self.author(source)) for key in keys} & set(self.model.rows)
        for place in there:
            del self.model.rows[place]
        assert self.table.delete(keys, source=source) == len(there)

    @rule(step=st.integers(0, 9), clock=st.sampled_from(CLOCKS))
    def advance(self, step: int, clock: str) -> None:
        self.bank.advance(step, clock=clock)
        self.model.tell(Written(0, step, "", clock))

    @rule(
        keys=key_lists,
        fields=st.lists(st.sampled_from(list(FIELDS)), min_size=1, unique=True),
        max_age_steps=st.none() | st.integers(0, 5),
        now=st.none() | st.integers(0, 9),
        clock=st.sampled_from(CLOCKS),
        sources=st.sampled_from([None, "!me", ("zoe", "bob")]),
    )
    def lookup(
        self,
        keys: list[int],
        fields: list[str],
        max_age_steps: int | None,
        now: int | None,
        clock: str,
        sources: Any,
    ) -> None:
        rows = self.table.lookup(
            keys,
            fields=fields,
            max_age_steps=max_age_steps,
            now=now,
            clock=clock,
            sources=sources if self.per_source else None,
            metadata=METADATA,
        )
        clocks = self.model.clocks | ({clock: now} if now is not None else {})

        def is_young(known: Written) -> bool:
            if max_age_steps is None:
                return True
            return known.step != -1 and clocks[known.clock] - known.step <= max_age_steps

        for place, row in self.asked(rows, keys, sources):
            young = [row is not None and is_young(row.groups[GROUPS[name]]) for name in fields]
            assert rows.found[place] == all(young)
            for name, is_present in zip(fields, young, strict=True):
                assert rows.present[name][place] == is_present
                expected = row.values[name] if row and is_present else 0
                np.testing.assert_array_equal(rows[name][place], expected)
                known = row.groups[GROUPS[name]] if row else Written(clock="")
                author = keys_source(known, rows.sources, place) if row else ""
                assert (rows.version[name][place], rows.step[name][place]) == (
                    known.version,
                    known.step,
                )
                assert (rows.clock[name][place], rows.source[name][place]) == (known.clock, author)
                assert (rows.updated_at[name][place] > 0) == bool(known.version)

    def asked(self, rows: Any, keys: list[int], sources: Any) -> list[tuple[Any, Row | None]]:
        """Returns each place of an answer and the row that it should tell."""
        if not self.per_source:
            return [(place, self.model.rows.get((key, ""))) for place, key in enumerate(keys)]
        known = sorted(self.model.authors - ({"me"} if sources == "!me" else set()))
        authors = known if sources in (None, "!me") else sorted(sources)
        assert list(rows.sources) == authors
        return [
            ((place, number), self.model.rows.get((key, author)))
            for place, key in enumerate(keys)
            for number, author in enumerate(authors)
        ]

    @rule(keys=key_lists, name=st.sampled_from(["n", "q"]), source=st.sampled_from(SOURCES))
    def history(self, keys: list[int], name: str, source: str) -> None:
        answered = self.table.history(keys, name, source=source)
        for key, writes in zip(keys, answered, strict=True):
            row = self.model.rows.get((key, self.author(source)))
            expected = row.history[name] if row else []
            assert [
                (Written(one.version, one.step, one.source, one.clock), one.value) for one in writes
            ] == expected

    @rule()
    def save(self) -> None:
        self.bank.snapshot("s")
        self.saved = copy.deepcopy(self.model)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self) -> None:
        self.bank.restore("s")
        self.model = copy.deepcopy(self.saved)

    @invariant()
    def all_rows_are_those_of_the_model(self) -> None:
        columns = self.table.to_numpy()
        authors = columns["source"].tolist() if self.per_source else [""] * len(columns["keys"])
        places = list(zip(columns["keys"].tolist(), authors, strict=True))
        assert places == sorted(self.model.rows)
        assert len(self.table) == len(places)
        for number, place in enumerate(places):
            for name, value in self.model.rows[place].values.items():
                np.testing.assert_array_equal(columns[name][number], value)
        assert self.bank.stats().clocks == self.model.clocks


def keys_source(known: Written, sources: tuple[str, ...], place: Any) -> str:
    """Returns the source that metadata tell: in a table with authors the row's."""
    return sources[place[1]] if sources else known.source


class AuthorsMachine(TableMachine):
    per_source = True


TestTable = TableMachine.TestCase
TestTableWithAuthors = AuthorsMachine.TestCase
TestTable.settings = TestTableWithAuthors.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None
)
