"""`outboxd backfill`, as a process: what it shows, what it writes, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from outboxd import sql
from outboxd.backfill_report import ROWS_COUNTED_MAX, _renderer
from outboxd.embedded import embedded_valkey
from outboxd.source import inspect_walk
from tests.drains import CONTROL, REGION, UUID, connected, until
from tests.integration.drain.test_statements import SHORT_NAMES, declared_parameters
from tests.processes import ROOT, Outboxd, outboxd, run
from tests.walks import (
    create_members,
    let_a_minute_pass,
    model,
    objects,
    set_option,
    walk_to_the_end,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

VERSION_OPTION = "outbox_replication.organizationmember.replication_version"
REGIONS_OPTION = "outbox_replication.organizationmember.backfill.target_regions"
MEMBER = {
    "table": "organizationmember",
    "outbox": "region",
    "category": "MEMBER",
    "shard_identifier": "organization_id",
}
TOML = """
dsn = "{dsn}"
redis_url = "{redis_url}"

[backfill]
state = "{state}"
backfills_per_minute = {rate}

[receivers]
modules = {modules}

[scopes.ORGANIZATION_SCOPE]
value = 0

[categories.MEMBER]
value = 1
scope = "ORGANIZATION_SCOPE"

[[outbox]]
name = "region"
table = "outbox"

[[outbox]]
name = "control"
table = "control_outbox"
silo = "control"
sharding_columns = ["region_name", "shard_scope", "shard_identifier"]

[[outbox]]
name = "uuid"
table = "uuid_outbox"
key_type = "uuid"
"""
RECEIVER = """
from outboxd import receiver

@receiver("MEMBER")
async def accept(message):
    print("accepted", message.object_identifier)
    if message.object_identifier in {failing}:
        raise ValueError("not this one")
