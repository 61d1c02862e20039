"""How the demo is shown: a table that changes in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from outboxd.demo.figures import Failing, Figures, Walk

FAILING_SHOWN_MAX = 8
LINES_BESIDES_FAILING = 19
NOTES_WIDTH_MIN = 60
BAR_WIDTH = 20
SUMMARY_WIDTH_MIN = 80
TABLE_INTERVAL_S = 0.25
LINE_INTERVAL_S = 1.0


class Screen:
    """
    Standard output.

    When nobody reads any more (a closed terminal, `| head`) it falls silent and tells `on_gone`, once.

    Args:
        seconds: How long the demo will run; 0 until it is stopped.
        on_gone: Called when standard output cannot be written to.
    """

    def __init__(self, seconds: float, on_gone: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_gone = on_gone
        with contextlib.suppress(AttributeError, ValueError):
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # an ellipsis on a Latin-1 terminal
        # Not rich's own idea of a terminal: FORCE_COLOR would make one out of a pipe.
        self.is_live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._console = _Console(highlight=False, force_terminal=self.is_live)
        self._live: Live | None = None
        self.gone: OSError | None = None

    @property
    def interval_s(self) -> float:
        """Seconds between two figures."""
        return TABLE_INTERVAL_S if self.is_live else LINE_INTERVAL_S

    def say(self, text: str = "", *, verbatim: bool = False) -> None:
        """Print a paragraph; *verbatim* leaves the wrapping to the terminal, for what may be copied."""
        self._write(lambda: self._console.print(Text(text), soft_wrap=verbatim or not self.is_live))

    def show(self, figures: Figures) -> None:
        """Show figures: the table anew, or one more line."""
        if not self.is_live:
            self.say(line(figures))
            return
        size = self._console.size
        failing_max = max(1, min(FAILING_SHOWN_MAX, size.height - LINES_BESIDES_FAILING))
        picture = table(figures, self._title(figures), size.width, failing_max)
        self._write(lambda: self._draw(picture))

    def clear(self) -> None:
        """Take the table away and give the cursor back."""
        live, self._live = self._live, None
        if live is not None:
            self._write(live.stop)

    def conclude(self, figures: Figures, transactions: int) -> None:
        """Print the sum that must add up."""
        with_notes = not self.is_live or self._console.size.width >= SUMMARY_WIDTH_MIN
        self.say(f"\n{figures.elapsed_s:.0f} s, {figures.rows_per_s:,.0f} rows/s. The sum:\n")
        self.say(summary(figures, transactions, with_notes=with_notes), verbatim=True)

    def _draw(self, picture: Group) -> None:
        if self._live is None:
            # Transient: the sum takes its place.
            live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live = live
            live.start()
        self._live.update(picture, refresh=True)

    def _title(self, figures: Figures) -> str:
        of = f" of {self._seconds:g}" if self._seconds else ""
        return f"outboxd demo, {figures.elapsed_s:.0f}{of} s. Ctrl-C ends it."

    def _write(self, write: Callable[[], object]) -> None:
        if self.gone is not None:
            return
        try:
            write()
            sys.stdout.flush()
        except OSError as exc:
            self.gone = exc
            self._on_gone()


class _Console(Console):
    """Rich's, without its idea to leave the program where a pipe breaks: there is a server to be stopped first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def table(figures: Figures, title: str, width: int, failing_max: int) -> Group:
    """Build the picture; its upper part is the sum that the demo ends with."""
    sums = Padding(_sum(figures, with_notes=width >= NOTES_WIDTH_MIN), (0, 0, 0, 2))
    return Group(Text(title, style="bold"), "", sums, "", *_failing(figures, failing_max))


def _sum(figures: Figures, *, with_notes: bool) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, min_width=7)
    if with_notes:
        grid.add_column(style="dim")

    def add(name: str, value: str, note: str | Table, style: str = "") -> None:
        grid.add_row(name, Text(value, style=style), *([note] if with_notes else []))

    if figures.found:
        add("  rows found", f"{figures.found:,}", "left by an earlier demo")
    add("+ rows written" if figures.found else "  rows written", f"{figures.written:,}", "by the shop")
    add("+ backfilled", f"{figures.backfilled:,}", "by the daemon, for members that were there before")
    add("= delivered", f"{figures.delivered:,}", "calls of receivers", "green")
    add("+ coalesced away", f"{figures.coalesced:,}", "a newer one went instead")
    add("+ due", f"{figures.due:,}", "their turn is next")
    add("+ in backoff", f"{figures.in_backoff:,}", "of failing shards", "yellow")
    if figures.buried:
        add("+ buried", f"{figures.buried:,}", "given up")
    grid.add_row("")
    add("  rows/s", f"{figures.rows_per_s:,.0f}", "leave the outbox")
    add("  lag", f"{figures.lag_s:.1f} s", "age of the oldest due row")
    add("  failures", f"{figures.failures:,}", "each is tried again")
    add("  backfill", f"{figures.walk.percent} %", _bar(figures.walk))
    return grid


