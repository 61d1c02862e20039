"""One question, asked by a command or in psql: under the same conditions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from outboxd.query import Query, fetch

if TYPE_CHECKING:
    import asyncpg

SETTINGS = (
    "SELECT name, setting FROM pg_settings"
    " WHERE name IN ('enable_bitmapscan', 'enable_indexscan', 'enable_seqscan') ORDER BY name LIMIT 100"
)


@pytest.mark.parametrize("by_index", [True, False])
async def test_what_is_printed_says_which_plans_the_command_rules_out(
    connection: asyncpg.Connection, by_index: bool
) -> None:
    question = Query(about="Settings.", statement=SETTINGS, names={}, shard_columns={}, by_index=by_index)
    asked = await fetch(connection, question, "looking at settings")
    *comments, statement = question.for_psql().splitlines()
    for setting in re.findall(r"SET \w+ = \w+;", "\n".join(comments)):
        await connection.execute(setting)
    pasted = [dict(row) for row in await connection.fetch(statement)]

    assert pasted == asked
    assert sum(row["setting"] == "off" for row in asked) == (2 if by_index else 0)
    assert all(comment.startswith("-- ") for comment in comments)
