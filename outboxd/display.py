"""How lists are shown to people: columns that fit a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

PROSE_COLUMNS_MIN = 20
GAP = 2

_PART = re.compile(r"\s?\S+?(?:[./](?=[^\W\d_])|(?=\s|$))")
_WORD = re.compile(r"(\s*)(\S+)")
_WORD_OR_QUOTED = re.compile(r"(\s*)(`[^`]+`\S*|\S+)")
_COMMAND = "(?:outboxd|ALTER|COMMIT|CREATE|DROP|GRANT|REINDEX|ROLLBACK|SELECT|VACUUM) "
_TO_COPY = re.compile(rf"\s*(?:-> (?:.*: )?{_COMMAND}|GRANT |ALTER |CREATE )|.*: outboxd ")


def is_terminal(stream: TextIO) -> bool:
    """Whether it can be drawn on. Not rich's own idea: FORCE_COLOR would make a terminal of a pipe."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def aligned(rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Return a line a row, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [(indent + "  ".join(map(str.ljust, row, widths))).rstrip() for row in rows]


def show_table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    folds: Iterable[str] = (),
    cuts: Iterable[str] = (),
) -> None:
    """
    Print a table with one line of titles.

    On a terminal it is made to fit: prose is folded between words, glimpses are cut. What would have to be broken
    elsewhere makes each row some lines of its own. Elsewhere nothing is cut, and a program can read the lines.

    Args:
        titles: Of the columns.
        rows: Their cells.
        right: Titles of columns whose cells stand on the right, as numbers do.
        folds: Titles of columns of prose.
        cuts: Titles of columns that are but a glimpse.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        click.echo("\n".join(aligned([titles, *cells])))
        return
    room = shutil.get_terminal_size().columns
    widths = _widths(titles, cells, room, set(folds), set(cuts))
    if widths is None:
        click.echo("\n\n".join(_record(titles, row, room) for row in cells))
        return
    glimpses = [
        [one_line(c, w) if t in cuts else c for t, c, w in zip(titles, row, widths, strict=True)] for row in cells
    ]
    head, *others = (_drawn(row, widths, [title in right for title in titles]) for row in [titles, *glimpses])
    click.echo("\n".join([click.style(head, bold=True), *others]))


def _widths(
    titles: Sequence[str], rows: Sequence[Sequence[str]], room: int, folds: set[str], cuts: set[str]
) -> list[int] | None:
    """Tell how wide each column may be; None: they do not fit."""
    columns = list(zip(titles, *rows, strict=True))
    needed, wanted = [], []
    for title, *cells in columns:
        word = max(_width(part.strip()) for part in _parts(title))
        whole = max([word, *map(_width, cells)])
        words = max([PROSE_COLUMNS_MIN, *(_width(part) for cell in cells for part in _parts(cell))])
        least = {title in folds: words, title in cuts: PROSE_COLUMNS_MIN}.get(True, whole)
        needed.append(min(least, whole))
        wanted.append(max(whole, _width(title)))
    spare = room - GAP * (len(titles) - 1) - sum(needed)
    if spare < 0:
        return None
    for index, (least, most) in enumerate(zip(needed, wanted, strict=True)):
        more = min(spare, most - least)
        needed[index] += more
        spare -= more
    return needed


def _drawn(row: Sequence[str], widths: Sequence[int], rights: Sequence[bool]) -> str:
    """Draw a row, of as many lines as its highest cell has."""
    columns = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
    return "\n".join(
        (" " * GAP).join(map(_padded, cells, widths, rights)).rstrip()
        for cells in itertools.zip_longest(*columns, fillvalue="")
    )


def _folded(text: str, width: int, *, more: int = 0, keeps_quoted: bool = False) -> list[str]:
    """Return lines that are no wider, folded between words where that can be; the first may be so much wider."""
    lines = [""]
    for space, word in (_WORD_OR_QUOTED if keeps_quoted else _WORD).findall(text):
        is_whole = _width(word) <= width or (keeps_quoted and word.count("`") > 1)
        for number, part in enumerate([word] if is_whole else _pieces(word, width)):
            longer = lines[-1] + (part if number else space + part)
            if lines == [""] or _width(longer) <= width + more * (len(lines) == 1):
                lines[-1] = longer
            else:
                lines.append(part)
    return lines


def _pieces(word: str, width: int) -> list[str]:
    """Split a long word, best after the full stops and slashes of names."""
    return [part[at : at + width] for part in _parts(word) for at in range(0, len(part), width)]


def _parts(text: str) -> list[str]:
    return _PART.findall(text)


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    """Tell how many columns of a terminal it takes."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _record(titles: Sequence[str], row: Sequence[str], room: int) -> str:
    return "\n".join(_hanging(f"{title}: {cell}", room, "  ") for title, cell in zip(titles, row, strict=True))


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


def show_lines(lines: Iterable[str], *, hang: int = 4, err: bool = False) -> None:
    """
    Print lines of text; on a terminal long ones are folded to its width, elsewhere nothing is.

    What is to be copied is never folded by us: a command must come out of the terminal in one piece. It stands between
    backticks, or makes the line: after `->` or after a colon, or it is SQL.

    Args:
        lines: Without line breaks.
        hang: Columns by which what is folded stands further right than its line.
        err: To stderr.
    """
    for line in lines:
        echo(fitting(line, hang=hang, err=err), err=err)


lost: list[OSError] = []
"""Why something could not be printed on stdout; `commands.run` makes an exit code of it, when all is done."""


def echo(text: str, *, err: bool = False) -> None:
    """
    Print what is said on the way. Where that cannot be, what follows goes nowhere, and nothing is raised.

    Who acts must finish, whether anybody reads on or not. Of what is lost on stderr there is nobody to be told.
    """
    try:
        click.echo(text, err=err)
    except OSError as exc:
        lead_nowhere(sys.stderr if err else sys.stdout)
        if not err:
            lost.append(exc)


def lead_nowhere(stream: TextIO) -> None:
    """Let a stream that cannot be written to any more swallow everything, also what it still holds."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def flush() -> None:
    """Write out what stdout and stderr hold; the interpreter's own last flush would fail aloud."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            lead_nowhere(stream)


def fitting(line: str, *, hang: int = 4, err: bool = False) -> str:
    """Return one line as `show_lines` prints it."""
    stream = sys.stderr if err else sys.stdout
    shown = _printable(line)
    if not is_terminal(stream) or _TO_COPY.match(shown):
        return shown
    return _hanging(shown, shutil.get_terminal_size().columns, " " * hang)


def say(text: str, *, err: bool = False) -> None:
    """Print one sentence, or some lines of them, as `show_lines` does."""
    show_lines(text.splitlines(), err=err)


def _hanging(line: str, width: int, hang: str) -> str:
    """Fold a line; what follows its first part stands further right."""
    if _width(line) <= width:
        return line
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    room = max(width - len(indent + hang), PROSE_COLUMNS_MIN)
    return indent + f"\n{indent}{hang}".join(_folded(text, room, more=len(hang), keeps_quoted=True))


def duration(seconds: float | None) -> str:
    """Write it with its two greatest units."""
    if seconds is None:
        return "-"
    if math.isinf(seconds):
        return "an infinite time"
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


def seconds_between(now: str, time: str) -> float:
    """Tell how far away a time is, both as JSON has them; infinite for `infinity` and what Python's calendar lacks."""
    try:
        return (dt.datetime.fromisoformat(time) - dt.datetime.fromisoformat(now)).total_seconds()
    except ValueError:
        return -math.inf if time.startswith("-") or time.endswith("BC") else math.inf
