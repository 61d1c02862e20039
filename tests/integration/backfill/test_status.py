"""`outboxd backfill status`: where each walk is, and why it does not go on."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from outboxd.backfill_report import ROWS_COUNTED_MAX
from tests import terminal
from tests.drains import CATEGORIES
from tests.integration.backfill.commands import (
    MEMBER,
    REGIONS_OPTION,
    VERSION_OPTION,
    Here,
    on_a_terminal,
    pause,
    set_watermark,
)
from tests.integration.operate.roles import reading_role
from tests.walks import (
    create_members,
    set_option,
    walk_to_the_end,
    walking,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg


class TestStatus:
    async def test_a_table_that_was_never_walked_is_ready(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)

        assert await here.one("status") == {
            "table": "organizationmember",
            "outbox": "region",
            "category": "MEMBER",
            "condition": "ready",
            "explanation": "",
            "version": 1,
            "target": 1,
            "replication_version": 1,
            "low_bound": "0",
            "highest_id": "25",
            "rows_done": 0,
            "rows_left": 25,
            "is_estimate": False,
            "messages_last_minute": 0,
            "seconds_left": None,
        }

    async def test_a_walk_under_way_shows_its_pace_and_when_it_will_end(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        async with walking(here.dsn, with_models(backfills_per_minute=10)) as backfill:
            await backfill.tick(paced=False)
            found = await here.one("status")

        assert (found["condition"], found["low_bound"], found["messages_last_minute"]) == ("running", "11", 10)
        assert (found["rows_done"], found["rows_left"], found["is_estimate"]) == (10, 15, False)
        assert found["seconds_left"] == 90.0

    async def test_a_finished_walk_has_exactly_nothing_left(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)
        async with walking(here.dsn) as backfill:
            await walk_to_the_end(backfill, connection)

        found = await here.one("status")

        assert (found["condition"], found["version"], found["low_bound"]) == ("finished", 2, "0")
        assert (found["rows_done"], found["rows_left"], found["seconds_left"]) == (25, 0, 0.0)

    @pytest.mark.parametrize("key", ["bigint", "uuid"])
    async def test_rows_of_a_large_table_are_estimated_and_the_estimate_is_labelled(
        self, here: Here, connection: asyncpg.Connection, key: str
    ) -> None:
        count = 4 * ROWS_COUNTED_MAX
        if key == "uuid":
            here.configure(MEMBER | {"outbox": "uuid", "shard_identifier": "", "shard_identifier_sql": "id"})
            await connection.execute(
                "CREATE TABLE organizationmember (id uuid PRIMARY KEY);"
                f"INSERT INTO organizationmember SELECT gen_random_uuid() FROM generate_series(1, {count})"
            )
        else:
            await create_members(connection, count)
        await set_watermark(connection, str(count // 4) if key == "bigint" else str(uuid.UUID(int=1 << 126)), 1)

        unknown = await here.one("status")
        await connection.execute("ANALYZE organizationmember")
        known = await here.one("status")
        shown = await here.run("status")

        assert (unknown["rows_left"], unknown["is_estimate"]) == (None, True)
        assert known["is_estimate"]
        assert known["rows_left"] == pytest.approx(count * 3 / 4, rel=0.05)
        assert known["rows_done"] == pytest.approx(count / 4, rel=0.05)
        assert re.search(r"~(29|30|31),\d{3}", shown.stdout)
        assert "~ is an estimate" in shown.stdout

    async def test_partitions_are_summed_up(self, here: Here, connection: asyncpg.Connection) -> None:
        await connection.execute(
            "CREATE TABLE organizationmember (id bigint PRIMARY KEY, organization_id bigint) PARTITION BY RANGE (id);"
            "CREATE TABLE low PARTITION OF organizationmember FOR VALUES FROM (0) TO (20001);"
            "CREATE TABLE high PARTITION OF organizationmember FOR VALUES FROM (20001) TO (90000);"
            "INSERT INTO organizationmember SELECT n, 1 FROM generate_series(1, 40000) AS n;"
            "ANALYZE organizationmember"
        )

        assert (await here.one("status"))["rows_left"] == 40_000

    async def test_what_holds_a_walk_back_is_named(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 5)
        await set_option(connection, VERSION_OPTION, "0")
        gated = await here.one("status")
        await set_option(connection, VERSION_OPTION, "1")
        await set_option(connection, REGIONS_OPTION, "[]")
        here.configure(MEMBER | {"outbox": "control", "region_names": ["us", "eu"]})
        regionless = await here.one("status")
        here.configure()
        await pause(connection)
        paused = await here.one("status")
        await connection.execute("DELETE FROM outboxd.pause")
        await set_option(connection, "outbox.disabled_outboxes", '["region"]')
        off = await here.one("status")
        await connection.execute("DELETE FROM outboxd.option")
        await set_option(connection, "outbox.disabled_categories", '["MEMBER"]')
        category_off = await here.one("status")

        assert (gated["condition"], gated["target"], gated["rows_left"]) == ("waiting", 0, 5)
        assert gated["explanation"] == f"option {VERSION_OPTION} is 0; version 1 waits for it"
        assert (regionless["condition"], REGIONS_OPTION in regionless["explanation"]) == ("waiting", True)
        assert (paused["condition"], paused["explanation"]) == ("paused", "pause 1")
        assert (off["condition"], off["explanation"]) == ("paused", "outbox region is switched off")
        assert category_off["explanation"] == "category MEMBER is switched off"

    async def test_a_lag_of_live_traffic_is_named(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 5)
        await connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, date_added)"
            " VALUES (0, 1, 1, 1, now() - interval '61 seconds')"
        )

        found = await here.one("status")

        assert (found["condition"], "60 s" in found["explanation"]) == ("lag", True)

    async def test_a_broken_table_is_shown_with_its_error_beside_the_others(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 5)
        here.configure(MEMBER | {"table": "nothing"}, MEMBER, MEMBER | {"table": "x", "replication_version": 0})

        broken, ready, never = await here.json("status")
        shown = await here.run("status")

        assert (broken["condition"], broken["rows_left"]) == ("broken", None)
        assert "there is no such table" in broken["explanation"]
        assert ready["condition"] == "ready"
        assert (never["condition"], never["rows_left"]) == ("never", None)
        lines = shown.stdout.splitlines()
        assert lines[0].split()[:4] == ["table", "version", "target", "condition"]
        assert re.search(r"^nothing: model nothing: there is no such table", shown.stdout, re.MULTILINE)

    @pytest.mark.parametrize("verb", ["status", "plan"])
    async def test_who_may_not_read_the_table_is_told_so_and_the_walk_is_not_called_broken(
        self, here: Here, connection: asyncpg.Connection, verb: str
    ) -> None:
        await create_members(connection, 5)
        async with reading_role(connection, here.dsn, "outbox", "control_outbox", "uuid_outbox") as dsn:
            found = await here.one(verb, env={"OUTBOX_DSN": dsn})
            shown = await here.run(verb, env={"OUTBOX_DSN": dsn})
            assert found["condition"] == "unreadable"
            assert "not readable" in shown.stdout
            [grant] = re.findall(r"GRANT [^;]*;", found["explanation"])
            assert grant.startswith("GRANT SELECT ON public.organizationmember TO ")
            await connection.execute(grant)
            assert (await here.one(verb, env={"OUTBOX_DSN": dsn}))["condition"] == "ready"

    async def test_a_finished_table_may_be_gone(self, here: Here, connection: asyncpg.Connection) -> None:
        await set_watermark(connection, "0", 2)

        found = await here.one("status")

        assert (found["condition"], found["rows_done"], found["rows_left"]) == ("finished", None, 0)

    async def test_watermarks_in_redis(self, here: Here, connection: asyncpg.Connection, valkey: str) -> None:
        await create_members(connection, 25)
        here.configure(redis_url=valkey)
        async with redis.asyncio.Redis.from_url(valkey) as client:
            await client.set("outbox_backfill.organizationmember", "[11, 1]")
            under_way = await here.one("status")
            await client.set("outbox_backfill.organizationmember", "garbage")
            broken = await here.one("status")
            await client.delete("outbox_backfill.organizationmember")

        assert (under_way["low_bound"], under_way["rows_left"]) == ("11", 15)
        assert broken["condition"] == "broken"
        assert "outbox_backfill.organizationmember" in broken["explanation"]

    async def test_the_query_for_psql_needs_no_connection_and_says_the_same(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await set_watermark(connection, "11", 1)
        await pause(connection)
        here.configure(MEMBER, MEMBER | {"table": "it's"})
        query = (await here.run("status", "--sql", env={"OUTBOX_DSN": "postgresql://nobody@127.0.0.1:1/x"})).stdout

        rows = [dict(row) for row in await connection.fetch(query)]

        assert query.startswith("-- ")
        assert [(row["table_name"], row["low_bound"], row["version"], row["paused"]) for row in rows] == [
            ("it's", "0", 1, False),
            ("organizationmember", "11", 1, True),
        ]

    @pytest.mark.parametrize("column", ["outbox", "category"])
    async def test_the_query_for_psql_knows_what_holds_a_walk_beside_its_own_pauses(
        self, here: Here, connection: asyncpg.Connection, column: str
    ) -> None:
        here.configure(*(MEMBER | {"table": f"t{number:03}"} for number in range(120)))
        await connection.execute(
            f"INSERT INTO outboxd.pause (kind, {column}) VALUES ('{column}', $1)",
            {"outbox": "region", "category": CATEGORIES["MEMBER"].value}[column],
        )

        rows = await connection.fetch((await here.run("status", "--sql")).stdout)

        assert [row["paused"] for row in rows] == [True] * 120

    async def test_the_query_of_watermarks_in_redis_says_where_they_are(self, here: Here) -> None:
        here.configure(redis_url="redis://127.0.0.1:1")

        assert "GET 'outbox_backfill.organizationmember'" in (await here.run("status", "--sql")).stdout

    async def test_on_a_terminal_there_are_bars(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)
        await set_watermark(connection, "11", 1)

        shown = await on_a_terminal(here, "status")

        assert "━" in shown
        assert "organizationmember" in shown

    @pytest.mark.parametrize(("columns", "line"), [(80, "organizationmember  1 of 1 "), (40, "low bound: 11")])
    async def test_what_does_not_fit_goes_without_bars_or_becomes_paragraphs(
        self, here: Here, connection: asyncpg.Connection, columns: int, line: str
    ) -> None:
        await create_members(connection, 25)
        await set_watermark(connection, "11", 1)

        shown = await terminal.run(here.file, "backfill", "status", columns=columns)

        assert "━" not in shown
        assert line in shown

    async def test_without_models_there_is_nothing_to_show(self, here: Here) -> None:
        here.file.write_text(here.file.read_text().partition("[[model]]")[0])

        assert (await here.run("status")).stdout.startswith("no [[model]] is configured")
        assert await here.json("status") == []
        assert (await here.run("status", "--sql")).stdout.startswith("-- No [[model]]")
        assert (await here.run("plan")).returncode == (await here.run("run")).returncode == 0
