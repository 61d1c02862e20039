"""Several drainers on one database: one a shard at a time (I3), nothing lost (I1), nothing on an old view."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.drains import (
    Gate,
    Recorder,
    by_hand,
    configure,
    drain_once,
    draining,
    failing,
    make_due,
    remaining,
    shard_locks,
    until,
    with_drain,
    write,
    write_many,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config
    from outboxd.model import Message


class Overlaps:
    """Notes which shards are inside a receiver, in whatever thread, and which ever were twice at once."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside: Counter[Any] = Counter()
        self.twice: set[Any] = set()
        self.delivered: Counter[int] = Counter()

    async def __call__(self, message: Message) -> None:
        with self._guard:
            self._inside[message.shard_identifier] += 1
            if self._inside[message.shard_identifier] > 1:
                self.twice.add(message.shard_identifier)
        await asyncio.sleep(0)
        with self._guard:
            self._inside[message.shard_identifier] -= 1
            self.delivered[message.id] += 1


async def test_two_replicas_never_deliver_one_shard_at_once_and_lose_nothing(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 1_000, shards=200, category="AUDIT")
    written = await remaining(connection)
    overlaps = Overlaps()
    replicas = [Recorder(overlaps), Recorder(overlaps)]
    config = configure(turn_rows_max=3)

    async with draining(database, replicas[0], config), draining(database, replicas[1], config):
        await until(lambda: len(overlaps.delivered) == 1_000)

    assert overlaps.twice == set()
    assert overlaps.delivered == Counter(written)
    assert await remaining(connection) == []


async def test_two_replicas_in_event_loops_of_their_own_share_the_work(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 1_000, shards=200, category="AUDIT")
    written = await remaining(connection)
    overlaps = Overlaps()

    def replica() -> None:
        asyncio.run(_drain(database, overlaps, configure(turn_rows_max=3)))

    await asyncio.gather(asyncio.to_thread(replica), asyncio.to_thread(replica))
    await drain_once(database, Recorder(overlaps))  # a shard that both had lost once is left to the next run

    assert overlaps.twice == set()
    assert overlaps.delivered == Counter(written)


async def _drain(dsn: str, overlaps: Overlaps, config: Config) -> None:
    await drain_once(dsn, Recorder(overlaps), config)


async def test_a_shard_that_another_replica_drains_is_passed_over(
    database: str, connection: asyncpg.Connection
) -> None:
    gate, seen = Gate(), Recorder()
    await write(connection)
    async with draining(database, gate):
        await gate.closed_behind()

        pipeline = await drain_once(database, seen)

        gate.opened.set()
    scheduler, bounded = pipeline.branches[0].scheduler, pipeline.branches[0].bounded
    assert scheduler is not None
    assert bounded is not None
    assert (scheduler.counters.claimed, scheduler.counters.lost, bounded.failed) == (0, 1, set())
    assert seen.messages == []
    assert await remaining(connection) == []


async def test_no_lock_is_left_when_a_drain_is_over(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 50, shards=50)

    async with draining(database, Recorder()):
        await until(lambda: _nothing_is_left(connection))


async def _nothing_is_left(connection: asyncpg.Connection) -> bool:
    return not await remaining(connection) and not await shard_locks(connection)


async def test_a_shard_that_another_replica_has_backed_off_since_it_was_found_is_not_read(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 3)
    async with by_hand(database) as late:
        [candidate] = await late.find()
        await drain_once(database, Recorder(failing()))

        [claim] = await late.claims.claim([candidate])

        assert await late.read([candidate]) == []
        assert claim.shard == (0, 1)


async def test_a_shard_that_another_replica_has_delivered_since_it_was_found_is_not_read(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    async with by_hand(database) as late:
        [candidate] = await late.find()
        await drain_once(database, Recorder())
        await write(connection, due_in_s=3600)

        await late.claims.claim([candidate])

        assert await late.read([candidate]) == []


async def test_a_failure_that_another_replica_has_counted_since_the_find_is_seen_under_the_claim(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 30)  # deeper than what a failure moves: rows that are due remain
    async with by_hand(database) as late:
        [candidate] = await late.find()
        await drain_once(database, Recorder(failing()), configure(backoff_rows_max=10))

        await late.claims.claim([candidate])
        [[failure]] = await late.outbox.read_failures([candidate.shard])

        assert (failure.attempts, failure.object_identifier) == (1, "0")
        assert failure.held_for_s(60) > 0


async def test_a_replica_with_an_old_view_of_a_deep_shard_in_backoff_does_not_deliver_it(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 30)
    config = configure(backoff_rows_max=10)
    await drain_once(database, Recorder(failing()), config)
    seen = Recorder()

    await drain_once(database, seen, config)

    assert seen.messages == []
    assert len(await remaining(connection)) == 30


async def test_a_claim_is_won_by_one_replica_and_lost_by_the_others(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 10, shards=10)
    async with by_hand(database) as one, by_hand(database) as other:
        candidates = await one.find()

        won = await one.claims.claim(candidates[:6])
        rest = await other.claims.claim(candidates)

        assert [claim.shard for claim in won] == [c.shard for c in candidates[:6]]
        assert [claim.shard for claim in rest] == [c.shard for c in candidates[6:]]
        await one.claims.release(won)
        assert len(await other.claims.claim(candidates[:6])) == 6


async def test_a_failure_written_without_the_claim_is_counted_once(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    gates = [Gate(), Gate()]

    async def fail_one(message: Message) -> None:
        await gates[0](message)
        raise ValueError("one")

    async def fail_other(message: Message) -> None:
        await gates[1](message)
        raise ValueError("other")

    async with draining(database, Recorder(fail_one)) as first:
        await gates[0].closed_behind()
        claim = first.claims._session
        assert claim is not None
        await connection.execute("SELECT pg_terminate_backend($1)", claim.connection.get_server_pid())
        async with draining(database, Recorder(fail_other)) as second:  # the lock is free: it delivers as well
            await gates[1].closed_behind()
            gates[0].opened.set()
            gates[1].opened.set()
            await until(lambda: first.totals()["failures"] + second.totals()["failures"] == 1)

    assert await connection.fetchval("SELECT attempts FROM outboxd.failure") == 1
    waits = await connection.fetchval("SELECT scheduled_for - scheduled_from FROM outbox")
    assert waits.total_seconds() == 2


async def test_replicas_retry_what_failed_and_finish_it(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 60, shards=20)
    config = configure()
    await asyncio.gather(*(drain_once(database, Recorder(failing()), config) for _ in range(2)))
    await make_due(connection)

    seen = Recorder()
    await drain_once(database, seen, with_drain(config, concurrency=20))

    assert len(seen.messages) == 60
    assert await remaining(connection) == []
