"""The documents: links that lead somewhere, examples that fit a terminal, and tables that name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outboxd import option_keys
from outboxd.config import ModelConfig, OutboxConfig, ScopeConfig
from tests import console
from tests.command_lines import leaves
from tests.documents import DOCUMENTS
from tests.drains import configure
from tests.unit.test_operations_docs import WORDS, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RUNBOOK = (DOCS / "runbook.md").read_text("utf-8")

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What its headings can be linked to as, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    texts = [LINK.sub(lambda link: link[0][1 : link[0].index("]")], heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def links(path: Path) -> Iterator[tuple[Path, str]]:
    for target in LINK.findall(prose(path)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield ((path.parent / file).resolve() if file else path), anchor


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for file, anchor in links(path):
        assert file.exists(), f"{path.name}: there is no {file}"
        assert not anchor or anchor in anchors(file), f"{path.name}: {file.name} has no heading for #{anchor}"


@pytest.mark.parametrize("name", ["runbook.md", "commands.md", "operations.md"])
def test_examples_fit_a_terminal(name: str) -> None:
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```$", (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        if language != "sql":
            assert [line for line in block.splitlines() if len(line) > console.COLUMNS] == []


def test_every_question_of_the_runbook_is_in_its_index_and_answered_with_what_is_printed() -> None:
    index, _, rest = RUNBOOK.partition("\n## ")
    answers, _, _ = f"## {rest}".partition("## Alerts")
    sections = re.split(r"^## ", answers, flags=re.MULTILINE)[1:]

    for section in sections:
        question = section.partition("\n")[0]
        assert f"(#{re.sub(r'[^a-z ]', '', question.lower()).replace(' ', '-')})" in index, question
        assert "```console\n$ outboxd" in section, question


def test_the_table_of_commands_is_complete() -> None:
    documented = [WORDS.findall(row[0])[0] for row in rows("command", DOCS / "commands.md")]

    assert documented == ["outboxd", "outboxd --once", *(f"outboxd {name}" for name in leaves())]


def test_the_table_of_options_is_that_of_the_code() -> None:
    model = ModelConfig(table="<table>", outbox="region", category="MEMBER", shard_identifier="id")
    config = configure(OutboxConfig(name="region", table="outbox"))
    config = type(config)(
        outbox=config.outbox, categories=config.categories, scopes={"<SCOPE>": ScopeConfig(value=0)}, model=[model]
    )
    known = {name: key.expected for name, key in option_keys.known(config).items()}

    assert {WORDS.findall(name)[0]: holds for name, holds, _ in rows("option", DOCS / "operations.md")} == known
