"""What was measured: series of figures, a value a round, and the tables and files that show them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

EACH_SHARE_SEEN = 100
"""With fewer values than this a 99th percentile would lie beyond all of them."""
HEAD = ("", "median", "min", "max", "goal", "")


@dataclasses.dataclass
class Series:
    """
    One figure, measured once a round.

    Args:
        label: What it is, with its unit.
        digits: Behind the point, when shown.
        at_least: Goal for the median, if there is one.
        at_most: Goal for the median, if there is one.
    """

    label: str
    digits: int = 0
    at_least: float | None = None
    at_most: float | None = None
    values: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the goal; true where there is none."""
        return (self.at_least is None or self.median >= self.at_least) and (
            self.at_most is None or self.median <= self.at_most
        )

    def cells(self) -> tuple[str, ...]:
        """Return what a table shows, in the order of `HEAD`."""
        numbers = (self.median, min(self.values), max(self.values))
        goal = f">= {self.at_least:g}" if self.at_least is not None else ""
        goal = f"<= {self.at_most:g}" if self.at_most is not None else goal
        verdict = ("met" if self.is_met else "missed") if goal else ""
        return (self.label, *(f"{number:,.{self.digits}f}" for number in numbers), goal, verdict)


@dataclasses.dataclass
class Table:
    """
    The figures of one workload.

    Args:
        name: Of the workload: `W1`.
        about: What was done, in a line.
        series: The figures.
    """

    name: str
    about: str
    series: list[Series]

    def add(self, *values: float) -> None:
        """Take the figures of one round, in the order of the series."""
        for series, value in zip(self.series, values, strict=True):
            series.values.append(value)

    def markdown(self) -> str:
        """Return it with a heading, as plain text that Markdown shows as a table."""
        return "\n".join([f"**{self.name}.** {self.about}", "", *_rows([series.cells() for series in self.series]), ""])


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the 50th and the 99th; of fewer than a hundred values the median and the largest."""
    if len(values) < EACH_SHARE_SEEN:
        return statistics.median(values), max(values)
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


def goals(tables: list[Table]) -> str:
    """Return one table of all figures that have a goal."""
    cells = [series.cells() for table in tables for series in table.series]
    names = [table.name for table in tables for _ in table.series]
    rows = [(f"{name}: {row[0]}", *row[1:]) for name, row in zip(names, cells, strict=True) if row[-1]]
    return "\n".join(_rows(rows))


def _rows(cells: list[tuple[str, ...]]) -> list[str]:
    rows = [HEAD, ("---", "---:", "---:", "---:", "---:", "---"), *cells]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return ["| " + " | ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)) + " |" for row in rows]
