"""
Documents whose ```console blocks are run: what stands there must be what is printed.

A comment `<!-- state: NAME -->` begins a story: the blocks behind it, up to the next such comment, are typed one after
another into a database in that state. A line that is only `…` stands for lines that are left out. Indents and line
breaks are not compared, nor how wide a gap between columns is, nor what differs from run to run: times, durations,
pids, ports, sizes, warnings that are the server's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COLUMNS = 100
LEFT_OUT = "…"
_STATE = re.compile(r"<!-- state: ([a-z ]+) -->")
_ANSWER = re.compile(r"\[y/N\]: (\w+)$", re.MULTILINE)
_GAP = re.compile(r" {2,}")
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?: UTC|Z)?"), "TIME"),
    (re.compile(r"\b\d+(?:\.\d)? (?:d|h|min|s)\b(?: \d+ (?:h|min|s)\b)?"), "DURATION"),
    (re.compile(r"\b(pid|backend) \d+|(pg_terminate_backend)\(\d+\)"), r"\1\2 PID"),
    (re.compile(r"\boutboxd \d+@"), "outboxd PID@"),
    (re.compile(r"(127\.0\.0\.1(?::|', ))\d+"), r"\1PORT"),
    (re.compile(r"about [\d,]+ live and [\d,]+ dead rows, [\d.]+ \w+, indexes [\d.]+ \w+"), "SIZES"),
    (re.compile(r"by [\d,]+ transactions?"), "by TRANSACTIONS"),
    (re.compile(r"PostgreSQL \d+"), "PostgreSQL VERSION"),
    (re.compile(r", \d+ warnings?"), ", WARNINGS"),  # one more where the server's autovacuum is off
)


@dataclass(frozen=True)
class Step:
    """A command as it is typed, what stands under it, and where: `docs/runbook.md:12`."""

    command: str
    output: str
    place: str

    @property
    def answer(self) -> str:
        """What somebody types when the command asks; empty when it does not."""
        found = _ANSWER.search(self.output)
        return found[1] if found else ""


@dataclass(frozen=True)
class Story:
    """Commands that follow each other in one database; `name` is the heading that they stand under."""

    name: str
    state: str
    steps: list[Step]


def stories(document: Path) -> list[Story]:
    """Return those of a document; fails on a block that belongs to none."""
    found: list[Story] = []
    heading = ""
    for number, line, language in _lines(document):
        if language is None:
            heading = line.lstrip("# ") if line.startswith("#") else heading
            if state := _STATE.fullmatch(line.strip()):
                found.append(Story(heading, state[1], []))
        elif language == "console":
            assert found, f"{document.name}:{number}: in which state is the database?"
            steps = found[-1].steps
            if line.startswith("$ "):
                steps.append(Step(line[2:], "", f"{document.parent.name}/{document.name}:{number}"))
            else:
                steps[-1] = Step(steps[-1].command, f"{steps[-1].output}{line}\n", steps[-1].place)
    return found


def _lines(document: Path) -> Iterator[tuple[int, str, str | None]]:
    """Yield number, text, and the language of the block that a line stands in."""
    language = None
    for number, line in enumerate(document.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            language = line.removeprefix("```") if language is None else None
        else:
            yield number, line, language


def is_what_stands_there(printed: str, documented: str, names: Mapping[str, str]) -> bool:
    """
    Compare.

    Args:
        printed: By the command.
        documented: In the document.
        names: What this run calls things, and what the document does.
    """
    for ours, theirs in names.items():
        printed = printed.replace(ours, theirs)
    parts = re.split(rf"^{LEFT_OUT}$", documented, flags=re.MULTILINE)
    pattern = ".*?".join(re.escape(_comparable(part)) for part in parts)
    return re.fullmatch(pattern, _comparable(printed), re.DOTALL) is not None


def _comparable(text: str) -> str:
    """
    Take away what varies, and all white space but gaps: where a line is folded depends on the length of a pid.

    Durations are looked for after line breaks have become spaces, because one may be folded.
    """
    text = " ".join(_GAP.sub("|", line.strip()) for line in text.splitlines())
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return text.replace(" ", "")
