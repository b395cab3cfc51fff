"""`Report`: what a benchmark found, as a table, a line of JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carls_jax.bench import machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Samples = NDArray[np.float64]

# With fewer samples the 99th percentile is no more than the longest.
_MIN_FOR_P99 = 100
# Between contestants in a plot, where works are 1 apart.
_BESIDE = 0.06


@dataclass(frozen=True)
class Result:
    """Sums up what one contestant needed for one piece of work.

    Attributes:
      work: The work, such as "256 rows".
      what: The contestant.
      unit: Of all figures but `ratio`.
      num: How often it was measured.
      median, p10, p90, longest: Over all of these.
      p99: None where it was measured less than 100 times.
      ratio: Median over that of the first contestant at the same work; None where it is alone.
    """

    work: str
    what: str
    unit: str
    num: int
    median: float
    p10: float
    p90: float
    p99: float | None
    longest: float
    ratio: float | None


@dataclass
class Report:
    """Collects what a benchmark finds.

    Attributes:
      name: Name of the benchmark.
      question: What it answers, in a sentence.
      notes: What a reader must know beside the figures.
      results: In the order of `add`.
      machine: What the run was made on.
    """

    name: str
    question: str
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine.describe)

    def add(self, work: str, samples: Mapping[str, Samples | float], *, unit: str = "ms") -> None:
        """Adds the measurements `[repeats]` of one piece of work, by contestant.

        The first contestant is the one that the others are compared with: a limit, or a peer.
        """
        reference = float(np.median(next(iter(samples.values()))))
        for what, measured in samples.items():
            values = np.atleast_1d(measured)
            p10, median, p90, p99 = (float(one) for one in np.percentile(values, (10, 50, 90, 99)))
            self.results.append(
                Result(
                    work=work,
                    what=what,
                    unit=unit,
                    num=values.size,
                    median=median,
                    p10=p10,
                    p90=p90,
                    p99=p99 if values.size >= _MIN_FOR_P99 else None,
                    longest=float(values.max()),
                    ratio=median / reference if len(samples) > 1 else None,
                )
            )

    def to_markdown(self) -> str:
        """Returns the question, the table, the notes and the machine as Markdown."""
        lines = [f"# {self.name}", "", self.question, "", *_table(_HEAD), *_table(_RULE)]
        lines += _table(*map(_cells, self.results))
        lines += ["", *(f"- {note}" for note in self.notes), f"- {machine.in_words(self.machine)}"]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Returns all that the report holds as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def plot(self, path: Path) -> None:
        """Draws medians and p10 to p90 of each contestant over the works, one panel for a unit."""
        from matplotlib.figure import Figure  # half a second, and not all runs draw

        units = list(dict.fromkeys(one.unit for one in self.results))
        figure = Figure(figsize=(7.5, 4.2 * len(units)), layout="constrained")
        figure.suptitle(self.name)
        for axes, unit in zip(figure.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
            _draw(axes, [one for one in self.results if one.unit == unit])
            axes.set_ylabel(f"{unit} (median, p10 to p90)")
        figure.savefig(path, dpi=100)


_HEAD = ("work", "what", "unit", "median", "p10–p90", "p99", "longest", "n", "ratio")
_RULE = ("---", "---", "---", *["---:"] * 6)


def _table(*rows: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _cells(one: Result) -> tuple[str, ...]:
    """Returns a row of the table; a single measurement has no spread."""
    spread, longest = f"{_number(one.p10)}–{_number(one.p90)}", _number(one.longest)
    if one.num == 1:
        spread = longest = ""
    figures = (_number(one.median), spread, _number(one.p99), longest, str(one.num))
    return (one.work, one.what, one.unit, *figures, _number(one.ratio))


def _number(value: float | None) -> str:
    """Writes a number with three significant digits, or all before the point of a large one."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _draw(axes: Axes, results: Sequence[Result]) -> None:
    works = list(dict.fromkeys(one.work for one in results))
    contestants = list(dict.fromkeys(one.what for one in results))
    for number, what in enumerate(contestants):
        mine = [one for one in results if one.what == what]
        # Side by side, so that no whisker hides another.
        beside = _BESIDE * (number - (len(contestants) - 1) / 2)
        places = [works.index(one.work) + beside for one in mine]
        below = [one.median - one.p10 for one in mine]
        above = [one.p90 - one.median for one in mine]
        medians = [one.median for one in mine]
        axes.errorbar(places, medians, yerr=[below, above], fmt="o", capsize=4, label=what)
    axes.set_xticks(range(len(works)), works)
    axes.set_xlim(-0.5, len(works) - 0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.9g}")
    axes.yaxis.set_minor_formatter("{x:,.9g}" if len(works) == 1 else "")
    axes.grid(visible=True, which="both", axis="y", alpha=0.3)
    axes.legend()
