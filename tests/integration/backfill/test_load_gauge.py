"""How often the load of the outboxes is counted: a high rate must not count a long backlog every second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outboxd import budget
from tests.drains import write, write_many
from tests.walks import create_members, set_option, walking, with_models

if TYPE_CHECKING:
    import asyncpg


@pytest.mark.parametrize(("took_long", "counted_again"), [(False, True), (True, False)])
async def test_a_look_that_took_long_is_believed_for_a_while(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, took_long: bool, counted_again: bool
) -> None:
    monkeypatch.setattr(budget, "LOOK_SHARE", 1_000_000)
    monkeypatch.setattr(budget, "LOOK_S_MAX", 0.0 if took_long else 60.0)
    await create_members(connection, 5)
    async with walking(database) as backfill:
        gauge = budget.LoadGauge(backfill.config, backfill.session, lambda: database)
        assert (await gauge.measure(backfill.switchboard.now)).scheduled == 0
        await backfill.tick(paced=False)
        assert (await gauge.measure(backfill.switchboard.now)).scheduled == (5 if counted_again else 0)


async def test_what_is_switched_off_does_not_hide_what_waits_behind_it(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 500, shards=1)
    await set_option(connection, "outbox.disabled_shards.ORGANIZATION_SCOPE", "[1]")
    await connection.execute("UPDATE outbox SET date_added = now() - interval '1 hour'")
    await write(connection, shard=2)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        load = await backfill.load()

    assert load.scheduled == 1
    assert load.lag_s < 60


async def test_in_a_long_backlog_the_oldest_message_is_found_in_whatever_shard_it_is(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, shard=999)
    await connection.execute("UPDATE outbox SET date_added = now() - interval '1 hour'")
    await write_many(connection, 500, shards=1)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        load = await backfill.load()

    assert load.scheduled == 10
    assert 3_600 <= load.lag_s < 3_660
