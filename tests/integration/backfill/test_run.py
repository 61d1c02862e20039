"""`outboxd backfill run`: in the foreground, to the end or as far as it goes."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from tests.drains import connected
from tests.eventually import eventually
from tests.integration.backfill.commands import (
    MEMBER,
    VERSION_OPTION,
    Here,
    on_a_terminal,
    pause,
    set_watermark,
)
from tests.processes import outboxd
from tests.walks import (
    create_members,
    let_a_minute_pass,
    objects,
    set_option,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg


class TestRun:
    async def test_it_walks_to_the_end(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)

        done = await here.run("run")

        assert done.returncode == 0, done.stderr
        assert done.stdout == "organizationmember: finished; 25 rows and 25 messages in this run\n"
        assert "organizationmember: 25 rows, 25 messages" in done.stderr
        assert await objects(connection) == list(range(1, 26))
        assert await watermark(connection) == ("0", 2)

    async def test_a_finished_table_is_nothing_to_do(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)
        await set_watermark(connection, "0", 2)

        assert (await here.run("run", "organizationmember")).returncode == 0
        assert await objects(connection) == []

    async def test_it_walks_the_tables_that_are_named(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 5)
        await create_members(connection, 5, table="other")
        here.configure(MEMBER, MEMBER | {"table": "other"})

        assert (await here.run("run", "other")).returncode == 0
        assert await watermark(connection) is None
        assert await watermark(connection, "other") == ("0", 2)

    async def test_what_a_paused_or_gated_table_waits_for_is_said(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 5)
        await create_members(connection, 5, table="other")
        here.configure(MEMBER, MEMBER | {"table": "other"})
        await set_option(connection, VERSION_OPTION, "0")
        await pause(connection, "other")

        done = await here.run("run")

        assert done.returncode == 1
        assert "organizationmember: waiting for option at low bound 0; 0 rows and 0 messages in this run; option" in (
            done.stdout
        )
        assert "other: paused at low bound 0" in done.stdout
        assert await objects(connection) == []

    async def test_force_synchronous_ignores_the_option(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 5)
        await set_option(connection, VERSION_OPTION, "0")

        assert (await here.run("run", "--force-synchronous")).returncode == 0
        assert await objects(connection) == [1, 2, 3, 4, 5]

    async def test_a_broken_table_ends_with_78_when_the_others_are_done(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 5)
        here.configure(MEMBER | {"table": "nothing"}, MEMBER)

        done = await here.run("run")

        assert done.returncode == 78
        assert "nothing: broken at low bound 0" in done.stdout
        assert "there is no such table" in done.stdout
        assert "error: cannot be walked: nothing" in done.stderr
        assert await watermark(connection) == ("0", 2)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    async def test_it_keeps_to_the_rate_and_a_signal_leaves_it_where_it_is(
        self, here: Here, connection: asyncpg.Connection, number: signal.Signals
    ) -> None:
        await create_members(connection, 25)
        async with outboxd("backfill", "run", "--rate", "10", config=here.file) as process:
            await eventually(lambda: "waiting for the rate" in process.stderr)
            assert await watermark(connection) == ("11", 1)
            process.signal(number)
            assert await process.wait() == 130

        assert "lock timeout" not in process.stderr
        assert "Traceback" not in process.stderr
        # Stopped, where the signal came in the middle of a tick.
        assert re.match("organizationmember: (waiting for the rate|stopped) at low bound 11; 10 rows", process.stdout)
        assert "interrupted" in process.stderr
        await let_a_minute_pass(connection)
        assert (await here.run("run")).returncode == 0
        assert await objects(connection) == list(range(1, 26))

    async def test_a_second_ctrl_c_does_not_wait_for_the_batch(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        async with connected(here.dsn) as other, outboxd("backfill", "run", config=here.file) as process:
            locked = other.transaction()
            await locked.start()
            await other.execute("LOCK TABLE outbox IN SHARE MODE")

            async def waits() -> bool:
                return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await eventually(waits)
            process.signal(signal.SIGINT)
            process.signal(signal.SIGTERM)  # counts as the second one; two of a kind might become one
            assert await process.wait() == 130
            await locked.rollback()

        assert "lock timeout" not in process.stderr
        assert "Traceback" not in process.stderr
        assert await objects(connection) == []

    async def test_a_table_that_somebody_else_walks_is_left_to_them(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        async with walking(here.dsn, with_models(backfills_per_minute=10)) as backfill:
            await backfill.tick(paced=False)
            done = await here.run("run")

        assert done.returncode == 1
        assert "another process walks it" in done.stdout
        assert await objects(connection) == list(range(1, 11))

    async def test_drain_delivers_until_nothing_is_due(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)
        here.configure(receives=True)

        done = await here.run("run", "--drain")

        assert done.returncode == 0, done.stderr
        assert done.stdout == (
            "organizationmember: finished; 25 rows and 25 messages in this run\ndelivered 25; 0 deliveries failed\n"
        )
        assert "accepted 25" in done.stderr
        assert await objects(connection) == []

    async def test_drain_with_a_failure_exits_1_and_keeps_the_message(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        here.configure(receives=True, failing=(25,))

        done = await here.run("run", "--drain")

        assert done.returncode == 1
        assert "1 deliveries failed" in done.stdout
        assert await objects(connection) == [25]

    async def test_drain_makes_room_for_the_walk(self, here: Here, connection: asyncpg.Connection) -> None:
        """Due rows leave no budget until somebody delivers them."""
        await create_members(connection, 5)
        await connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, date_added)"
            " SELECT 0, 1, 1, 1000 + n, now() - interval '1 hour' FROM generate_series(1, 20) AS n"
        )
        here.configure(receives=True, rate=10)

        assert (await here.run("run", "--drain")).returncode == 0
        assert await objects(connection) == []
        assert await watermark(connection) == ("0", 2)

    async def test_watermarks_in_redis(self, here: Here, connection: asyncpg.Connection, valkey: str) -> None:
        await create_members(connection, 25)
        here.configure(redis_url=valkey)
        async with redis.asyncio.Redis.from_url(valkey) as client:
            await client.set("outbox_backfill.organizationmember", "[11, 1]")
            assert (await here.run("run")).returncode == 0
            assert await client.get("outbox_backfill.organizationmember") == b"[0,2]"
            await client.delete("outbox_backfill.organizationmember")

        assert await objects(connection) == list(range(11, 26))

    async def test_on_a_terminal_there_are_bars(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)

        shown = await on_a_terminal(here, "run")

        assert "━" in shown
        assert "finished; 25 rows and 25 messages" in shown

    async def test_a_rate_of_0_would_never_end(self, here: Here) -> None:
        here.configure(rate=0)

        done = await here.run("run")

        assert done.returncode == 2
        assert "hint: Give a --rate." in done.stderr
