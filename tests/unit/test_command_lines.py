"""Every command line of outboxd that is written down anywhere, or printed as a hint: it can be typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.command_lines import Line, in_code, in_document, in_text, problem
from tests.documents import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "outboxd"
TEXTS = [
    ROOT / "deploy" / "prometheus" / "outboxd.rules.yml",
    ROOT / "deploy" / "grafana" / "outboxd.json",
    *PACKAGE.rglob("*.sql"),
]
CODE = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "demo"]  # its titles look like commands


def lines_of(path: Path) -> Iterator[Line]:
    if path in DOCUMENTS:
        return in_document(path)
    return in_text(path) if path in TEXTS else in_code(path)


LINES = {path: list(lines_of(path)) for path in sorted([*DOCUMENTS, *TEXTS, *CODE])}
FILES = [path for path, lines in LINES.items() if lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_line_that_stands_somewhere_can_be_typed(path: Path) -> None:
    problems = {f"{line.place}: {line.text}": problem(line) for line in LINES[path]}

    assert {place: said for place, said in problems.items() if said} == {}


@pytest.mark.parametrize("name", ["docs/runbook.md", "README.md", "outboxd/reasons.py", "outboxd/symptoms.py"])
def test_command_lines_are_found(name: str) -> None:
    assert len(LINES[ROOT / name]) > 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outboxd retyr SCOPE SHARD", "did you mean retry"),
        ("outboxd dead-letters lst", "lst"),
        ("outboxd dead-letters list|shwo", "shwo"),
        ("outboxd shards --stuk", "--stuk"),
        ("outboxd pause [--shrad ID]", "--shrad"),
        ("outboxd --onse", "--onse"),
        ("outboxd check --role waiter", "waiter"),
        ("outboxd inspect SCOPE SHARD TOO_MUCH", "unexpected extra argument"),
    ],
)
def test_what_cannot_be_typed_is_found(text: str, said: str) -> None:
    assert said in problem(Line(text, "here"))


def test_what_may_be_cut_short_in_a_text_must_be_whole_in_an_example() -> None:
    assert problem(Line("outboxd bury ID… --reason", "here")) == ""
    assert "--reason" in problem(Line("outboxd bury 1", "here", is_whole=True))
