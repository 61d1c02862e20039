"""The statements of producers and model receivers: their headers say what they take, and each goes by its index."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from outboxd import sql
from outboxd.inspection import inspect_table
from outboxd.outbox import renderer_of
from outboxd.session import HOT_SETTINGS
from tests.drains import CONTROL, REGION, TEXT, UUID, write_many
from tests.integration.drain.test_statements import SHORT_NAMES, problems

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import OutboxConfig


async def rendered(connection: asyncpg.Connection, config: OutboxConfig, *, headers: bool = True) -> dict[str, str]:
    table = await inspect_table(connection, config)
    names = {
        "object_type": table.object_type,
        "headers_name": "headers, " if headers else "",
        "headers_value": "new.headers::jsonb, " if headers else "",
    }
    renderer = renderer_of(table, "outboxd", **names)
    return {name: renderer.render(text) for name, text in sql.load("producer.sql").items()}


@pytest.mark.parametrize("config", [REGION, CONTROL, UUID, TEXT], ids=lambda config: config.name)
async def test_the_statements_take_what_their_headers_say(connection: asyncpg.Connection, config: OutboxConfig) -> None:
    table = await inspect_table(connection, config)
    types = [SHORT_NAMES.get(each, each) for each in table.shard_columns.values()]
    statements = await rendered(connection, config)
    save = statements.pop("save")  # it takes arrays, of the columns' own types
    assert await problems(connection, statements, types) == []
    await connection.prepare(save)


async def test_a_flush_goes_by_index_in_a_table_that_was_analysed_empty(connection: asyncpg.Connection) -> None:
    await connection.execute("ANALYZE outbox")
    await write_many(connection, 20_000, shards=4)
    for name, value in HOT_SETTINGS.items():
        await connection.execute(f"SET {name} = '{value}'")
    statements = await rendered(connection, REGION)
    for name, arguments in (("newest", ([1, 2], 0, 1)), ("still_there", ([1, 2],))):
        plan = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {statements[name]}", *arguments)
        text = "\n".join(row[0] for row in plan)
        assert "Seq Scan" not in text, text
        assert max(int(blocks) for blocks in re.findall(r"shared hit=(\d+)", text)) < 100, text
