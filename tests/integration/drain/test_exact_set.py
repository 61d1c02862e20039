"""A delivery deletes exactly the messages that were read before it (I2), in order (I4), newest content first."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.drains import (
    Gate,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    make_due,
    remaining,
    until_empty,
    write,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message


async def test_a_lower_id_that_commits_during_the_delivery_survives_it_and_is_delivered(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    async with connected(database) as slow, draining(database, gate):
        producer = slow.transaction()
        await producer.start()
        lower = await write(slow, payload="began first")
        higher = await write(connection, payload="committed first")
        assert (await gate.closed_behind()).id == higher

        await producer.commit()
        gate.opened.set()

        await eventually(lambda: len(gate.messages) == 2)
        assert gate.messages[-1].id == lower
        await until_empty(connection)


async def test_a_lower_id_that_commits_during_the_delivery_stays_in_the_table(
    database: str, connection: asyncpg.Connection
) -> None:
    async with connected(database) as slow:
        producer = slow.transaction()
        await producer.start()
        lower = await write(slow)
        await write(connection)

        async def commit(message: Message) -> None:
            if message.id == lower:
                raise ValueError("keep it")
            await producer.commit()

        seen = Recorder(commit)
        await drain_once(database, seen)

    assert seen.ids == [lower + 1, lower]
    assert await remaining(connection) == [lower]


async def test_a_message_added_while_its_shard_drains_is_delivered(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    async with draining(database, gate):
        first = await write(connection, obj=1)
        await gate.closed_behind()
        second = await write(connection, obj=2)
        gate.opened.set()

        await eventually(lambda: len(gate.messages) == 2)

    assert [message.id for message in gate.messages] == [first, second]
    assert await remaining(connection) == []


async def test_a_message_about_the_same_object_added_during_its_delivery_is_delivered_too(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    async with draining(database, gate):
        first = await write(connection, obj=1)
        await gate.closed_behind()
        second = await write(connection, obj=1)
        gate.opened.set()

        await eventually(lambda: len(gate.messages) == 2)

    assert [message.id for message in gate.messages] == [first, second]


async def test_messages_about_one_object_become_one_delivery_of_the_newest(
    database: str, connection: asyncpg.Connection
) -> None:
    for number in range(1, 5):
        newest = await write(connection, obj=7, payload={"number": number})
    seen = Recorder()

    pipeline = await drain_once(database, seen)

    [message] = seen.messages
    assert (message.id, message.payload, message.coalesced) == (newest, {"number": 4}, 4)
    assert await remaining(connection) == []
    assert (pipeline.totals()["delivered"], pipeline.totals()["retired"]) == (1, 4)


async def test_objects_of_different_categories_or_scopes_are_not_coalesced(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, category="MEMBER")
    await write(connection, category="TEAM")
    await write(connection, category="PROFILE", scope=1)
    seen = Recorder()

    await drain_once(database, seen)

    assert sorted((m.category_name, m.scope_name) for m in seen.messages) == [
        ("MEMBER", "ORGANIZATION_SCOPE"),
        ("PROFILE", "USER_SCOPE"),
        ("TEAM", "ORGANIZATION_SCOPE"),
    ]


async def test_objects_of_a_shard_are_delivered_in_the_order_of_their_lowest_id(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (3, 1, 2, 1, 3, 3, 2):
        await write(connection, obj=obj)
    seen = Recorder()

    await drain_once(database, seen)

    assert seen.objects == [3, 1, 2]
    assert [message.coalesced for message in seen.messages] == [3, 2, 2]


async def test_a_category_that_does_not_coalesce_is_delivered_message_by_message_in_id_order(
    database: str, connection: asyncpg.Connection
) -> None:
    written = [await write(connection, category="AUDIT", obj=obj) for obj in (2, 1, 2, 2, 1)]
    seen = Recorder()

    await drain_once(database, seen)

    assert seen.ids == written
    assert {message.coalesced for message in seen.messages} == {1}


async def test_a_shard_deeper_than_a_turn_is_delivered_in_order_to_its_end(
    database: str, connection: asyncpg.Connection
) -> None:
    written = [await write(connection, category="AUDIT") for _ in range(25)]
    seen = Recorder()

    await drain_once(database, seen, configure(turn_rows_max=4))

    assert seen.ids == written
    assert await remaining(connection) == []


async def test_the_message_says_everything_about_its_row(database: str, connection: asyncpg.Connection) -> None:
    written = await write(connection, shard=42, obj=7, category="TEAM", payload={"slug": "blue"})
    await connection.execute("""UPDATE outbox SET headers = '{"traceparent": "00-1"}'""")
    row = await connection.fetchrow("SELECT * FROM outbox")
    assert row is not None
    seen = Recorder()

    await drain_once(database, seen)

    [message] = seen.messages
    assert (message.id, message.outbox, message.region_name) == (written, "region", None)
    assert (message.shard_scope, message.scope_name, message.shard_identifier) == (0, "ORGANIZATION_SCOPE", 42)
    assert (message.category, message.category_name, message.object_identifier) == (2, "TEAM", 7)
    assert (message.payload, message.headers) == ({"slug": "blue"}, {"traceparent": "00-1"})
    assert (message.date_added, message.scheduled_for) == (row["date_added"], row["scheduled_for"])
    assert (message.attempt, message.coalesced) == (1, 1)


def _note(calls: list[str], name: str, _message: Message) -> None:
    calls.append(name)


async def test_receivers_of_a_category_run_in_the_order_of_registration(
    database: str, connection: asyncpg.Connection
) -> None:
    calls: list[str] = []
    first, second, third = (Recorder(functools.partial(_note, calls, name)) for name in "abc")
    await write(connection)

    await drain_once(database, {"MEMBER": [second, first, third]})

    assert calls == ["b", "a", "c"]


async def test_a_receiver_behind_one_that_fails_is_not_called(database: str, connection: asyncpg.Connection) -> None:
    behind = Recorder()
    await write(connection)

    await drain_once(database, {"MEMBER": [Recorder(failing()), behind]})

    assert behind.messages == []
    assert len(await remaining(connection)) == 1


async def test_a_retry_runs_every_receiver_again(database: str, connection: asyncpg.Connection) -> None:
    first, second = Recorder(), Recorder(failing())
    await write(connection)
    await drain_once(database, {"MEMBER": [first, second]})
    await make_due(connection)

    mended = Recorder()
    await drain_once(database, {"MEMBER": [first, mended]})

    assert [message.attempt for message in first.messages] == [1, 2]
    assert [message.attempt for message in mended.messages] == [2]
    assert await remaining(connection) == []
