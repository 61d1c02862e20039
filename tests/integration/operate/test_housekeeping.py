"""Dead letters are deleted when they have been kept long enough; that stops nothing, whatever happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog

from outboxd.config import DeadLetterConfig
from outboxd.dead_letters import BATCH_ROWS
from outboxd.housekeeping import Housekeeping
from tests.drains import STANDARD, connected
from tests.letters import letter_ids, write_letters

if TYPE_CHECKING:
    import asyncpg

DAY_S = 86_400


def housekeeping(dsn: str, keep_days: int = 30) -> Housekeeping:
    config = msgspec.structs.replace(STANDARD, dead_letter=DeadLetterConfig(keep_days=keep_days))
    return Housekeeping(config, lambda: dsn)


async def tidy(dsn: str, keep_days: int = 30, batches_max: int = 100) -> tuple[bool, list[Any]]:
    with structlog.testing.capture_logs() as logs:
        done = await housekeeping(dsn, keep_days).tidy(batches_max)
    return done, [{key: entry.get(key) for key in ("event", "rows", "keep_days")} for entry in logs]


async def test_what_is_older_goes_and_what_is_younger_stays(database: str, connection: asyncpg.Connection) -> None:
    await write_letters(connection, 3, age_s=31 * DAY_S)
    await write_letters(connection, 2, age_s=31 * DAY_S, outbox="no longer configured")
    young = await write_letters(connection, age_s=29 * DAY_S)

    done, logs = await tidy(database)

    assert done
    assert logs == [{"event": "dead_letters.purged", "rows": 5, "keep_days": 30}]
    assert await letter_ids(connection) == young


async def test_0_days_keep_for_ever(database: str, connection: asyncpg.Connection) -> None:
    old = await write_letters(connection, age_s=4_000 * DAY_S)

    assert await tidy(database, keep_days=0) == (True, [])
    assert await letter_ids(connection) == old


async def test_nothing_to_do_is_no_line_in_the_log(database: str) -> None:
    assert await tidy(database) == (True, [])


async def test_batches_are_bounded_and_the_rest_is_for_the_next_time(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_letters(connection, 2 * BATCH_ROWS, age_s=31 * DAY_S)
    await write_letters(connection, 500, age_s=31 * DAY_S, outbox="another")

    assert (await tidy(database, batches_max=1))[0] is False
    assert len(await letter_ids(connection)) == BATCH_ROWS + 500
    assert (await tidy(database, batches_max=100))[0] is True
    assert await letter_ids(connection) == []


async def test_those_that_somebody_is_moving_are_passed_over(database: str, connection: asyncpg.Connection) -> None:
    held, _ = await write_letters(connection, 2, age_s=31 * DAY_S)
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM outboxd.dead_letter WHERE id = $1 FOR UPDATE", held)

        await tidy(database)

        assert await letter_ids(connection) == [held]


async def test_replicas_do_it_side_by_side(database: str, connection: asyncpg.Connection) -> None:
    await write_letters(connection, 5 * BATCH_ROWS, age_s=31 * DAY_S)

    await asyncio.gather(*(housekeeping(database).tidy(100) for _ in range(3)))

    assert await letter_ids(connection) == []


@pytest.mark.parametrize(
    ("statement", "word"),
    [("DROP TABLE outboxd.dead_letter", "dead_letter"), ("ALTER SCHEMA outboxd RENAME TO gone", "outboxd")],
)
async def test_a_failure_is_a_line_in_the_log(
    database: str, connection: asyncpg.Connection, statement: str, word: str
) -> None:
    await connection.execute(statement)

    with structlog.testing.capture_logs() as logs:
        assert await housekeeping(database).tidy(100) is True

    [entry] = logs
    assert (entry["event"], entry["log_level"]) == ("dead_letters.not_purged", "warning")
    assert word in entry["error"]
