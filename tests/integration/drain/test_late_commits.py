"""Messages that commit behind higher ids, as most do where transactions overlap: wake-ups find them, without a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outboxd.find import Finder
from outboxd.missing import GAP_MAX
from tests.drains import Recorder, by_hand, configure, connected, draining, write, write_many
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.pipeline import Pipeline

RARE_PASSES = configure(poll_interval_s=3_600)


@pytest.fixture
async def finder(database: str) -> AsyncIterator[Finder]:
    """One that has made its first pass, and makes no other by itself."""
    async with by_hand(database, RARE_PASSES) as replica:
        finder = Finder(replica.outbox, replica.live)
        await finder.look()
        yield finder


async def found(finder: Finder) -> list[int]:
    finder.wake()
    await eventually(lambda: finder.due_in_s() == 0)  # a look that found nothing is followed by a rest
    return sorted(candidate.shard[1] for candidate in await finder.look())


async def test_a_message_is_found_when_it_commits_behind_a_higher_id(
    database: str, connection: asyncpg.Connection, finder: Finder
) -> None:
    async with connected(database) as slow, slow.transaction():
        await write(slow, shard=1)
        await write(slow, shard=2)
        await write(connection, shard=3)
        assert await found(finder) == [3]
        assert await found(finder) == []

    assert await found(finder) == [1, 2]
    assert await found(finder) == []
    assert finder.passes == 1


async def test_several_transactions_end_in_any_order(
    database: str, connection: asyncpg.Connection, finder: Finder
) -> None:
    async with connected(database) as first, connected(database) as second:
        first_end, second_end = first.transaction(), second.transaction()
        await first_end.start()
        await second_end.start()
        for shard in (1, 3):
            await write(first, shard=shard)
            await write(second, shard=shard + 1)
        await write(connection, shard=5)
        assert await found(finder) == [5]
        await second_end.commit()
        assert await found(finder) == [2, 4]
        await first_end.commit()
        assert await found(finder) == [1, 3]
    assert finder.passes == 1


@pytest.mark.parametrize("older_one_runs", [False, True])
async def test_transactions_and_ids_begin_in_different_orders(
    database: str, connection: asyncpg.Connection, finder: Finder, older_one_runs: bool
) -> None:
    """An application writes its own rows first, so the transaction that began last may have the lower id."""
    async with connected(database) as older, connected(database) as slow:
        begun = []
        for session in (*([older] if older_one_runs else []), connection, slow):
            begun.append(session.transaction())
            await begun[-1].start()
            await session.execute("SELECT pg_current_xact_id()")
        *older_ends, fast_end, slow_end = begun
        await write(slow, shard=1)
        await write(connection, shard=2)
        await fast_end.commit()
        assert await found(finder) == [2]
        for older_end in older_ends:
            await older_end.commit()
            assert await found(finder) == []
        await slow_end.commit()
        assert await found(finder) == [1]
    assert finder.passes == 1


async def test_late_and_new_messages_of_a_shard_are_one_candidate(
    database: str, connection: asyncpg.Connection, finder: Finder
) -> None:
    async with connected(database) as slow:
        slow_end = slow.transaction()
        await slow_end.start()
        for obj in (1, 2):
            await write(slow, shard=1, obj=obj)
        await write(connection, shard=2)
        assert await found(finder) == [2]
        await slow_end.commit()
    await write(connection, shard=1)
    assert await found(finder) == [1]


async def test_what_was_rolled_back_is_not_found_and_hides_nothing(
    database: str, connection: asyncpg.Connection, finder: Finder
) -> None:
    async with connected(database) as other:
        rolled_back = other.transaction()
        await rolled_back.start()
        await write(other, shard=1)
        await write(connection, shard=2)
        assert await found(finder) == [2]
        await rolled_back.rollback()
    assert await found(finder) == []
    await write(connection, shard=3)
    assert await found(finder) == [3]


async def test_a_bulk_load_that_commits_late_begins_a_pass(
    database: str, connection: asyncpg.Connection, finder: Finder
) -> None:
    count = 3 * GAP_MAX
    async with connected(database) as bulk, bulk.transaction():
        await write_many(bulk, count, shards=count)
        await write(connection, shard=count + 1)
        assert await found(finder) == [count + 1]

    shards = set(await found(finder))
    while finder.passes == 1:
        await eventually(lambda: finder.due_in_s() == 0)  # passes rest in proportion to their cost
        shards.update(candidate.shard[1] for candidate in await finder.look())
    assert shards == set(range(1, count + 2))


async def test_a_late_message_that_is_not_due_yet_is_found_when_it_is(
    database: str, connection: asyncpg.Connection, finder: Finder
) -> None:
    async with connected(database) as slow, slow.transaction():
        await write(slow, shard=1, due_in_s=60)
        await write(connection, shard=2)
        assert await found(finder) == [2]

    assert await found(finder) == []
    assert 50 < finder.due_in_s() < 61


async def test_a_daemon_delivers_it_when_it_is_woken(database: str, connection: asyncpg.Connection) -> None:
    oid = await connection.fetchval("SELECT 'outbox'::regclass::oid")
    seen = Recorder()
    async with draining(database, seen, RARE_PASSES) as pipeline, connected(database) as slow:
        await eventually(lambda: _finder(pipeline).passes)
        transaction = slow.transaction()
        await transaction.start()
        await write(slow, shard=1)
        await write(connection, shard=2)
        await connection.execute(f"NOTIFY outboxd_{oid}")
        await eventually(lambda: seen.shards == [2])
        await transaction.commit()
        await connection.execute(f"NOTIFY outboxd_{oid}")
        await eventually(lambda: seen.shards == [2, 1])


def _finder(pipeline: Pipeline) -> Finder:
    [branch] = pipeline.branches
    assert branch.scheduler is not None
    return branch.scheduler.finder