def _bar(walk: Walk) -> Table:
    bar = Table.grid(padding=(0, 1))
    words = Text(f"{walk.done:,} of {walk.total:,}, {walk.condition}")
    bar.add_row(ProgressBar(total=walk.total or 1, completed=walk.done, width=BAR_WIDTH), words)
    return bar


def _failing(figures: Figures, failing_max: int) -> list[Text | Table]:
    if not figures.failing:
        return [Text("no failing shard", style="dim")]
    shown = figures.failing[:failing_max]
    rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    # Only the error gives way where the terminal is narrow.
    rows.add_column("failing", no_wrap=True, min_width=max(7, *(len(failing.shard) for failing in shown)))
    rows.add_column("tries", justify="right", no_wrap=True, min_width=5)
    rows.add_column("next", no_wrap=True, min_width=8)
    rows.add_column("last error", no_wrap=True, overflow="ellipsis")
    for failing in shown:
        next_in = Text(_next(failing), style="yellow")
        rows.add_row(Text(failing.shard), str(failing.attempts), next_in, Text(brief(failing.error), style="red"))
    hidden = len(figures.failing) - len(shown)
    return [rows, Text(f"and {hidden} more", style="dim")] if hidden else [rows]


def _next(failing: Failing) -> str:
    return f"in {failing.next_in_s:.1f} s" if failing.next_in_s else "now"


def brief(error: str) -> str:
    """Leave out which function raised: in a narrow column the reason is what counts."""
    return error.partition(" raised ")[2] or error


def line(figures: Figures) -> str:
    """Write the figures as a line for a log or a pipe, and a second one where shards fail."""
    text = (
        f"{figures.elapsed_s:4.0f} s  written {figures.written}, backfilled {figures.backfilled} "
        f"({figures.walk.percent} % of the members, {figures.walk.condition}), delivered {figures.delivered}, "
        f"coalesced away {figures.coalesced}, due {figures.due}, in backoff {figures.in_backoff}, "
        f"{figures.rows_per_s:.0f} rows/s, lag {figures.lag_s:.1f} s"
    )
    if not figures.failing:
        return text
    first = figures.failing[0]
    return (
        f"{text}\n        failing shards {len(figures.failing)}, the next: {first.shard}, {_next(first)}, "
        f"attempt {first.attempts} failed: {brief(first.error)}"
    )


def summary(figures: Figures, transactions: int, *, with_notes: bool) -> str:
    """Write the sum: what was put into the outbox = what became of it."""
    came = [("rows found", figures.found, "left by an earlier demo")] if figures.found else []
    came += [("rows written", figures.written, f"in {transactions:,} transactions of the shop")]
    came += [("backfilled", figures.backfilled, _members(figures.walk))]
    shards = f"{len(figures.failing)} failing shard{'' if len(figures.failing) == 1 else 's'}"
    went = [
        ("delivered", figures.delivered, "one call of a receiver each"),
        ("coalesced away", figures.coalesced, "a newer row about the same object went"),
        ("waiting", figures.waiting, f"{figures.due:,} due, {figures.in_backoff:,} in backoff ({shards})"),
    ]
    if figures.buried:
        went += [("buried", figures.buried, "given up and kept as dead letters")]
    signs = " " + "+" * (len(came) - 1) + "=" + "+" * (len(went) - 1)
    lines = [
        f"  {sign} {name:<15}{count:>9,}" + (f"   {note}" if with_notes else "")
        for sign, (name, count, note) in zip(signs, came + went, strict=True)
    ]
    return "\n".join(lines)


def _members(walk: Walk) -> str:
    return f"for older members: {walk.done:,} of {walk.total:,} done, {walk.condition}"


def program() -> str:
    """Tell how this program was called, in a form that can be typed again."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m outboxd"
    found = shutil.which("outboxd")
    if found is not None and Path(found).resolve() == called.resolve():
        return "outboxd"
    relative = os.path.join(".", os.path.relpath(called))
    return shlex.quote(str(called.absolute()) if ".." in Path(relative).parts else relative)
