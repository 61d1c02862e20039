"""The statements of an operator's acts can be prepared, and take what their headers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outboxd import sql
from outboxd.inspection import inspect_table
from outboxd.outbox import renderer_of
from tests.drains import CONTROL, REGION, TEXT, UUID
from tests.integration.drain.test_statements import SHORT_NAMES, problems

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import OutboxConfig


@pytest.mark.parametrize("filename", ["acts.sql", "burial.sql"])
@pytest.mark.parametrize("outbox", [REGION, CONTROL, UUID, TEXT], ids=lambda outbox: outbox.name)
async def test_the_statements_about_a_shard(
    connection: asyncpg.Connection, outbox: OutboxConfig, filename: str
) -> None:
    table = await inspect_table(connection, outbox)
    renderer = renderer_of(table, "outboxd")
    statements = {name: renderer.render(text) for name, text in sql.load(filename).items()}
    types = [SHORT_NAMES.get(type_, type_) for type_ in table.shard_columns.values()]

    assert await problems(connection, statements, types) == []
