"""What every `outboxd backfill` command refuses, with its exit code; and the statements behind them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import sql
from outboxd.backfill_report import _renderer
from outboxd.embedded import embedded_valkey
from outboxd.source import inspect_walk
from tests.drains import CONTROL, REGION, UUID
from tests.eventually import eventually
from tests.integration.backfill.commands import (
    MEMBER,
    Here,
)
from tests.integration.drain.test_statements import SHORT_NAMES, declared_parameters
from tests.processes import outboxd, run
from tests.walks import (
    create_members,
    model,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg


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
                await eventually(lambda: "waiting for the rate" in process.stderr)
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
    own = sql.Renderer({"schema": sql.quote("outboxd")}, {})

    for name, statement in sql.load("backfill_report.sql").items():
        if name.startswith("targets") or name == "watermarks":  # fragments; and a question with its values in it
            continue
        renderer = _renderer(walk) if "{source}" in statement else own
        rendered = renderer.render(statement)
        prepared = await connection.prepare(rendered)
        types = {
            number: SHORT_NAMES.get(each.name, each.name) for number, each in enumerate(prepared.get_parameters(), 1)
        }
        declared = {number: SHORT_NAMES.get(each, each) for number, each in declared_parameters(rendered, []).items()}
        assert types == declared, name
