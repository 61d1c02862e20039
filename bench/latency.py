"""W9: from the commit of a single message to its receiver, in a daemon that is idle; with NOTIFY and with polling."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from bench import stage
from bench.errors import FailedError
from bench.figures import Series, Table, percentiles
from outboxd import registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.options import Options

MESSAGES = 500
WARM_UP_MESSAGES = 20
PAUSE_S_MAX = 0.03
WRITERS = 10
OPEN_S_MAX = 0.05
INSERT = """
INSERT INTO outbox_drained (shard_scope, shard_identifier, category, object_identifier)
VALUES (0, $1::int8 % 50, 1, $1::int8) RETURNING id
"""
NEXT = "SELECT * FROM outbox_drained WHERE id > $1 ORDER BY id LIMIT 100"
_received: list[tuple[int, float]] = []
"""Ids, and when each came, by the monotonic clock."""


@registry.receiver("ACCOUNT_UPDATE")
async def look_at_clock(message: Any) -> None:
    """Note when it came: CLOCK_MONOTONIC is one for all processes."""
    _received.append((message.id, time.monotonic()))


async def measure(options: Options) -> list[Table]:
    """Write messages one by one in another process, and compare its clock with the receiver's."""
    messages = options.scaled(MESSAGES, 5)
    polled = max(100, messages // 5)
    table = Table(
        "W9",
        f"{messages} single messages ({polled} with polling every second), at most {1_000 * PAUSE_S_MAX:.0f} ms apart,"
        f" from sending COMMIT to the receiver. Overlapping transactions are those of {WRITERS} writers, each open for"
        f" up to {1_000 * OPEN_S_MAX:.0f} ms before and after its INSERT.",
        [
            Series("NOTIFY, p50, ms", 2, at_most=2),
            Series("NOTIFY, p99, ms", 2, at_most=8),
            Series("NOTIFY, max, ms", 2),
            Series("NOTIFY, a connection that only listens and reads, p50, ms", 2),
            Series("NOTIFY, the same, p99, ms", 2),
            Series("NOTIFY, p50: outboxd / only listens and reads", 2),
            Series("NOTIFY, overlapping transactions, p50, ms", 2),
            Series("NOTIFY, overlapping transactions, p99, ms", 2),
            Series("polling, p50, ms"),
            Series("polling, p99, ms"),
        ],
    )
    async with stage.server() as (dsn, connection):
        for number in range(1, options.rounds + 1):
            await connection.execute("ALTER TABLE outbox_drained ENABLE TRIGGER ALL")
            notified = await _latencies_ms(stage.daemon(dsn, look_at_clock), dsn, connection, messages)
            floor = percentiles(await _latencies_ms(_listener(dsn), dsn, connection, messages))
            overlapping = await _latencies_ms(
                stage.daemon(dsn, look_at_clock), dsn, connection, messages, writers=WRITERS
            )
            await connection.execute("ALTER TABLE outbox_drained DISABLE TRIGGER ALL")
            asked_for = await _latencies_ms(stage.daemon(dsn, look_at_clock), dsn, connection, polled)
            p50, p99 = percentiles(notified)
            own = (p50, p99, max(notified), *floor, p50 / floor[0])
            table.add(*own, *percentiles(overlapping), *percentiles(asked_for))
            options.say(f"W9 round {number}: p50 {p50:.2f} ms")
    return [table]


@contextlib.asynccontextmanager
async def _listener(dsn: str) -> AsyncIterator[None]:
    """The least that anybody can do: one connection that reads, at a notification, what is new, and deletes it then."""
    connection = await asyncpg.connect(dsn)
    woken = asyncio.Event()

    async def take() -> None:
        seen = 0
        while True:
            await woken.wait()
            woken.clear()
            rows = await connection.fetch(NEXT, seen)
            now = time.monotonic()
            _received.extend((row["id"], now) for row in rows)
            if rows:
                seen = rows[-1]["id"]
                await connection.execute("DELETE FROM outbox_drained WHERE id <= $1", seen)

    channel = await connection.fetchval("SELECT concat('outboxd_', 'outbox_drained'::regclass::oid)")
    await connection.add_listener(channel, lambda *_: woken.set())
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(take())
        yield
        taking.cancel()
    await connection.close()


async def _latencies_ms(
    worker: contextlib.AbstractAsyncContextManager[object],
    dsn: str,
    connection: asyncpg.Connection,
    messages: int,
    writers: int = 1,
) -> list[float]:
    _received.clear()
    async with worker:
        written = await stage.produced_by("bench.latency", dsn, WARM_UP_MESSAGES + messages, writers)
        await stage.until_empty(connection)
    received_at = dict(_received)
    if len(_received) != len(written) or received_at.keys() != {number for number, _ in written}:
        raise FailedError(f"{len(written)} messages: {len(received_at)} were delivered, {len(_received)} times")
    return [1_000 * (received_at[number] - at) for number, at in written[WARM_UP_MESSAGES:]]


async def _write(dsn: str, messages: int, writers: int) -> None:
    """Print the ids, and when their COMMIT was sent, by the monotonic clock."""
    connections = [await asyncpg.connect(dsn) for _ in range(writers)]
    numbers = iter(range(messages))
    written = []

    async def write(connection: asyncpg.Connection) -> None:
        for number in numbers:
            await asyncio.sleep(random.uniform(0, PAUSE_S_MAX * writers))
            transaction = connection.transaction()
            await transaction.start()
            if writers > 1:  # as after changes of their own, so that transactions and ids begin in different orders
                await connection.execute("SELECT pg_current_xact_id()")
                await asyncio.sleep(random.uniform(0, OPEN_S_MAX))
            id_ = await connection.fetchval(INSERT, number)
            if writers > 1:
                await asyncio.sleep(random.uniform(0, OPEN_S_MAX))
            written.append((id_, time.monotonic()))
            await transaction.commit()

    await asyncio.gather(*map(write, connections))
    for connection in connections:
        await connection.close()
    print(json.dumps(written))


if __name__ == "__main__":
    asyncio.run(_write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
