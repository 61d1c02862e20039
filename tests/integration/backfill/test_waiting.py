"""When a backfill waits for live traffic, for people, or for its turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from outboxd import backfill_run
from tests.drains import CATEGORIES, CONTROL, REGION, write, write_many
from tests.eventually import PATIENCE_S
from tests.walks import (
    create_members,
    let_a_minute_pass,
    let_time_pass,
    model,
    objects,
    progress_of,
    set_option,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg


async def make_old(connection: asyncpg.Connection, seconds: int, table: str = "outbox") -> None:
    """Let what is in the outbox have been due for so long."""
    await connection.execute(
        f"UPDATE {table} SET date_added = now() - make_interval(secs => $1),"
        " scheduled_for = now() - make_interval(secs => $1)",
        seconds,
    )


async def test_an_old_due_message_holds_backfills_until_it_is_gone(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    await write(connection)
    await make_old(connection, 90)
    async with walking(database) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "lag"

        await make_old(connection, 40)
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "lag", "it goes on below half of the bound only"

        await make_old(connection, 20)
        assert await backfill.tick(paced=False)


async def test_a_message_that_is_not_due_yet_is_no_lag(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    await write(connection, due_in_s=30)
    await connection.execute("UPDATE outbox SET date_added = now() - interval '1 day'")
    async with walking(database) as backfill:
        assert await backfill.tick(paced=False)
        assert progress_of(backfill).rows == 3


PAUSED_SHARD = "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier) VALUES ('shard', 0, '9')"
PAUSED_CATEGORY = "INSERT INTO outboxd.pause (kind, category) VALUES ('category', 2)"
DISABLED_SHARD = "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_shards.ORGANIZATION_SCOPE', '[9]')"
DISABLED_CATEGORY = "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_categories', '[\"TEAM\"]')"
FAILING = (
    "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id)"
    " VALUES ('region', 0, '9', 2, '1', 1)"
)


@pytest.mark.parametrize("statement", [PAUSED_SHARD, PAUSED_CATEGORY, DISABLED_SHARD, DISABLED_CATEGORY, FAILING])
async def test_what_cannot_be_delivered_is_neither_scheduled_nor_lag(
    database: str, connection: asyncpg.Connection, statement: str
) -> None:
    assert CATEGORIES["TEAM"].value == 2
    await create_members(connection, 20)
    for obj in range(10):
        await write(connection, shard=9, obj=obj, category="TEAM")
    await make_old(connection, 3600)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "lag"

        await connection.execute(statement)
        await backfill.switchboard.refresh()
        assert await backfill.tick(paced=False)
        assert progress_of(backfill).rows == 10

        await let_time_pass(connection, 61)
        assert not await backfill.tick(paced=False), "the rows just written are scheduled"


async def test_a_switched_off_outbox_is_no_lag_for_the_others(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    await write(connection, table="control_outbox", region="us")
    await make_old(connection, 3600, "control_outbox")
    async with walking(database, with_models(outboxes=(REGION, CONTROL))) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "lag"

        await set_option(connection, "outbox.disabled_outboxes", '["control"]')
        await backfill.switchboard.refresh()
        assert await backfill.tick(paced=False)


async def test_an_outbox_that_cannot_be_measured_holds_nothing_up(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    await connection.execute("DROP TABLE control_outbox")
    async with walking(database, with_models(outboxes=(REGION, CONTROL))) as backfill:
        assert await backfill.tick(paced=False)

    assert await watermark(connection) == ("0", 2)


@pytest.mark.parametrize(
    ("switch", "key"),
    [("outbox.disabled_outboxes", '["region"]'), ("outbox.disabled_categories", '["MEMBER"]')],
)
async def test_nothing_is_written_to_what_is_switched_off(
    database: str, connection: asyncpg.Connection, switch: str, key: str
) -> None:
    await create_members(connection, 3)
    await set_option(connection, switch, key)
    async with walking(database) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "paused"

    assert await watermark(connection) is None


async def test_a_pause_covers_one_table_or_all(database: str, connection: asyncpg.Connection) -> None:
    tables = ("public.first", "public.second")
    for table in tables:
        await create_members(connection, 3, table=table)

    def conditions() -> list[str]:
        return [progress_of(backfill, table).condition for table in tables]

    async with walking(database, with_models(*(model(table=table) for table in tables))) as backfill:
        await connection.execute("INSERT INTO outboxd.pause (kind) VALUES ('backfill')")
        await backfill.switchboard.refresh()
        assert not await backfill.tick(paced=False)
        assert conditions() == ["paused", "paused"]

        await connection.execute("UPDATE outboxd.pause SET table_name = 'public.first'")
        await backfill.switchboard.refresh()
        assert await backfill.tick(paced=False)
        assert conditions() == ["paused", "finished"]

        await connection.execute("UPDATE outboxd.pause SET expires_at = now() - interval '1 second'")
        await backfill.switchboard.refresh()
        assert await backfill.tick(paced=False)
        assert conditions() == ["finished", "finished"]


@pytest.mark.parametrize("paced", [True, False])
async def test_a_huge_table_does_not_starve_a_small_one(
    database: str, connection: asyncpg.Connection, paced: bool
) -> None:
    tables = ("public.huge", "public.big", "public.small")
    for table, count in zip(tables, (5_000, 5_000, 3), strict=True):
        await create_members(connection, count, table=table)
    config = with_models(*(model(table=table) for table in tables), backfills_per_minute=600)
    async with walking(database, config) as backfill:
        for _ in range(2):
            await backfill.tick(paced=paced)
            await let_a_minute_pass(connection)
        assert progress_of(backfill, "public.small").rows == 3
        assert progress_of(backfill, "public.huge").rows > 0
        assert progress_of(backfill, "public.big").rows > 0


async def test_with_a_budget_of_one_message_the_models_take_turns(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("outboxd.budget.time.monotonic", lambda: clock[0])
    tables = ("public.a", "public.b", "public.c")
    for table in tables:
        await create_members(connection, 100, table=table)
    config = with_models(*(model(table=table) for table in tables), backfills_per_minute=60)
    async with walking(database, config) as backfill:
        for _ in range(9):
            clock[0] += 1
            await backfill.tick(paced=True)
            await let_a_minute_pass(connection)
        assert [progress_of(backfill, table).rows for table in tables] == [3, 3, 3]


async def test_a_long_backlog_of_live_traffic_leaves_what_is_left_of_the_rate(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 1_000)
    await write_many(connection, 70, shards=7)
    async with walking(database, with_models(backfills_per_minute=100)) as backfill:
        assert await backfill.tick(paced=False)

    assert len(await objects(connection)) == 100


async def test_a_walk_in_the_foreground_ends_when_nobody_drains(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_run, "UNDRAINED_PATIENCE_S", 0.0)
    await create_members(connection, 20)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        foreground = backfill_run.Foreground(
            backfill, backfill_run.Interrupt(), force_synchronous=False, on_tick=lambda: None
        )
        async with asyncio.timeout(PATIENCE_S):
            await foreground.run()
        assert progress_of(backfill).condition == "budget"

    assert await objects(connection) == list(range(1, 11))
