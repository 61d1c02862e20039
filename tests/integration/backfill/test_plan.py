"""`outboxd backfill plan`: what a walk would write, without writing it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.backfill.commands import (
    MEMBER,
    REGIONS_OPTION,
    VERSION_OPTION,
    Here,
    everything_written,
    pause,
    set_watermark,
)
from tests.walks import (
    create_members,
    set_option,
)

if TYPE_CHECKING:
    import asyncpg


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
