"""How backfills are shown to people: tables and bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO, cast

from rich import progress
from rich.console import Console
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outboxd import log
from outboxd.backfill_report import explain
from outboxd.display import duration, echo, is_terminal, say, show_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from outboxd.backfill import Backfill
    from outboxd.backfill_report import Plan, Status
    from outboxd.config import LogConfig
    from outboxd.walker import Walker

NO_MODEL = "no [[model]] is configured: there is nothing to backfill"
LINE_INTERVAL_S = 5.0
BAR_WIDTH = 20
COLUMNS_MAX = 1_000
WORDS = {
    "waiting": "waiting for option",
    "lag": "paused by lag",
    "budget": "waiting for the rate",
    "unreadable": "not readable",
}
_TITLES = (
    "table",
    "version",
    "target",
    "condition",
    "low bound",
    "highest id",
    "done",
    "left",
    "last minute",
    "time left",
)


def show_statuses(found: Sequence[Status]) -> None:
    """Print a table, with bars on a terminal that is wide enough; below it, why something does not go on."""
    if not found:
        say(NO_MODEL)
        return
    console = Console(highlight=False)
    pictures = [_picture(found, has_bars=has_bars) for has_bars in (True, False)] if is_terminal(sys.stdout) else []
    fitting = next((each for each in pictures if _columns_of(each, console) <= console.width), None)
    if fitting is not None:
        console.print(fitting)
    else:
        show_table(_TITLES, map(_cells, found))
    if any(status.is_estimate for status in found):
        say("\n~ is an estimate")
    reasons = [f"{status.table}: {status.explanation}" for status in found if status.explanation]
    if reasons:
        say("\n" + "\n".join(reasons))


def plan_lines(plan: Plan, rate: int) -> Iterator[str]:
    """Write what a walk would do."""
    yield f"{plan.table}: {WORDS.get(plan.condition, plan.condition)}"
    if plan.explanation:
        yield f"  {plan.explanation}"
    if plan.version is None:
        return
    begins = "its beginning" if plan.low_bound == "0" else f"low bound {plan.low_bound}"
    yield f"  version {plan.version} of {plan.category} to outbox {plan.outbox}, from {begins}"
    minutes = "less than 0.1" if plan.minutes is not None and 0 < plan.minutes < 0.1 else f"{plan.minutes or 0:,.1f}"
    pace = "never: the rate is 0" if plan.minutes is None else f"{minutes} minutes at {rate:,} a minute"
    yield f"  {plan.rows:,} rows left, {plan.messages:,} messages, {pace}"
    if plan.rows_refused:
        yield f"  {plan.rows_refused:,} rows have no shard or no object: the outbox would refuse them"
    if plan.first_messages:
        yield "  first messages:"
    yield from (f"    {bytes(message).decode()}" for message in plan.first_messages)


def result_line(backfill: Backfill, walker: Walker) -> str:
    """Write what a walk in the foreground came to."""
    known = walker.progress
    done = f"{known.rows:,} rows and {known.messages:,} messages in this run"
    if known.condition == "finished":
        return f"{walker.table}: finished; {done}"
    reason = explain(backfill, walker)
    condition = "stopped" if known.condition == "walking" else WORDS.get(known.condition, known.condition)
    return f"{walker.table}: {condition} at low bound {known.low_bound}; {done}{'; ' if reason else ''}{reason}"


class Display:
    """
    How far a walk in the foreground is, on stderr: a bar for each table, or a line now and then.

    Use it as a context manager, and call `show` after each tick.

    Args:
        backfill: Its walkers are shown.
        before: Where they were.
        logging: How the log is written; meanwhile its lines are printed above the bars.
    """

    def __init__(self, backfill: Backfill, before: Sequence[Status], logging: LogConfig) -> None:
        self._backfill = backfill
        self._before = {status.table: status for status in before}
        self._logging = logging
        self._shown: dict[str, tuple[float, str]] = {}
        self._bars: progress.Progress | None = None
        self._tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Display:
        if is_terminal(sys.stderr):
            self._bars = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(BAR_WIDTH),
                progress.TextColumn("{task.fields[words]}"),
                console=Console(stderr=True, highlight=False),
            )
            for walker in self._backfill.walkers:
                self._tasks[walker.table] = self._bars.add_task(walker.table, total=None, words="")
            self._bars.start()
            log.configure(self._logging.format, self._logging.level, stream=cast("TextIO", sys.stderr))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
            log.configure(self._logging.format, self._logging.level)

    def show(self) -> None:
        """Draw what is known now."""
        for walker in self._backfill.walkers:
            if self._bars is None:
                self._show_line(walker)
            else:
                self._show_bar(self._bars, walker)

    def _show_bar(self, bars: progress.Progress, walker: Walker) -> None:
        before = self._before[walker.table]
        known = walker.progress
        rows_before = before.rows_done or 0
        total = None if before.rows_left is None else rows_before + before.rows_left
        if known.condition == "finished":
            total = rows_before + known.rows
        bars.update(
            self._tasks[walker.table], total=total, completed=rows_before + known.rows, words=self._words(walker)
        )

    def _show_line(self, walker: Walker) -> None:
        now = time.monotonic()
        at, condition = self._shown.get(walker.table, (float("-inf"), ""))
        if now - at >= LINE_INTERVAL_S or condition != walker.progress.condition:
            self._shown[walker.table] = (now, walker.progress.condition)
            echo(f"{walker.table}: {self._words(walker)}", err=True)

    def _words(self, walker: Walker) -> str:
        known = walker.progress
        left = self._before[walker.table].rows_left
        estimate = "~" if self._before[walker.table].is_estimate else ""
        of = "" if left is None or known.condition == "finished" else f" of {estimate}{max(left, known.rows):,}"
        words = WORDS.get(known.condition, known.condition)
        return f"{known.rows:,}{of} rows, {known.messages:,} messages, low bound {known.low_bound}, {words}"


def _cells(status: Status) -> tuple[str, ...]:
    return (
        status.table,
        str(status.version),
        str(status.target),
        WORDS.get(status.condition, status.condition),
        status.low_bound,
        status.highest_id or "-",
        _count(status.rows_done, status),
        _count(status.rows_left, status),
        f"{status.messages_last_minute:,}",
        duration(status.seconds_left),
    )


def _count(rows: int | None, status: Status) -> str:
    if rows is None:
        return "-" if status.condition in ("never", "broken") else "?"
    return f"~{rows:,}" if status.is_estimate and rows else f"{rows:,}"


def _columns_of(picture: Table, console: Console) -> int:
    """Tell how wide a terminal it needs, whatever that of the console is."""
    return Measurement.get(console, console.options.update(max_width=COLUMNS_MAX), picture).minimum


def _picture(found: Sequence[Status], *, has_bars: bool) -> Table:
    """Build the table; what belongs together shares a column, so that it fits into 100 columns."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    bars = [""] if has_bars else []
    for title in ("table", "version\nof target", "condition", *bars, "low bound\nhighest id", "done\nleft"):
        table.add_column(title, no_wrap=title != "condition")
    table.add_column("last minute\ntime left", justify="right", no_wrap=True)
    for status in found:
        name, version, target, condition, low, high, done, left, spent, rest = (Text(cell) for cell in _cells(status))
        newline = Text("\n")
        table.add_row(
            name,
            Text.assemble(version, " of ", target),
            condition,
            *([_bar(status)] if has_bars else []),
            low + newline + high,
            done + newline + left,
            spent + newline + rest,
        )
    return table


def _bar(status: Status) -> ProgressBar | Text:
    if status.rows_done is None or status.rows_left is None:
        return Text("")
    total = status.rows_done + status.rows_left
    return ProgressBar(total=max(total, 1), completed=status.rows_done if total else 1, width=BAR_WIDTH)
