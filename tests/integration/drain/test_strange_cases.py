"""Odd input and odd moments: each of these once ended the pipeline, or broke a promise."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import outboxd.settle
from outboxd.config import OutboxConfig
from outboxd.errors import ConfigError, Discard, RetryLater
from tests.drains import (
    CONTROL,
    REGION,
    Gate,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failures,
    remaining,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message


@pytest.mark.parametrize("reason", [ValueError("x"), None, 7])
async def test_a_reason_to_discard_may_be_anything(database: str, connection: asyncpg.Connection, reason: Any) -> None:
    async def discards(_message: Message) -> None:
        raise Discard(reason)

    await write(connection)
    await drain_once(database, discards)

    assert await remaining(connection) == []
    assert await connection.fetchval("SELECT reason FROM outboxd.dead_letter") == str(reason)


async def test_a_delay_may_be_any_number(database: str, connection: asyncpg.Connection) -> None:
    async def waits(_message: Message) -> None:
        raise RetryLater(Decimal("1.5"))  # type: ignore[arg-type]

    await write(connection)
    await drain_once(database, waits)

    waited = await connection.fetchval("SELECT scheduled_for - scheduled_from FROM outbox")
    assert waited.total_seconds() == 1.5


async def test_an_exception_without_words_is_a_failure(database: str, connection: asyncpg.Connection) -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    async def raises(_message: Message) -> None:
        raise SilentError

    await write(connection)
    await drain_once(database, raises)

    [failure] = await failures(connection)
    assert "SilentError" in failure["last_error"]


async def test_one_table_under_two_names_is_refused(database: str, connection: asyncpg.Connection) -> None:
    twins = configure(OutboxConfig(name="one", table="outbox"), OutboxConfig(name="two", table="public.outbox"))
    await write(connection)

    with pytest.raises(ConfigError, match="one table"):
        await drain_once(database, Recorder(), twins)


async def test_a_table_that_is_gone_for_a_moment_does_not_let_a_shard_be_delivered_twice_at_once(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    await write(connection)
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        before = pipeline.branches[0].outbox
        await connection.execute("ALTER TABLE outbox RENAME TO away")
        # The scheduler meets the missing table; it may look anew only when the delivery is over.
        lane = pipeline.branches[0].lane
        assert lane is not None
        await eventually(lambda: lane.is_closed)
        await connection.execute("ALTER TABLE away RENAME TO outbox")
        gate.opened.set()
        await eventually(lambda: pipeline.branches[0].outbox is not before)
        async with connected(database) as other:
            await write(other, shard=2)
        await eventually(lambda: len(gate.messages) >= 2)

    locks = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert locks == 0


async def test_an_outbox_that_cannot_settle_does_not_hold_up_another(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.settle, "UNSETTLED_ROWS_MAX", 20)
    await write_many(connection, 400, shards=100)
    seen = Recorder()
    async with (
        draining(database, seen, configure(REGION, CONTROL)),
        connected(database) as blocker,
        blocker.transaction(),
    ):
        await blocker.execute("LOCK TABLE outbox IN SHARE MODE")
        await eventually(lambda: len(seen.messages) >= 20)
        await write(connection, table="control_outbox", region="eu", shard=7)
        await eventually(lambda: any(message.outbox == "control" for message in seen.messages))
