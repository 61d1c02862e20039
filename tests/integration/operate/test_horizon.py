"""What holds vacuum back: the doctor and the gauges say the same, and neither blames who holds nothing back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import doctor, query
from outboxd.embedded import embedded_postgres
from outboxd.migrate import migrate
from outboxd.pipeline import Pipeline
from outboxd.sampler import Sampler
from tests.drains import REGION, Recorder, build, configure, connected, write
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.sampler import Horizon

CONFIG = configure(REGION)
SETTINGS = {"autovacuum": "off", "max_prepared_transactions": 2, "wal_level": "logical"}
XIDS = 50


@pytest.fixture
async def server() -> AsyncIterator[str]:
    """A server of its own, where nobody else holds anything: slots and standbys are seen from every database."""
    async with embedded_postgres(durable=False, settings=SETTINGS) as dsn:
        yield dsn


@pytest.fixture
async def admin(server: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(server) as connection:
        await migrate(connection, CONFIG)
        yield connection


async def named(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Whom the doctor names."""
    [question] = [asked for name, _, asked in doctor.questions(CONFIG) if name == "horizon"]
    rows = await query.fetch(connection, question, "looking at the horizon")
    return [row for row in rows if row["kind"] is not None]


async def gauged(dsn: str) -> Horizon:
    """What the gauges say."""
    sampler = Sampler(Pipeline(CONFIG, build(CONFIG, Recorder()), lambda: dsn))
    try:
        await sampler.measure()
    finally:
        await sampler.session.close()
    assert sampler.horizon is not None
    return sampler.horizon


async def spend_transactions(connection: asyncpg.Connection) -> None:
    for number in range(XIDS):
        await write(connection, shard=1, obj=number)


@contextlib.asynccontextmanager
async def vacuuming(dsn: str, admin: asyncpg.Connection, command: str) -> AsyncIterator[int]:
    """Run a vacuum that takes very long; yields its backend once it is at work with a snapshot."""
    async with connected(dsn) as other:
        await other.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
        backend = other.get_server_pid()
        running = asyncio.create_task(other.execute(command))
        at_work = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity AS a JOIN pg_stat_progress_vacuum AS v USING (pid)"
            " WHERE a.pid = $1 AND a.backend_xmin IS NOT NULL)"
        )
        await eventually(lambda: admin.fetchval(at_work, backend))
        try:
            yield backend
            assert await admin.fetchval(at_work, backend), "it has ended too early to prove anything"
        finally:
            await admin.execute("SELECT pg_terminate_backend($1)", backend)
            await asyncio.gather(running, return_exceptions=True)


async def test_a_vacuum_that_runs_holds_no_other_back(server: str, admin: asyncpg.Connection) -> None:
    await admin.execute(
        "CREATE TABLE large WITH (autovacuum_enabled = off) AS SELECT repeat('x', 500) FROM generate_series(1, 30000)"
    )
    async with vacuuming(server, admin, "VACUUM large"):
        await spend_transactions(admin)

        assert await named(admin) == []
        assert (await gauged(server)).transactions == 0


async def test_a_logical_slot_keeps_catalogs_only(server: str, admin: asyncpg.Connection) -> None:
    await admin.execute("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')")
    await spend_transactions(admin)
    kept = await admin.fetchval("SELECT age(catalog_xmin) FROM pg_replication_slots WHERE xmin IS NULL")

    assert kept >= XIDS
    assert await named(admin) == []
    assert (await gauged(server)).transactions == 0


@pytest.mark.parametrize("kind", ["transaction", "prepared"])
async def test_whoever_has_written_and_not_committed_is_named_and_gauged(
    server: str, admin: asyncpg.Connection, kind: str
) -> None:
    async with connected(server) as other:
        await other.execute("BEGIN")
        await write(other, shard=9)
        if kind == "prepared":
            await other.execute("PREPARE TRANSACTION 'forgotten'")
        await spend_transactions(admin)

        [holder] = await named(admin)
        gauges = await gauged(server)
        await other.execute("ROLLBACK PREPARED 'forgotten'" if kind == "prepared" else "ROLLBACK")

    assert holder["kind"] == kind
    assert holder["xid_age"] == gauges.transactions >= XIDS
    assert gauges.seconds > holder["age_s"] - 0.1
    assert await named(admin) == []


async def test_whoever_holds_it_back_furthest_is_named_before_those_who_began_earlier(
    server: str, admin: asyncpg.Connection
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        early = [await stack.enter_async_context(connected(server)) for _ in range(5)]
        for other in early:
            await stack.enter_async_context(other.transaction())
            await other.execute("SELECT 1")
        late = await stack.enter_async_context(connected(server))
        await stack.enter_async_context(late.transaction())
        await write(late, shard=9)
        await spend_transactions(admin)
        for other in early:
            await other.execute("SELECT pg_current_xact_id()")

        named_first = (await named(admin))[0]
        assert (named_first["pid"], named_first["xid_age"]) == (
            late.get_server_pid(),
            (await gauged(server)).transactions,
        )
