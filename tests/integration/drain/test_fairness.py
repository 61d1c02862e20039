"""Shards that never end do not keep the others waiting, and a bounded run ends all the same."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING

import pytest

from outboxd.meter import SLICE_S
from tests.drains import (
    Gate,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    remaining,
    shard_locks,
    until_empty,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message


async def test_five_shards_that_never_end_do_not_starve_a_sixth(database: str, connection: asyncpg.Connection) -> None:
    calls = 0
    async with connected(database) as producer:

        async def add_another(message: Message) -> None:
            nonlocal calls
            if message.shard_identifier != 6:
                calls += 1
                async with connected(database) as own:
                    await write(own, shard=message.shard_identifier, obj=calls)

        for shard in range(1, 6):
            await write(producer, shard=shard)
        seen = Recorder(add_another)
        async with draining(database, seen, configure(concurrency=5)):
            await eventually(lambda: len(seen.messages) >= 25)
            for number in range(1, 4):
                await write(producer, shard=6, obj=number)
                await eventually(functools.partial(_has_had, seen, 6, number))


def _has_had(seen: Recorder, shard: int, number: int) -> bool:
    return seen.shards.count(shard) >= number


async def test_deep_shards_give_way_after_a_turn(database: str, connection: asyncpg.Connection) -> None:
    for shard in (1, 2):
        await connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier)"
            " SELECT 0, $1::int8, 1, n FROM generate_series(1, 300) AS n",
            shard,
        )
    await write(connection, shard=3)
    seen = Recorder()

    await drain_once(database, seen, configure(concurrency=1, turn_rows_max=20))

    assert seen.shards.index(3) < 100
    assert len(seen.messages) == 601


async def test_a_turn_ends_after_its_time_and_the_next_shard_has_its_chance(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 400, shards=2)
    seen = Recorder(lambda _: connection.execute("SELECT 1"))

    await drain_once(database, seen, configure(concurrency=1, turn_s_max=0.001))

    first = seen.shards[0]
    assert any(shard != first for shard in seen.shards[:150])
    assert len(seen.messages) == 400


async def test_a_bounded_run_ends_although_a_receiver_writes_a_new_message_each_time(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)

    async def add_another(_message: Message) -> None:
        async with connected(database) as own:
            await write(own)

    seen = Recorder(add_another)
    pipeline = await drain_once(database, seen)

    assert len(seen.messages) <= 10
    assert len(await remaining(connection)) == 1
    assert pipeline.remaining_due == 1


async def test_messages_that_receivers_write_to_other_shards_are_delivered_in_the_same_run(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, shard=1)

    async def pass_on(message: Message) -> None:
        if message.shard_identifier in range(1, 6):
            async with connected(database) as own:
                await write(own, shard=int(str(message.shard_identifier)) + 1)

    seen = Recorder(pass_on)
    await drain_once(database, seen)

    assert seen.shards == [1, 2, 3, 4, 5, 6]
    assert await remaining(connection) == []


async def test_a_thousand_shards_and_more_are_drained_with_few_claims_at_a_time(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 3_000, shards=3_000)
    most = 0
    async with connected(database) as observer:

        async def look(message: Message) -> None:
            nonlocal most
            if message.id % 100 == 0:
                most = max(most, await shard_locks(observer))

        await drain_once(database, Recorder(look), configure(concurrency=1))

    assert 0 < most <= 2_100
    assert await remaining(connection) == []


async def test_a_failing_shard_does_not_slow_the_others(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 3_000, shards=3)

    def fail_shard_1(message: Message) -> None:
        if message.shard_identifier == 1:
            raise ValueError

    seen = Recorder(fail_shard_1)
    async with draining(database, seen, configure(concurrency=1)):
        await eventually(lambda: len(seen.messages) >= 2_001)
        await connection.execute("DELETE FROM outbox WHERE shard_identifier = 1")
        await until_empty(connection)

    assert seen.shards.count(1) == 1


async def test_of_two_daemons_each_takes_its_own_and_what_the_other_leaves(
    database: str, connection: asyncpg.Connection
) -> None:
    stuck, quick = Gate(), Recorder()
    config = configure(poll_interval_s=0.2)
    async with draining(database, stuck, config) as hanging, draining(database, quick, config) as other:
        await eventually(lambda: hanging.claims.place() == (0, 2) and other.claims.place() == (1, 2))
        await write_many(connection, 400, shards=400)
        held = 2 * config.drain.concurrency  # claims ahead of its drainers, besides those in their hands
        await eventually(lambda: len(quick.messages) >= 400 - held - config.drain.concurrency)
        stuck.opened.set()
        await until_empty(connection)

    shards = [*quick.shards, *(message.shard_identifier for message in stuck.messages)]
    assert sorted(shards) == list(range(1, 401))


@pytest.mark.parametrize("fails", [False, True])
async def test_the_event_loop_turns_between_receivers_that_keep_it_busy(
    database: str, connection: asyncpg.Connection, fails: bool
) -> None:
    """Whether they accept or fail: the database's answers, and other receivers, wait for one of them, not for all."""
    await write_many(connection, 20, category="SKIPPING")
    loop, in_a_row, most = asyncio.get_running_loop(), 0, 0

    def turned() -> None:
        nonlocal in_a_row
        in_a_row = 0

    def keep_busy(_: Message) -> None:
        nonlocal in_a_row, most
        if in_a_row == 0:
            loop.call_soon(turned)
        in_a_row += 1
        most = max(most, in_a_row)
        ends_at = time.monotonic() + 1.5 * SLICE_S
        while time.monotonic() < ends_at:
            pass
        if fails:
            raise ValueError

    seen = Recorder(keep_busy)
    await drain_once(database, seen)

    assert len(seen.messages) == 20
    assert most == 1
