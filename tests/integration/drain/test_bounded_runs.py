"""A run that ends by itself ends, whatever receivers write and whatever the database refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outboxd import settle
from tests.drains import Recorder, configure, connected, drain_once, remaining, write, write_many

if TYPE_CHECKING:
    import asyncpg
    import pytest

    from outboxd.model import Message

DEPTH = 100


async def test_it_ends_where_each_delivery_writes_a_message_into_a_deep_shard(
    database: str, connection: asyncpg.Connection
) -> None:
    async def one_more(message: Message) -> None:
        await write(connection, obj=int(str(message.object_identifier)) + DEPTH)

    await write_many(connection, DEPTH)
    seen = Recorder(one_more)
    await drain_once(database, seen, configure(turn_rows_max=20))

    assert seen.objects[:DEPTH] == list(range(DEPTH))
    assert seen.objects == list(range(len(seen.objects)))
    assert len(await remaining(connection)) == DEPTH


async def test_what_it_could_not_delete_is_not_delivered_again(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "DEFERRALS_MAX", 0)
    await write(connection, obj=1)
    seen = Recorder()
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM outbox FOR UPDATE")
        await drain_once(database, seen)

    assert seen.objects == [1]
    assert len(await remaining(connection)) == 1
