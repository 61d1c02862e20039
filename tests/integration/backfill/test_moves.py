"""`outboxd backfill rewind` and `skip`: moving a walk by hand."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from tests.integration.backfill.commands import (
    MEMBER,
    VERSION_OPTION,
    Here,
    on_a_terminal,
    set_watermark,
)
from tests.walks import (
    create_members,
    objects,
    set_option,
    watermark,
)

if TYPE_CHECKING:
    import asyncpg


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
