"""How lists are shown to people: columns that fit a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Iterable


NARROW_COLUMNS = 60
"""A terminal with fewer columns is no place for a table that is wider."""


def is_terminal(stream: TextIO) -> bool:
    """Whether it can be drawn on. Not rich's own idea: FORCE_COLOR would make a terminal of a pipe."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def aligned(rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Return a line a row, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [(indent + "  ".join(map(str.ljust, row, widths))).rstrip() for row in rows]


def show_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """
    Print a table with one line of titles.

    On a terminal long cells are folded to its width, and on a narrow one each row becomes some lines of its own;
    elsewhere nothing is cut, and a program can read the lines.

    Args:
        titles: Of the columns.
        rows: Their cells.
        right: Titles of columns whose cells stand on the right, as numbers do.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        click.echo("\n".join(aligned([titles, *cells])))
        return
    from rich.console import Console

    console = Console(highlight=False)
    lines = aligned([titles, *cells])
    if console.width < NARROW_COLUMNS and max(map(len, lines)) > console.width:
        click.echo("\n\n".join(_record(titles, row) for row in cells))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", justify="right" if title in right else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _record(titles: Sequence[str], row: Sequence[str]) -> str:
    return "\n".join(f"{title}: {cell}" for title, cell in zip(titles, row, strict=True))


def one_line(text: str, characters_max: int | None = None) -> str:
    """Return a text of somebody else's as one line that no terminal obeys, cut where it is too long."""
    shown = _printable(_flat(text))
    if characters_max is None or len(shown) <= characters_max:
        return shown
    return f"{shown[: characters_max - 1]}…"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _flat(text: str) -> str:
    return " ".join(text.split())


def show_lines(lines: Iterable[str], *, hang: int = 4) -> None:
    """
    Print lines of text; on a terminal long ones are folded to its width, elsewhere nothing is.

    What is to be copied, after `->`, is never folded by us: a command must come out of the terminal in one piece.

    Args:
        lines: Without line breaks.
        hang: Columns by which what is folded stands further right than its line.
    """
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0
    for text in lines:
        line = _printable(text)
        if not width or len(line) <= width or line.lstrip().startswith("->"):
            click.echo(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + hang)
        wrapped = textwrap.wrap(line, max(width, 20), subsequent_indent=indent, break_on_hyphens=False)
        click.echo("\n".join(wrapped))


def duration(seconds: float | None) -> str:
    """Write it with its two greatest units."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    units = (("d", whole // 86_400), ("h", whole // 3_600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((i for i, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2] if count) or "0 s"


def counted(count: int, noun: str) -> str:
    """Write a count and what it counts, a noun whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def moment(when: dt.datetime | str) -> str:
    """Write a time, as the driver has it or as JSON has it, in UTC to the second."""
    try:
        found = dt.datetime.fromisoformat(when) if isinstance(when, str) else when
    except ValueError:  # infinity, or beyond what a datetime can hold
        return str(when)
    return f"{found.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