"""


class Here:
    """A folder with a configuration, and a database."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.file = folder / "outboxd.toml"
        self.dsn = dsn

    def configure(
        self,
        *models: dict[str, Any],
        rate: int = 10_000,
        redis_url: str = "",
        receives: bool = False,
        failing: tuple[int, ...] = (),
    ) -> None:
        """Write the configuration; the model of members when none is given."""
        values = {"dsn": self.dsn, "redis_url": redis_url, "state": "redis" if redis_url else "postgres", "rate": rate}
        modules = '["member_receiver"]' if receives else "[]"
        if receives:
            (self.file.parent / "member_receiver.py").write_text(RECEIVER.format(failing=list(failing)))
        lines = [TOML.format(**values, modules=modules)]
        for each in models or (MEMBER,):
            lines += ["[[model]]", *(f"{key} = {json.dumps(value)}" for key, value in each.items())]
        self.file.write_text("\n".join(lines))

    async def run(self, *arguments: str, **options: Any) -> Outboxd:
        done = await run("backfill", *arguments, config=self.file, timeout_s=40, **options)
        assert "Traceback" not in done.stderr
        return done

    async def json(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        done = await self.run(*arguments, "--json")
        assert done.returncode == code, done.stderr
        document: list[dict[str, Any]] = json.loads(done.stdout)
        return document

    async def one(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        (only,) = await self.json(*arguments, code=code)
        return only


@pytest.fixture
def here(tmp_path: Path, database: str) -> Here:
    made = Here(tmp_path, database)
    made.configure()
    return made


async def pause(connection: asyncpg.Connection, table: str | None = "organizationmember") -> None:
    await connection.execute("INSERT INTO outboxd.pause (kind, table_name) VALUES ('backfill', $1)", table)


async def set_watermark(connection: asyncpg.Connection, low_bound: str, version: int) -> None:
    await connection.execute(
        "INSERT INTO outboxd.backfill_watermark (table_name, low_bound, version) VALUES ('organizationmember', $1, $2)",
        low_bound,
        version,
    )


async def everything_written(connection: asyncpg.Connection) -> list[Any]:
    """Whatever a backfill may write."""
    tables = ("outbox", "control_outbox", "uuid_outbox", "outboxd.backfill_watermark", "outboxd.backfill_spending")
    return [await connection.fetch(f"SELECT * FROM {table} ORDER BY 1") for table in tables]


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
        assert (paused["condition"], paused["explanation"]) == ("paused", "a row of kind backfill in outboxd.pause")
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

    async def test_the_query_of_watermarks_in_redis_says_where_they_are(self, here: Here) -> None:
        here.configure(redis_url="redis://127.0.0.1:1")

        assert "GET 'outbox_backfill.organizationmember'" in (await here.run("status", "--sql")).stdout

    async def test_on_a_terminal_there_are_bars(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)
        await set_watermark(connection, "11", 1)

        shown = await on_a_terminal(here, "status")

        assert "━" in shown
        assert "organizationmember" in shown

    async def test_without_models_there_is_nothing_to_show(self, here: Here) -> None:
        here.file.write_text(here.file.read_text().partition("[[model]]")[0])

        assert (await here.run("status")).stdout.startswith("no [[model]] is configured")
        assert await here.json("status") == []
        assert (await here.run("status", "--sql")).stdout.startswith("-- No [[model]]")
        assert (await here.run("plan")).returncode == (await here.run("run")).returncode == 0


class TestPlan:
    async def test_it_tells_what_a_walk_would_write_and_writes_nothing(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        here.configure(
            MEMBER | {"where_sql": "id % 2 = 1 -- odd", "payload_sql": "jsonb_build_object('slug', slug)"}, rate=10
        )
        await set_watermark(connection, "6", 1)
        before = await everything_written(connection)

        found = await here.one("plan", "organizationmember")
        shown = await here.run("plan")

        assert (found["condition"], found["version"], found["low_bound"]) == ("ready", 1, "6")
        assert (found["rows"], found["messages"], found["minutes"], found["rows_refused"]) == (20, 10, 1.0, 0)
        assert len(found["first_messages"]) == 5
        assert found["first_messages"][0] == {
            "region_name": None,
            "shard_identifier": 0,
            "object_identifier": 7,
            "payload": {"slug": "member-7"},
        }
        assert "20 rows left, 10 messages, 1.0 minutes at 10 a minute" in shown.stdout
        assert '"member-7"' in shown.stdout
        assert await everything_written(connection) == before

    @pytest.mark.parametrize(
        ("keys", "messages"),
        [
            ({"region_names": ["us", "eu"]}, 50),
            ({"region_names_sql": "CASE WHEN id > 20 THEN region || '{de,us}' END"}, 10),
        ],
        ids=["the same for all", "by row"],
    )
    async def test_a_row_has_a_message_for_each_region(
        self, here: Here, connection: asyncpg.Connection, keys: dict[str, Any], messages: int
    ) -> None:
        await create_members(connection, 25)
        here.configure(MEMBER | {"outbox": "control"} | keys)

        everywhere = await here.one("plan")
        await set_option(connection, REGIONS_OPTION, '["us"]')
        in_one = await here.one("plan")

        assert (everywhere["rows"], everywhere["messages"]) == (25, messages)
        assert in_one["messages"] == messages / 2
        assert {message["region_name"] for message in in_one["first_messages"]} == {"us"}

    @pytest.mark.parametrize("keys", [{"region_names": ["us", "eu"]}, {"region_names_sql": "region || '{de,us}'"}])
    async def test_the_walk_writes_what_was_planned(
        self, here: Here, connection: asyncpg.Connection, keys: dict[str, Any]
    ) -> None:
        await create_members(connection, 2)
        here.configure(
            MEMBER
            | {"outbox": "control", "shard_identifier": "", "shard_identifier_sql": "organization_id + id"}
            | {"payload_sql": "to_jsonb(slug)"}
            | keys
        )
        planned = (await here.one("plan"))["first_messages"]
        await here.run("run")

        written = await connection.fetch("SELECT * FROM control_outbox ORDER BY object_identifier, region_name")

        assert len(planned) == 4
        assert planned == [
            {
                "region_name": row["region_name"],
                "shard_identifier": row["shard_identifier"],
                "object_identifier": row["object_identifier"],
                "payload": json.loads(row["payload"]),
            }
            for row in written
        ]

    @pytest.mark.parametrize("held", ["paused", "waiting"])
    async def test_a_walk_that_is_held_back_is_planned_all_the_same(
        self, here: Here, connection: asyncpg.Connection, held: str
    ) -> None:
        await create_members(connection, 25)
        if held == "paused":
            await pause(connection, None)
        else:
            await set_option(connection, VERSION_OPTION, "0")

        found = await here.one("plan")

        assert (found["condition"], found["version"], found["messages"]) == (held, 1, 25)
        assert found["explanation"]

    async def test_of_a_finished_walk_nothing_is_left(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25)
        await set_watermark(connection, "0", 2)

        found = await here.one("plan")

        assert (found["condition"], found["version"], found["rows"], found["messages"]) == ("finished", None, 0, 0)

    async def test_rows_that_the_outbox_would_refuse_are_counted(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        await connection.execute("UPDATE organizationmember SET organization_id = NULL WHERE id <= 3")

        assert (await here.one("plan"))["rows_refused"] == 3
        assert "3 rows have no shard" in (await here.run("plan")).stdout

    @pytest.mark.parametrize(
        ("keys", "error"),
        [
            ({"table": "nothing"}, "there is no such table"),
            ({"where_sql": "colour = 'red'"}, "colour"),
            ({"shard_identifier_sql": "slug", "shard_identifier": ""}, "bigint"),
            ({"payload_sql": "to_jsonb(nextval('outbox_id_seq'))"}, "read-only"),
        ],
    )
    async def test_a_model_that_cannot_be_walked_is_told_from_the_others(
        self, here: Here, connection: asyncpg.Connection, keys: dict[str, Any], error: str
    ) -> None:
        await create_members(connection, 5)
        await create_members(connection, 5, table="other")
        here.configure(MEMBER | keys, MEMBER | {"table": "other"})

        broken, other = await here.json("plan", code=78)

        assert broken["condition"] == "broken"
        assert error in broken["explanation"]
        assert other["messages"] == 5

    async def test_uuid_keys(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 25, key="uuid")
        here.configure(MEMBER | {"outbox": "uuid", "shard_identifier": "", "shard_identifier_sql": "id"})
        await set_watermark(connection, str(uuid.UUID(int=5)), 1)

        found = await here.one("plan")

        assert (found["rows"], found["messages"]) == (20, 20)
        assert found["first_messages"][0]["object_identifier"] == str(uuid.UUID(int=6))


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

    async def test_it_keeps_to_the_rate_and_ctrl_c_leaves_it_where_it_is(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        async with outboxd("backfill", "run", "--rate", "10", config=here.file) as process:
            await until(lambda: "waiting for the rate" in process.stderr, 20)
            assert await watermark(connection) == ("11", 1)
            process.signal(signal.SIGINT)
            assert await process.wait() == 130

        assert "Traceback" not in process.stderr
        assert process.stdout.startswith("organizationmember: waiting for the rate at low bound 11; 10 rows")
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

            await until(waits, 20)
            process.signal(signal.SIGINT)
            process.signal(signal.SIGTERM)  # counts as the second one; two of a kind might become one
            assert await process.wait(4.0) == 130, "it waited for the lock, whose timeout is 5 s"
            await locked.rollback()

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


class TestMoves:
    async def test_rewind_walks_the_table_again(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 5)
        await set_watermark(connection, "0", 2)

        done = await here.run("rewind", "organizationmember", "--yes")

        assert done.returncode == 0, done.stderr
        assert done.stdout == "organizationmember: version 1, low bound 0 (was: version 2, low bound 0)\n"
        assert (await here.run("run")).returncode == 0
        assert await objects(connection) == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(("to", "first"), [("3", 3), ("1", 1), ("0", 1), ("-7", 1)])
    async def test_rewind_to_a_key_begins_with_it(
        self, here: Here, connection: asyncpg.Connection, to: str, first: int
    ) -> None:
        await create_members(connection, 5)

        assert (await here.run("rewind", "organizationmember", "--yes", f"--to={to}")).returncode == 0
        assert (await here.run("run")).returncode == 0
        assert await objects(connection) == list(range(first, 6))

    async def test_rewind_to_0_leaves_negative_keys_out(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 2)
        await connection.execute("INSERT INTO organizationmember VALUES (-1, 0), (0, 0)")

        assert (await here.run("rewind", "organizationmember", "--yes", "--to", "0")).returncode == 0
        assert (await here.run("run")).returncode == 0
        assert await objects(connection) == [0, 1, 2]

    @pytest.mark.parametrize(("to", "first"), [(3, 3), (0, 1)])
    async def test_rewind_to_a_uuid(self, here: Here, connection: asyncpg.Connection, to: int, first: int) -> None:
        await create_members(connection, 5, key="uuid")
        here.configure(MEMBER | {"outbox": "uuid", "shard_identifier": "", "shard_identifier_sql": "id"})

        moved = await here.run("rewind", "organizationmember", "--yes", "--to", str(uuid.UUID(int=to)))

        assert moved.returncode == 0, moved.stderr
        assert (await here.run("run")).returncode == 0
        assert await objects(connection, "uuid_outbox") == [uuid.UUID(int=n) for n in range(first, 6)]

    async def test_rewind_takes_the_version_that_the_option_allows(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 5)
        here.configure(MEMBER | {"replication_version": 3})
        await set_option(connection, VERSION_OPTION, "2")
        await here.run("rewind", "organizationmember", "--yes")
        allowed = await watermark(connection)
        await set_option(connection, VERSION_OPTION, "0")
        await here.run("rewind", "organizationmember", "--yes", "--to", "4")

        assert allowed == ("0", 2)
        assert await watermark(connection) == ("4", 3), "it waits for the option, and then begins there"

    @pytest.mark.parametrize("to", ["abc", "1.5", "99999999999999999999", ""])
    async def test_rewind_refuses_what_is_no_key(self, here: Here, connection: asyncpg.Connection, to: str) -> None:
        await create_members(connection, 5)

        done = await here.run("rewind", "organizationmember", "--yes", "--to", to)

        assert done.returncode == 2
        assert "--to must be an integer (bigint)" in done.stderr
        assert await watermark(connection) is None

    async def test_skip_marks_as_finished(self, here: Here, connection: asyncpg.Connection) -> None:
        await create_members(connection, 5)
        here.configure(MEMBER | {"replication_version": 3})

        done = await here.run("skip", "organizationmember", "--yes")

        assert (done.returncode, await watermark(connection)) == (0, ("0", 4))
        assert (await here.one("status"))["condition"] == "finished"
        assert (await here.run("run")).returncode == 0
        assert await objects(connection) == []

    async def test_they_mend_garbage_in_redis(self, here: Here, connection: asyncpg.Connection, valkey: str) -> None:
        await create_members(connection, 5)
        here.configure(redis_url=valkey)
        async with redis.asyncio.Redis.from_url(valkey) as client:
            for arguments, expected in ((["rewind", "--to", "4"], b"[4,1]"), (["skip"], b"[0,2]")):
                await client.set("outbox_backfill.organizationmember", "garbage")
                done = await here.run(*arguments, "organizationmember", "--yes")
                assert done.returncode == 0, done.stderr
                assert await client.get("outbox_backfill.organizationmember") == expected
            await client.delete("outbox_backfill.organizationmember")

    @pytest.mark.parametrize("move", ["rewind", "skip"])
    async def test_they_ask_first(self, here: Here, connection: asyncpg.Connection, move: str) -> None:
        await create_members(connection, 5)
        await set_watermark(connection, "3", 1)

        unanswered = await here.run(move, "organizationmember")
        refused = await on_a_terminal(here, move, "organizationmember", answer="n")
        kept = await watermark(connection)
        await on_a_terminal(here, move, "organizationmember", answer="y")

        assert unanswered.returncode == 2
        assert "hint: Add --yes." in unanswered.stderr
        assert "now: version 1, low bound 3" in refused
        assert "nothing was changed" in refused
        assert kept == ("3", 1)
        assert await watermark(connection) != ("3", 1)


class TestErrors:
    @pytest.mark.parametrize("arguments", [["plan"], ["run"], ["rewind", "--yes"], ["skip", "--yes"]])
    async def test_an_unknown_table_is_a_usage_error_that_names_the_nearest(
        self, here: Here, arguments: list[str]
    ) -> None:
        done = await here.run(*arguments, "organisationmember")

        assert done.returncode == 2
        assert "organisationmember, did you mean organizationmember?" in done.stderr

    async def test_a_table_of_another_silo_is_named_as_such(self, here: Here) -> None:
        done = await run("--silo-mode", "control", "backfill", "run", "organizationmember", config=here.file)

        assert done.returncode == 2
        assert "organizationmember is not walked in silo mode control" in done.stderr

    @pytest.mark.parametrize("arguments", [["run"], ["rewind", "--yes"], ["skip", "--yes"]])
    async def test_a_table_that_is_never_backfilled_cannot_be_moved(self, here: Here, arguments: list[str]) -> None:
        here.configure(MEMBER | {"replication_version": 0})

        done = await here.run(*arguments, "organizationmember")

        assert done.returncode == 2
        assert "never backfilled" in done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ["status"],
            ["plan"],
            ["run"],
            ["rewind", "organizationmember", "--yes"],
            ["skip", "organizationmember", "--yes"],
        ],
        ids=lambda arguments: str(arguments[0]),
    )
    async def test_stores_that_are_away_and_a_schema_that_is_missing(
        self, here: Here, connection: asyncpg.Connection, arguments: list[str]
    ) -> None:
        await create_members(connection, 5)
        no_database = await here.run(*arguments, env={"OUTBOX_DSN": "postgresql://nobody@127.0.0.1:1/x"})
        here.configure(redis_url="redis://127.0.0.1:1")
        no_redis = await here.run(*arguments)
        await connection.execute("DROP SCHEMA outboxd CASCADE")
        no_schema = await here.run(*arguments)

        assert (no_database.returncode, no_redis.returncode, no_schema.returncode) == (69, 69, 78)
        assert "redis at redis://127.0.0.1:1" in no_redis.stderr
        assert "Run `outboxd migrate`" in no_schema.stderr

    async def test_a_redis_that_goes_away_ends_a_run_which_says_where_it_is(
        self, here: Here, connection: asyncpg.Connection
    ) -> None:
        await create_members(connection, 25)
        async with contextlib.AsyncExitStack() as server:
            here.configure(redis_url=await server.enter_async_context(embedded_valkey()), rate=10)
            async with outboxd("backfill", "run", config=here.file) as process:
                await until(lambda: "waiting for the rate" in process.stderr, 20)
                await server.aclose()
                assert await process.wait() == 69

        assert "Traceback" not in process.stderr
        assert "at low bound 11; 10 rows" in process.stdout


@pytest.mark.parametrize(
    ("keys", "outbox"),
    [({}, REGION), ({"region_names": ["us"]}, CONTROL), ({"region_names_sql": "region"}, CONTROL), ({}, UUID)],
    ids=["region", "control", "by row", "uuid"],
)
async def test_every_statement_takes_what_its_header_says(
    connection: asyncpg.Connection, keys: dict[str, Any], outbox: Any
) -> None:
    key_type = "uuid" if outbox is UUID else "bigint"
    await create_members(connection, 5, key=key_type)
    members = model(outbox=outbox.name, **keys)
    walk = await inspect_walk(connection, with_models(members, outboxes=(outbox,)), members)
    own = sql.Renderer({"schema": sql.quote("outboxd"), "models": "('organizationmember', 1)"}, {})

    for name, statement in sql.load("backfill_report.sql").items():
        if name.startswith("targets"):
            continue
        renderer = _renderer(walk) if "{source}" in statement else own
        rendered = renderer.render(statement)
        prepared = await connection.prepare(rendered)
        types = {
            number: SHORT_NAMES.get(each.name, each.name) for number, each in enumerate(prepared.get_parameters(), 1)
        }
        declared = {number: SHORT_NAMES.get(each, each) for number, each in declared_parameters(rendered, []).items()}
        assert types == declared, name


async def on_a_terminal(here: Here, *arguments: str, answer: str = "") -> str:
    """Run it on a terminal, and return what is there at the end."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "outboxd", "--config", str(here.file), "backfill", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    if answer:
        os.write(leader, f"{answer}\n".encode())
    shown = await asyncio.to_thread(_read_all, leader)
    await process.wait()
    os.close(leader)
    assert "Traceback" not in shown
    return shown


def _read_all(leader: int) -> str:
    found = b""
    while True:
        try:
            read = os.read(leader, 65_536)
        except OSError:  # Linux says so when the last one has closed its end
            break
        if not read:
            break
        found += read
    return found.decode(errors="replace")
