"""A refresh writes what its maker declares, and says what it did."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from carls_jax.bank import Field, LocalBank, TableSpec
from carls_jax.errors import (
    CarlsError,
    ConfigError,
    DtypeError,
    FieldNotFoundError,
    InvalidInputError,
    KeyKindError,
    NonFiniteError,
    ShapeError,
    TableNotFoundError,
)
from carls_jax.makers import MakerRunner, maker
from carls_jax.metrics import MetricsWriter

IDS = np.arange(5)


@maker(reads="nodes", writes={"nodes": "label"})
def weigh(ctx):
    yield IDS[:3], {"label": np.full(3, ctx.variables["weight"])}
    yield "nodes", IDS[3:], {"label": np.full(2, -ctx.variables["weight"])}


def yielding(*blocks, writes=None):
    """Makes a maker that yields these blocks."""
    return maker(writes=writes or {"nodes": "label"}, name="given")(lambda ctx: iter(blocks))


class TestRefresh:
    def test_rows_carry_the_step_the_source_and_an_age(self, bank, checkpoint) -> None:
        MakerRunner(weigh, bank).refresh(checkpoint(40))
        rows = bank.table("nodes").lookup(IDS, metadata=("step", "source", "clock"))
        np.testing.assert_array_equal(rows["label"], [40, 40, 40, -40, -40])
        assert set(rows.step["label"]) == {40}
        assert set(rows.source["label"]) == {"weigh/0"}
        assert set(rows.clock["label"]) == {"main"}
        assert set(rows.step["score"]) == {-1}  # of a field that it does not write
        read = bank.table("nodes").lookup
        assert read(IDS, fields=("label",), max_age_steps=5, now=45).found.all()
        assert not read(IDS, fields=("label",), max_age_steps=5, now=46).found.any()

    def test_it_tells_what_it_did(self, bank, checkpoint) -> None:
        bank.advance(65)
        report = MakerRunner(weigh, bank).refresh(checkpoint(40))
        assert (report.step, report.rows_written, report.values_kept) == (40, 5, 0)
        assert (report.lag_steps, report.is_complete) == (25, True)
        assert report.seconds > 0

    def test_a_slow_maker_never_overwrites_a_fast_one(self, bank, checkpoint) -> None:
        fast = maker(writes={"nodes": "label"}, name="fast")(weigh.function)
        MakerRunner(fast, bank).refresh(checkpoint(50))
        report = MakerRunner(weigh, bank).refresh(checkpoint(40))
        assert report.values_kept == 5
        rows = bank.table("nodes").lookup(IDS, metadata=("step", "source"))
        assert set(rows.step["label"]) == {50}
        assert set(rows.source["label"]) == {"fast/0"}
        assert MakerRunner(weigh, bank).refresh(checkpoint(50)).values_kept == 0  # ties win

    def test_a_maker_that_blends_writes_moving_averages(self, bank, checkpoint) -> None:
        smooth = maker(writes={"nodes": "label"}, name="smooth", blend=0.75)(weigh.function)
        for step in (40, 80):
            MakerRunner(smooth, bank).refresh(checkpoint(step))
        label = bank.table("nodes").lookup(IDS)["label"]
        np.testing.assert_array_equal(label, [50, 50, 50, -50, -50])  # 0.75 * 40 + 0.25 * 80

    def test_integers_are_not_blended(self, bank, checkpoint) -> None:
        bank.table(TableSpec("counts", {"n": Field(dtype="int64")}))
        counting = maker(writes={"counts": "n"}, name="counting", blend=0.5)(lambda ctx: iter([]))
        with pytest.raises(DtypeError, match="field 'n' of table 'counts' is int64"):
            MakerRunner(counting, bank).refresh(checkpoint(1))

    def test_several_tables_are_named_in_the_blocks(self, bank, checkpoint) -> None:
        bank.table(TableSpec("edges", {"weight": Field()}, keys="str"))
        writes = {"nodes": ("label", "score"), "edges": "weight"}
        both = yielding(
            ("nodes", [1, 2], {"label": [1.0, 2.0], "score": np.ones((2, 2))}),
            ("edges", ["a-b"], {"weight": [0.5]}),
            writes=writes,
        )
        assert MakerRunner(both, bank).refresh(checkpoint(1)).rows_written == 3
        assert bank.table("edges").lookup(["a-b"])["weight"] == [0.5]

    def test_blocks_without_rows_are_left_out(self, bank, checkpoint) -> None:
        empty = yielding(([], {"label": []}), (np.empty(0, np.int64), {"label": np.empty(0)}))
        assert MakerRunner(empty, bank).refresh(checkpoint(1)).rows_written == 0

    def test_it_ends_before_the_next_block_when_it_is_stopped(self, bank, checkpoint) -> None:
        stop = threading.Event()

        @maker(writes={"nodes": "label"})
        def endless(ctx):
            for key in range(10**9):
                yield [key], {"label": [1.0]}
                stop.set()

        report = MakerRunner(endless, bank).refresh(checkpoint(1), stop=stop)
        assert (report.rows_written, report.is_complete) == (1, False)

    def test_what_the_function_raises_comes_through(self, bank, checkpoint) -> None:
        @maker(writes={"nodes": "label"})
        def fails(ctx):
            yield [1], {"label": [1.0]}
            raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            MakerRunner(fails, bank).refresh(checkpoint(1))

    def test_a_maker_of_whole_tables_has_one_worker(self, bank) -> None:
        with pytest.raises(ConfigError, match=r"'weigh' .*num_workers=2.*make\(ctx, keys\)"):
            MakerRunner(weigh, bank, num_workers=2)

    @pytest.mark.parametrize("worker", [-1, 2])
    def test_a_worker_is_one_of_its_number(self, bank, worker) -> None:
        with pytest.raises(ConfigError, match=rf"worker={worker}: allowed is 0 to .*=1"):
            MakerRunner(weigh, bank, worker=worker, num_workers=2)


BAD_BLOCKS = {
    "an undeclared table": (
        ("edges", [1], {"label": [1.0]}),
        InvalidInputError,
        "may not write ta",
    ),
    "an undeclared field": (([1], {"score": np.ones((1, 2))}), InvalidInputError, "write score of"),
    "a table that is no name": ((IDS, IDS, {"label": IDS}), InvalidInputError, "may not write ta"),
    "no tuple": ({"label": [1.0]}, InvalidInputError, r"yielded a dict: yield \(keys, \{fi"),
    "a tuple of four": ((1, 2, 3, 4), InvalidInputError, "yielded a tuple of 4: yield"),
    "values without a field": (([1], [1.0]), InvalidInputError, "gave a list as the values of"),
    "values of no field": (([1], {}), InvalidInputError, "name at least one field"),
    "too few values": (([1, 2], {"label": [1.0]}), ShapeError, r"\[1\], expected \[2\]"),
    "a single key": ((1, {"label": [1.0]}), ShapeError, "keys must be"),
    "the wrong kind of key": ((["a"], {"label": [1.0]}), KeyKindError, "integer keys"),
    "text": (([1], {"label": ["a"]}), DtypeError, "'label'"),
    "NaN": (([1], {"label": [np.nan]}), NonFiniteError, "'label'"),
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("case", BAD_BLOCKS)
    def test_a_bad_block_changes_nothing(self, bank, checkpoint, case) -> None:
        block, error, message = BAD_BLOCKS[case]
        bank.table(TableSpec("edges", {"label": Field()}))
        before = bank.stats().sequence
        with pytest.raises(error, match=message) as raised:
            MakerRunner(yielding(block), bank).refresh(checkpoint(1))
        assert isinstance(raised.value, CarlsError)
        assert bank.stats().sequence == before

    @pytest.mark.parametrize("given", [None, 3, np.float32(1)])
    def test_a_function_that_gives_no_blocks_is_told_how_to(self, bank, checkpoint, given) -> None:
        odd = maker(writes={"nodes": "label"}, name="odd")(lambda ctx: given)
        with pytest.raises(InvalidInputError, match=r"'odd' returned a .*: yield \(keys, \{field"):
            MakerRunner(odd, bank).refresh(checkpoint(1))

    def test_several_tables_need_their_names(self, bank, checkpoint) -> None:
        bank.table(TableSpec("edges", {"weight": Field()}))
        both = yielding(([1], {"label": [1.0]}), writes={"nodes": "label", "edges": "weight"})
        with pytest.raises(InvalidInputError, match=r"yield \(table, keys.*nodes, edges"):
            MakerRunner(both, bank).refresh(checkpoint(1))

    @pytest.mark.parametrize(
        ("declared", "error", "message"),
        [
            ({"reads": "nodez", "writes": {"nodes": "label"}}, TableNotFoundError, "nodez.*nodes"),
            ({"writes": {"nodez": "label"}}, TableNotFoundError, "nodez.*nodes"),
            ({"writes": {"nodes": "lable"}}, FieldNotFoundError, "lable.*label, score"),
        ],
    )
    def test_what_the_bank_lacks_is_said_before_any_work(
        self, bank, checkpoint, declared, error, message
    ) -> None:
        called = []
        lacking = maker(**declared, name="lacking")(lambda ctx: called.append(ctx))
        with pytest.raises(error, match=message):
            MakerRunner(lacking, bank).refresh(checkpoint(1))
        assert not called

    @pytest.mark.parametrize("given", [3, [1.0], np.ones(5)])
    def test_make_returns_values_by_field(self, bank, checkpoint, given) -> None:
        odd = maker(writes={"nodes": "label"}, keys=lambda data: IDS, name="odd")(
            lambda ctx, keys: given
        )
        with pytest.raises(InvalidInputError, match=r"'odd' gave a .*: give \{field: values\}"):
            MakerRunner(odd, bank).refresh(checkpoint(1))


class TestMake:
    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_every_key_is_made_exactly_once(self, bank, checkpoint, num_workers) -> None:
        made: Counter[int] = Counter()
        sizes = []

        @maker(writes={"nodes": "label"}, keys=lambda data: data, batch_size=16)
        def count(ctx, keys):
            made.update(keys.tolist())
            sizes.append(len(keys))
            return {"label": np.full(len(keys), ctx.worker)}

        data = [*range(200), -1, 7, 7]  # padding is nobody's, repeated keys are one
        for worker in range(num_workers):
            runner = MakerRunner(count, bank, data=data, worker=worker, num_workers=num_workers)
            runner.refresh(checkpoint(1))
        assert made == Counter(range(200))
        assert max(sizes) == 16
        rows = bank.table("nodes").lookup(range(200), metadata=("source",))
        assert set(rows.source["label"]) == {f"count/{worker}" for worker in range(num_workers)}

    def test_without_keys_it_makes_the_rows_that_there_are(self, bank, checkpoint) -> None:
        table = bank.table("nodes")
        double = maker(writes={"nodes": "label"}, name="double")(
            lambda ctx, keys: {"label": 2 * keys}
        )
        runner = MakerRunner(double, bank)
        assert runner.refresh(checkpoint(0)).rows_written == 0
        table.update([3, 1, 2], {"rounds": [0, 0, 0]})
        assert runner.refresh(checkpoint(10)).rows_written == 3
        np.testing.assert_array_equal(table.lookup([1, 2, 3])["label"], [2, 4, 6])

    def test_a_row_of_several_authors_is_one_key(self, bank, checkpoint) -> None:
        spec = TableSpec("said", {"text": Field(), "reply": Field()}, per_source=True)
        for source in ("a", "b"):
            bank.table(spec).update([1, 2], {"text": [0.0, 0.0]}, source=source)
        seen = []
        reply = maker(writes={"said": "reply"}, name="reply")(
            lambda ctx, keys: seen.extend(keys.tolist())
        )
        MakerRunner(reply, bank).refresh(checkpoint(0))
        assert seen == [1, 2]

    def test_keys_may_be_text(self, bank, checkpoint) -> None:
        table = bank.table(TableSpec("words", {"length": Field()}, keys="str"))
        words = ["a", "bb", "ccc", "dddd"]

        @maker(writes={"words": "length"}, keys=lambda data: data)
        def measure(ctx, keys):
            return {"length": [float(len(word)) for word in keys]}

        for worker in (0, 1):
            runner = MakerRunner(measure, bank, data=words, worker=worker, num_workers=2)
            runner.refresh(checkpoint(0))
        np.testing.assert_array_equal(table.lookup(words)["length"], [1, 2, 3, 4])

    def test_none_writes_nothing(self, bank, checkpoint) -> None:
        skip = maker(writes={"nodes": "label"}, keys=lambda data: IDS, name="skip")(
            lambda ctx, keys: None
        )
        assert MakerRunner(skip, bank).refresh(checkpoint(0)).rows_written == 0

    def test_no_keys_are_no_work(self, bank, checkpoint) -> None:
        never = maker(writes={"nodes": "label"}, keys=lambda data: [], name="never")(
            lambda ctx, keys: pytest.fail("called")
        )
        assert MakerRunner(never, bank).refresh(checkpoint(0)).rows_written == 0

    def test_keys_of_the_wrong_kind_or_shape_are_refused(self, bank, checkpoint) -> None:
        for keys, error in ((["a"], KeyKindError), (np.ones((2, 2), int), ShapeError)):
            made = maker(writes={"nodes": "label"}, keys=lambda data: data, name="made")(
                lambda ctx, keys: {"label": keys}
            )
            with pytest.raises(error):
                MakerRunner(made, bank, data=keys).refresh(checkpoint(0))


@maker(writes={"nodes": "rounds"})
def count_rounds(ctx):
    ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
    yield [0], {"rounds": [ctx.state["rounds"]]}


class TestState:
    def test_it_outlives_the_process_and_goes_back_with_the_run(
        self, bank: LocalBank, checkpoint, tmp_path: Path
    ) -> None:
        def rounds_after(step: int) -> int:
            runner = MakerRunner(count_rounds, bank, state_directory=tmp_path / "state")
            runner.refresh(checkpoint(step))
            return int(bank.table("nodes").lookup([0])["rounds"][0])

        assert [rounds_after(step) for step in (0, 10, 20, 30)] == [1, 2, 3, 4]
        bank.table("nodes").delete([0])  # as when the bank is put back, or newer rows stay
        assert [rounds_after(step) for step in (10, 20)] == [2, 3]
        assert rounds_after(20) == 3  # the same refresh again

    def test_what_was_not_finished_leaves_none(self, bank, checkpoint) -> None:
        stop = threading.Event()
        stop.set()
        runner = MakerRunner(count_rounds, bank)
        assert not runner.refresh(checkpoint(0), stop=stop).is_complete
        assert runner.context(checkpoint(10)).state == {}


class TestMeasuring:
    def test_each_refresh_leaves_a_line_of_metrics(self, bank, checkpoint, tmp_path) -> None:
        @maker(writes={"nodes": "label"})
        def talk(ctx):
            ctx.log({"entropy": 0.5})
            yield IDS, {"label": IDS}

        bank.advance(12)
        with MetricsWriter(tmp_path / "metrics", "talk-0") as metrics:
            runner = MakerRunner(talk, bank, metrics=metrics)
            runner.refresh(checkpoint(0))
            runner.refresh(checkpoint(10))
        text = (tmp_path / "metrics" / "talk-0.jsonl").read_text()
        first, second = map(json.loads, text.splitlines())
        assert (first["step"], first["lag_steps"]) == (0, 12)
        assert (second["step"], second["lag_steps"]) == (10, 2)
        assert second.keys() >= {"refresh_seconds", "rows_per_second"}
        expected = {"rows_written": 5, "values_kept": 0, "checkpoint_bytes": 8, "entropy": 0.5}
        assert expected.items() <= second.items()

    def test_the_ledger_counts_the_bytes_of_checkpoints(self, bank, checkpoint) -> None:
        runner = MakerRunner(weigh, bank)
        for step in (0, 10):
            runner.refresh(checkpoint(step))
        flows = [row for row in bank.ledger.rows() if row["direction"] == "checkpoint"]
        assert [(row["client"], row["num_bytes"]) for row in flows] == [("weigh/0", 16)]
