"""The examples of the runbook and of the commands: each is typed on a terminal, and prints what stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import console
from tests.acceptance.states import in_state
from tests.drains import connected

if TYPE_CHECKING:
    from tests.console import Story

DOCS = Path(__file__).parent.parent.parent / "docs"
STORIES = [story for name in ("runbook.md", "commands.md") for story in console.stories(DOCS / name)]


@pytest.fixture(scope="session")
def template(migrated: str) -> str:
    """The database that each story's is a copy of."""
    return migrated


@pytest.mark.parametrize("story", STORIES, ids=lambda story: str(story.name))
async def test_the_examples_print_what_stands_there(story: Story, database: str, tmp_path: Path) -> None:
    async with in_state(story.state, database, tmp_path) as state:
        for step in story.steps:
            printed = await state.type(step.command, answer=step.answer)

            assert console.is_what_stands_there(printed, step.output, state.names), (
                f"{step.place}: {step.command}\n--- printed:\n{printed}\n--- stands there:\n{step.output}"
            )


@pytest.mark.parametrize("name", ["commands.md", "operations.md"])
async def test_the_sql_can_be_pasted(name: str, database: str, tmp_path: Path) -> None:
    scripts = re.findall(r"^```sql\n(.*?)^```$", (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert scripts

    async with in_state("trouble", database, tmp_path), connected(database) as connection:
        for script in scripts:
            await connection.execute(script)
