"""Burying by hand: under the shard's lock, all or none, and what waited behind it goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import acts, burial, errors
from tests.drains import (
    CONTROL,
    REGION,
    STANDARD,
    Gate,
    Recorder,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    remaining,
    write,
)
from tests.letters import letters

if TYPE_CHECKING:
    import asyncpg

    from outboxd.burial import Burial


async def bury(connection: asyncpg.Connection, *ids: int, **options: Any) -> list[Burial]:
    values: dict[str, Any] = {"reason": "poison", "by": "ada", "patience_s": 0.0, **options}
    return await burial.bury(connection, STANDARD, values.pop("outbox", REGION), ids, **values)


async def due(connection: asyncpg.Connection) -> list[int]:
    rows = await connection.fetch("SELECT id FROM outbox WHERE scheduled_for <= now() ORDER BY id")
    return [row[0] for row in rows]


async def test_a_failing_message_is_buried_and_its_shard_goes_on(database: str, connection: asyncpg.Connection) -> None:
    ids = [await write(connection, obj=obj, payload=obj) for obj in (1, 2, 3)]
    await drain_once(database, Recorder(failing(1)))
    assert await due(connection) == []

    [buried] = await bury(connection, ids[0])

    [letter] = await letters(connection)
    assert (letter["id"], letter["message_id"], letter["payload"]) == (buried.letter, ids[0], "1")
    assert (letter["attempts"], letter["reason"]) == (1, "poison")
    assert letter["buried_by"] == "ada"
    assert buried.unblocks
    assert await failures(connection) == []
    assert await due(connection) == ids[1:]


async def test_the_failure_of_another_object_is_not_forgotten_nor_its_wait_cut_short(
    database: str, connection: asyncpg.Connection
) -> None:
    ids = [await write(connection, obj=obj) for obj in (1, 2, 3)]
    await drain_once(database, Recorder(failing(1)))

    [buried] = await bury(connection, ids[2])

    assert not buried.unblocks
    assert [row["object_identifier"] for row in await failures(connection)] == ["1"]
    assert (await due(connection), await remaining(connection)) == ([], ids[:2])


async def test_a_later_message_of_the_failing_object_keeps_its_count(
    database: str, connection: asyncpg.Connection
) -> None:
    """The newest content is gone, so the shard is tried at once; that the object has failed stays known."""
    ids = [await write(connection, obj=1, payload=number) for number in (1, 2)]
    await drain_once(database, Recorder(failing(1)))

    await bury(connection, ids[1])

    assert [row["message_id"] for row in await failures(connection)] == ids[:1]
    assert await due(connection) == ids[:1]


async def test_of_several_none_is_buried_when_one_is_not_there(connection: asyncpg.Connection) -> None:
    written = await write(connection)

    with pytest.raises(errors.ActRefused, match="has no message 77"):
        await bury(connection, written, 77)

    assert (await remaining(connection), await letters(connection)) == ([written], [])


async def test_several_of_several_shards_go_at_once(database: str, connection: asyncpg.Connection) -> None:
    ids = [await write(connection, shard=shard, obj=shard) for shard in (1, 2, 3)]
    await drain_once(database, Recorder(failing(2)))
    left = await write(connection, shard=1, obj=9)
    more = await write(connection, shard=4)

    buried = await bury(connection, ids[1], left, left)

    assert [one.message for one in buried] == [ids[1], left]
    assert sorted(letter["attempts"] for letter in await letters(connection)) == [0, 1]
    assert await remaining(connection) == [more]


async def test_a_shard_that_is_being_drained_is_left_alone_and_its_daemon_named(
    database: str, connection: asyncpg.Connection
) -> None:
    written = await write(connection)
    gate = Gate()
    async with draining(database, gate), connected(database) as other:
        await gate.closed_behind()
        with pytest.raises(errors.ActRefused, match=r"being drained by the outboxd with pid \d+ on "):
            await bury(other, written)
        assert await letters(connection) == []
        gate.opened.set()


async def test_the_end_of_a_delivery_is_waited_for(database: str, connection: asyncpg.Connection) -> None:
    """The message in delivery goes; the one behind it was never begun, and is buried."""
    first = await write(connection, obj=1)
    second = await write(connection, shard=1, obj=2)
    gate = Gate()
    seen = []

    async def hold_the_first(message: Any) -> None:
        seen.append(message.id)
        if message.id == first:
            await gate(message)
            raise ValueError("not this time")

    async with draining(database, hold_the_first), connected(database) as other:
        await gate.closed_behind()
        burying = asyncio.create_task(bury(other, second, patience_s=20.0))
        gate.opened.set()
        [buried] = await burying

    assert buried.message == second
    assert second not in seen


async def test_a_locked_message_is_not_waited_for_for_ever_and_the_error_says_who_may_know(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "LOCK_TIMEOUT_S", 0.1)
    stays = await write(connection)
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM outbox FOR UPDATE")
        with pytest.raises(errors.StatementFailed, match=r"burying in outbox region: .*lock timeout") as raised:
            await bury(connection, stays)

    assert "Another session has locked it" in raised.value.hint
    assert await remaining(connection) == [stays]


async def test_a_message_of_another_region_is_refused(connection: asyncpg.Connection) -> None:
    written = await write(connection, table="control_outbox", region="eu")

    with pytest.raises(errors.UsageError, match="is of region eu, not of us"):
        await bury(connection, written, outbox=CONTROL, region="us")
    [buried] = await bury(connection, written, outbox=CONTROL, region="eu")

    assert buried.shard == ("eu", 0, 1)


async def test_too_many_at_once_are_refused(connection: asyncpg.Connection) -> None:
    with pytest.raises(errors.UsageError, match="at most 1000"):
        await bury(connection, *range(1, 1_002))
