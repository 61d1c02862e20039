"""`outboxd.save(…)`: a message from any language, in whatever transaction it is called."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from outboxd.migrate import migrate
from outboxd.migration_script import migration_sql
from tests.drains import (
    CONTROL,
    REGION,
    TEXT,
    UUID,
    Recorder,
    configure,
    connected,
    drain_once,
    remaining,
)
from tests.integration.operate.switched import psql

if TYPE_CHECKING:
    from outboxd.config import Config

PAIR = configure(REGION, CONTROL)
EVERY = configure(REGION, CONTROL, UUID, TEXT)
ID = uuid.UUID("0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11")


@pytest.fixture
async def pair(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A database with one outbox of either kind."""
    await migrate(connection, PAIR)
    return connection


async def save(connection: asyncpg.Connection, arguments: str, *values: Any) -> int:
    return int(await connection.fetchval(f"SELECT outboxd.save({arguments})", *values))


async def test_a_message_is_written_and_delivered(database: str, pair: asyncpg.Connection) -> None:
    number = await save(pair, """'MEMBER', 1, 2, '{"a": 1}', headers => '{"tenant": "x"}'""")
    elsewhere = await save(pair, "'PROFILE', 7, 8, region_name => 'eu'")
    seen = Recorder()
    await drain_once(database, seen, PAIR)

    region, control = sorted(seen.messages, key=lambda message: message.outbox, reverse=True)
    assert (region.id, region.outbox, region.scope_name, region.shard_identifier) == (
        number,
        "region",
        "ORGANIZATION_SCOPE",
        1,
    )
    assert (region.object_identifier, region.payload, region.headers) == (2, {"a": 1}, {"tenant": "x"})
    assert (control.id, control.region_name, control.scope_name) == (elsewhere, "eu", "USER_SCOPE")


@pytest.mark.parametrize(
    ("outbox", "identifier", "expected"),
    [
        ("region", "7", 7),
        ("region", "'7'", 7),
        ("region", "7::smallint", 7),
        ("uuid", f"'{ID}'", ID),
        ("uuid", f"'{ID}'::uuid", ID),
        ("text", "'it''s'", "it's"),
        ("text", "7", "7"),
        ("text", f"'{ID}'::uuid", str(ID)),
    ],
)
async def test_identifiers_of_every_type(
    connection: asyncpg.Connection, outbox: str, identifier: str, expected: Any
) -> None:
    await migrate(connection, EVERY)
    await save(connection, f"'MEMBER', {identifier}, {identifier}, outbox => '{outbox}'")

    table = {"region": "outbox"}.get(outbox, f"{outbox}_outbox")
    row = await connection.fetchrow(f"SELECT shard_identifier, object_identifier FROM {table}")
    assert row is not None
    assert tuple(row) == (expected, expected)


async def test_parameters_whose_type_nobody_says(database: str, pair: asyncpg.Connection) -> None:
    """As drivers do that send every parameter as a text."""
    await pair.execute("PREPARE saving AS SELECT outboxd.save($1, $2, $3)")
    await psql(database, "PREPARE saving AS SELECT outboxd.save($1, $2, $3); EXECUTE saving ('MEMBER', '7', '8');")
    assert await pair.fetchval("SELECT object_identifier FROM outbox") == 8


