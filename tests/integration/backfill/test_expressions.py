"""What a model may say of its rows: where_sql, payload_sql, expressions, names that need quotes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import sql
from tests.drains import CONTROL, REGION, TEXT, UUID
from tests.walks import create_members, model, objects, progress_of, walk_to_the_end, walking, watermark, with_models

if TYPE_CHECKING:
    import asyncpg


@pytest.mark.parametrize("where", ["id % 3 = 0", "id % 3 = 0 -- every third", "id % 3 = 0 OR NULL", "(id % 3 = 0)"])
async def test_rows_that_where_sql_refuses_are_passed_over(
    database: str, connection: asyncpg.Connection, where: str
) -> None:
    await create_members(connection, 10)
    async with walking(database, with_models(model(where_sql=where))) as backfill:
        await walk_to_the_end(backfill, connection)
        assert (progress_of(backfill).rows, progress_of(backfill).messages) == (10, 3)

    assert await objects(connection) == [3, 6, 9]
    assert await watermark(connection) == ("0", 2)


async def test_a_batch_whose_rows_are_all_refused_is_not_the_end(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 25)
    config = with_models(model(where_sql="id > 20"), backfills_per_minute=10)
    async with walking(database, config) as backfill:
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == [21, 22, 23, 24, 25]
    assert await watermark(connection) == ("0", 2)


async def test_the_payload_is_an_expression_over_the_row(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 2)
    payload = "jsonb_build_object('slug', slug, 'is', '{\"a\": {}}'::jsonb) -- {braces} are text"
    async with walking(database, with_models(model(payload_sql=payload))) as backfill:
        await walk_to_the_end(backfill, connection)

    rows = await connection.fetch("SELECT payload FROM outbox ORDER BY object_identifier")
    assert [json.loads(row[0])["slug"] for row in rows] == ["member-1", "member-2"]


async def test_other_columns_than_the_key_identify_shard_and_object(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    walked = model(
        outbox="text", shard_identifier="", shard_identifier_sql="upper(slug) -- loud", object_identifier="slug"
    )
    async with walking(database, with_models(walked, outboxes=(REGION, TEXT))) as backfill:
        while await backfill.tick(paced=False):
            continue

    rows = await connection.fetch("SELECT shard_identifier, object_identifier FROM text_outbox ORDER BY 1")
    assert [tuple(row) for row in rows] == [(f"MEMBER-{n}", f"member-{n}") for n in (1, 2, 3)]


@pytest.mark.parametrize("table", ["target", "bound", "written", "batch", "sized", "named", 'it\'s "it" {0}', "Order"])
async def test_no_name_of_a_table_is_in_our_way(database: str, connection: asyncpg.Connection, table: str) -> None:
    await create_members(connection, 3, table=f"public.{table}")
    walked = model(table=f"public.{table}", payload_sql=f"to_jsonb({sql.quote(table)}.slug)", where_sql="id < 3")
    async with walking(database, with_models(walked)) as backfill:
        await walk_to_the_end(backfill, connection)
        assert progress_of(backfill, f"public.{table}").error == ""

    assert await objects(connection) == [1, 2]


REGIONAL: list[dict[str, Any]] = [
    {"outbox": "control", "region_names": ["us", "de"]},
    {"outbox": "control", "region_names_sql": "ARRAY[region_name]"},
    {"outbox": "region"},
]


@pytest.mark.parametrize("values", REGIONAL, ids=["names", "names from the row", "without regions"])
@pytest.mark.parametrize("column", ["region_name", "key", "messages", "last_key", "total"])
async def test_no_name_of_a_column_is_in_our_way(
    database: str, connection: asyncpg.Connection, values: dict[str, Any], column: str
) -> None:
    await connection.execute(
        f"CREATE TABLE organizationmember (id int PRIMARY KEY, organization_id int, {column} text);"
        "INSERT INTO organizationmember VALUES (1, 1, 'us'), (2, 1, 'de')"
    )
    if "region_names_sql" in values:
        values = values | {"region_names_sql": f"ARRAY[{column}]"}
    walked = model(
        **values,
        shard_identifier="",
        shard_identifier_sql=f"length({column})",
        payload_sql=f"to_jsonb({column})",
        where_sql=f"{column} = 'us'",
    )
    config = with_models(walked, outboxes=(REGION, CONTROL))
    table = "control_outbox" if values["outbox"] == "control" else "outbox"
    async with walking(database, config) as backfill:
        while await backfill.tick(paced=False):
            continue
        assert progress_of(backfill).error == ""

    assert set(await objects(connection, table)) == {1}


async def test_a_uuid_outbox_takes_uuid_columns(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3, key="uuid")
    walked = model(outbox="uuid", shard_identifier="id")
    async with walking(database, with_models(walked, outboxes=(REGION, UUID))) as backfill:
        while await backfill.tick(paced=False):
            continue

    assert [key.int for key in await objects(connection, "uuid_outbox")] == [1, 2, 3]
