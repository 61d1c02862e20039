"""Giving up: Discard and max_attempts keep the message as a dead letter, and the shard goes on."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from outboxd.errors import Discard
from tests.drains import (
    CONTROL,
    Recorder,
    configure,
    drain_once,
    failing,
    failures,
    make_due,
    remaining,
    write,
)

if TYPE_CHECKING:
    import asyncpg

KEPT = ("shard_scope", "category", "payload", "headers", "scheduled_from", "scheduled_for", "date_added")


async def dead_letters(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch("SELECT * FROM outboxd.dead_letter ORDER BY message_id")


async def test_a_discarded_message_is_kept_whole_as_a_dead_letter(
    database: str, connection: asyncpg.Connection
) -> None:
    written = await write(connection, shard=5, obj=7, payload={"slug": "blau"})
    await connection.execute("""UPDATE outbox SET headers = '{"traceparent": "00-1"}'""")
    row = await connection.fetchrow("SELECT * FROM outbox")
    assert row is not None

    pipeline = await drain_once(database, Recorder(failing(error=Discard("nobody wants it"))))

    [letter] = await dead_letters(connection)
    assert {key: letter[key] for key in KEPT} == {key: row[key] for key in KEPT}
    assert (letter["outbox"], letter["message_id"], letter["region_name"]) == ("region", written, None)
    assert (letter["shard_identifier"], letter["object_identifier"]) == ("5", "7")
    assert (letter["attempts"], letter["reason"]) == (1, "nobody wants it")
    assert dt.datetime.now(dt.UTC) - letter["buried_at"] < dt.timedelta(minutes=5)
    assert "outboxd" in letter["buried_by"]
    assert await remaining(connection) == []
    assert pipeline.totals()["buried"] == 1


async def test_every_message_of_a_discarded_group_is_kept(database: str, connection: asyncpg.Connection) -> None:
    written = [await write(connection, obj=7, payload=number) for number in range(3)]

    await drain_once(database, Recorder(failing(error=Discard("no"))))

    letters = await dead_letters(connection)
    assert [letter["message_id"] for letter in letters] == written
    assert [letter["payload"] for letter in letters] == ["0", "1", "2"]


async def test_the_rest_of_a_shard_goes_on_after_a_burial(database: str, connection: asyncpg.Connection) -> None:
    for obj in (1, 2, 3):
        await write(connection, obj=obj)
    seen = Recorder(failing(2, error=Discard("no")))

    await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert await remaining(connection) == []
    assert await failures(connection) == []
    assert [letter["object_identifier"] for letter in await dead_letters(connection)] == ["2"]


async def test_a_message_is_buried_at_its_last_attempt(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, category="LIMITED")
    await write(connection, category="MEMBER", obj=2)
    seen = Recorder(failing(1, error=ValueError("still broken")))
    for _ in range(2):
        await drain_once(database, seen)
        assert await dead_letters(connection) == []
        await make_due(connection)

    await drain_once(database, seen)

    [letter] = await dead_letters(connection)
    assert letter["attempts"] == 3
    assert "still broken" in letter["reason"]
    assert [message.attempt for message in seen.messages if message.category_name == "LIMITED"] == [1, 2, 3]
    assert seen.objects[-1] == 2
    assert await remaining(connection) == []
    assert await failures(connection) == []


async def test_a_message_that_is_delivered_at_its_last_attempt_is_not_buried(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, category="LIMITED")
    for _ in range(2):
        await drain_once(database, Recorder(failing()))
        await make_due(connection)

    await drain_once(database, Recorder())

    assert await dead_letters(connection) == []
    assert await remaining(connection) == []


async def test_a_message_that_arrives_during_the_last_attempt_is_not_buried_with_the_others(
    database: str, connection: asyncpg.Connection
) -> None:
    old = await write(connection, category="LIMITED")
    for _ in range(2):
        await drain_once(database, Recorder(failing()))
        await make_due(connection)
    arrived: list[int] = []

    async def add_and_fail(_message: object) -> None:
        if not arrived:
            arrived.append(await write(connection, category="LIMITED"))
        raise ValueError

    await drain_once(database, Recorder(add_and_fail))

    assert [letter["message_id"] for letter in await dead_letters(connection)] == [old]
    assert await remaining(connection) == arrived


async def test_a_dead_letter_of_a_control_outbox_keeps_its_region(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, table="control_outbox", region="eu")

    await drain_once(database, Recorder(failing(error=Discard("no"))), configure(CONTROL))

    [letter] = await dead_letters(connection)
    assert (letter["outbox"], letter["region_name"]) == ("control", "eu")


async def test_a_reason_that_postgresql_cannot_store_does_not_keep_the_message_from_being_buried(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)

    await drain_once(database, Recorder(failing(error=Discard("a\0b\udfff"))))

    [letter] = await dead_letters(connection)
    assert letter["reason"].startswith("ab")