async def test_a_rollback_takes_it_along(pair: asyncpg.Connection) -> None:
    transaction = pair.transaction()
    await transaction.start()
    await save(pair, "'MEMBER', 1, 2")
    await transaction.rollback()
    assert await remaining(pair) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'MEMBR', 1, 2", "there is no category MEMBR"),
        ("NULL, 1, 2", "there is no category <NULL>"),
        ("'MEMBER', 1, 2, outbox => 'x'", "MEMBER: no outbox x for a message with region_name null"),
        ("'MEMBER', 1, 2, outbox => 'control'", "MEMBER: outbox control needs a region_name"),
        ("'MEMBER', 1, 2, region_name => ''", "MEMBER: outbox control needs a region_name"),
        ("'MEMBER', 1, 2, region_name => 'eu', outbox => 'region'", "MEMBER: outbox region takes no region_name"),
        ("'MEMBER', 'a', 'b'", 'invalid input syntax for type bigint: "a"'),
        ("'MEMBER', NULL::bigint, 2", 'null value in column "shard_identifier"'),
        ("'MEMBER', 1, NULL::bigint", 'null value in column "object_identifier"'),
    ],
)
async def test_what_breaks_a_rule_is_refused(pair: asyncpg.Connection, arguments: str, said: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await save(pair, arguments)

    assert said in str(refused.value)
    assert await remaining(pair) == []


async def test_where_several_outboxes_fit_one_must_be_named(connection: asyncpg.Connection) -> None:
    await migrate(connection, EVERY)
    with pytest.raises(asyncpg.PostgresError, match="no outbox fits alone") as refused:
        await save(connection, "'MEMBER', 1, 2")

    assert "Outboxes: region (no region), control (with region), uuid" in (refused.value.hint or "")


async def test_a_table_without_headers(pair: asyncpg.Connection) -> None:
    await pair.execute("ALTER TABLE outbox DROP COLUMN headers")
    await save(pair, "'MEMBER', 1, 2")
    with pytest.raises(asyncpg.PostgresError, match='column "headers"'):
        await save(pair, "'MEMBER', 1, 2, headers => '{}'")


async def test_a_table_that_is_missing_breaks_its_own_outbox_only(pair: asyncpg.Connection) -> None:
    await pair.execute("DROP TABLE control_outbox")
    await save(pair, "'MEMBER', 1, 2")
    with pytest.raises(asyncpg.UndefinedTableError, match="control_outbox"):
        await save(pair, "'PROFILE', 1, 2, region_name => 'eu'")


async def test_identifiers_of_two_types(connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox ALTER object_identifier TYPE text")
    await migrate(connection, PAIR)
    for given in ("'7', 'x'", "7, 'x'", "7::int2, 'x'::varchar", "'7'::text, 'x'"):
        await save(connection, f"'MEMBER', {given}")
    await save(connection, "'MEMBER', 7, $1::uuid", ID)
    rows = await connection.fetch("SELECT shard_identifier, object_identifier FROM outbox ORDER BY id")
    assert [tuple(row) for row in rows] == [(7, "x")] * 4 + [(7, str(ID))]


async def test_it_follows_the_configuration(connection: asyncpg.Connection) -> None:
    await migrate(connection, configure(REGION))
    assert "schema outboxd: function save written" in await migrate(connection, PAIR)
    assert await migrate(connection, PAIR) == []
    await save(connection, "'PROFILE', 1, 2, region_name => 'eu'")
    await migrate(connection, configure(REGION))
    with pytest.raises(asyncpg.PostgresError, match="no outbox fits alone"):
        await save(connection, "'PROFILE', 1, 2, region_name => 'eu'")


async def test_the_script_makes_the_same_function(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("DROP SCHEMA outboxd CASCADE; DROP TABLE outbox, control_outbox, uuid_outbox, text_outbox")
    await psql(database, migration_sql(PAIR))
    await psql(database, migration_sql(PAIR))

    assert await migrate(connection, PAIR) == []
    assert await save(connection, "'MEMBER', 1, 2") == 1


HOSTILE = "x\"; drop table y; --$outboxd$'\\"


async def test_names_that_try_to_break_out(connection: asyncpg.Connection, database: str) -> None:
    config = _renamed(configure(REGION), HOSTILE)
    await migrate(connection, config)
    await psql(database, migration_sql(config))

    schema = '"' + HOSTILE.replace('"', '""') + '"'
    assert await connection.fetchval(f"SELECT {schema}.save('MEMBER', 1, 2, outbox => $1)", HOSTILE) == 1


def _renamed(config: Config, name: str) -> Config:
    import msgspec

    outbox = msgspec.structs.replace(config.outbox[0], name=name, table=name)
    return msgspec.structs.replace(config, schema=name, outbox=[outbox])


async def test_who_may_write_needs_the_schema_and_the_categories(pair: asyncpg.Connection, database: str) -> None:
    from tests.integration.operate.roles import role

    async with role(pair, database) as (name, dsn), connected(dsn) as shop:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="schema outboxd"):
            await save(shop, "'MEMBER', 1, 2")
        await pair.execute(f"GRANT USAGE ON SCHEMA outboxd TO {name}; GRANT SELECT ON outboxd.category TO {name}")
        await pair.execute(f"GRANT SELECT, INSERT ON outbox TO {name}")
        assert await save(shop, "'MEMBER', 1, 2") == 1


@pytest.mark.parametrize("path", ["''", "elsewhere, public"])
async def test_it_goes_to_its_outbox_whatever_the_search_path_says(pair: asyncpg.Connection, path: str) -> None:
    await pair.execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.outbox (LIKE public.outbox INCLUDING ALL)")
    await pair.execute(f"SET search_path = {path}")
    number = await save(pair, "'MEMBER', 1, 2")
    await pair.execute("SET search_path = public")

    assert await remaining(pair) == [number]
