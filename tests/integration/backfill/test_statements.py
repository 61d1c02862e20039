"""Every statement of a backfill can be prepared, takes what its header says, and has only the plan of its index."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import sql
from outboxd.budget import load_statements
from outboxd.inspection import inspect_table
from outboxd.session import HOT_SETTINGS
from outboxd.source import inspect_walk
from tests.drains import CONTROL, REGION, TEXT, UUID
from tests.integration.drain.test_statements import problems
from tests.walks import create_members, model, walking, with_models

if TYPE_CHECKING:
    import asyncpg

    from outboxd.source import Walk

ABOUT_NO_SOURCE = {
    "watermark",
    "lock_watermark",
    "move_watermark",
    "try_lock_table",
    "unlock_table",
    "lock_spending",
    "spent",
    "spend",
}
WALKS: dict[str, dict[str, Any]] = {
    "region": {},
    "control": {"outbox": "control", "region_names": ["us"]},
    "by row": {"outbox": "control", "region_names_sql": "region"},
    "everything": {
        "where_sql": "slug <> '' -- not empty",
        "payload_sql": "to_jsonb(slug)",
        "shard_identifier": "",
        "shard_identifier_sql": "organization_id + 1",
    },
    "uuid": {"outbox": "uuid", "shard_identifier": "", "shard_identifier_sql": "gen_random_uuid()"},
}

STATEMENTS = {name: text for name, text in sql.load("backfill.sql").items() if not text.startswith("-- A fragment")}


async def walk_of(connection: asyncpg.Connection, values: dict[str, Any]) -> Walk:
    config = with_models(model(**values), outboxes=(REGION, CONTROL, UUID, TEXT))
    return await inspect_walk(connection, config, config.model[0])


def test_each_statement_of_the_file_is_tested_here() -> None:
    assert set(STATEMENTS) == ABOUT_NO_SOURCE | {"load", "lag_of_first", "batch", "batch_by_row"}


async def test_the_statements_about_no_source_table(connection: asyncpg.Connection) -> None:
    renderer = sql.Renderer({"schema": sql.quote("outboxd")}, {})
    statements = {name: renderer.render(STATEMENTS[name]) for name in ABOUT_NO_SOURCE}

    assert await problems(connection, statements, []) == []


@pytest.mark.parametrize("config", [REGION, CONTROL, UUID, TEXT], ids=lambda config: config.name)
async def test_the_load_of_an_outbox(connection: asyncpg.Connection, config: Any) -> None:
    table = await inspect_table(connection, config)

    assert await problems(connection, load_statements(table, "outboxd"), []) == []


INTEGERS = ("smallint", "integer", "bigint")
KINDS = [(name, key) for name in WALKS for key in (("uuid",) if name == "uuid" else INTEGERS)]


@pytest.mark.parametrize(("name", "key"), KINDS)
async def test_the_batches(connection: asyncpg.Connection, name: str, key: str) -> None:
    await create_members(connection, 1, key=key)
    walk = await walk_of(connection, WALKS[name])

    assert await problems(connection, {"batch": walk.batch}, []) == []


async def plan_of(connection: asyncpg.Connection, walk: Walk, first: Any, rows: int) -> dict[str, Any]:
    """Run a batch and take it back; returns its plan with what was read."""
    for name, value in HOT_SETTINGS.items():
        await connection.execute("SELECT set_config($1, $2, false)", name, value)
    arguments = [first, rows, 0, 1, ["us"] if walk.by_row else [None], *([10_000] if walk.by_row else [])]
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {walk.batch}", *arguments)
    finally:
        await transaction.rollback()
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


@pytest.mark.parametrize("analysed", ["as it is", "empty", "never"])
@pytest.mark.parametrize(("name", "key"), [kind for kind in KINDS if kind[0] in ("region", "by row", "uuid")])
async def test_a_batch_reads_its_own_rows_only(
    connection: asyncpg.Connection, analysed: str, name: str, key: str
) -> None:
    """Also when the statistics say that the table is empty, as they do before it is first analysed."""
    total = 30_000 if key == "smallint" else 50_000
    await create_members(connection, 0, key=key)
    if analysed == "empty":
        await connection.execute("ANALYZE organizationmember")
    value = "n" if key != "uuid" else "lpad(to_hex(n), 32, '0')::uuid"
    await connection.execute(
        f"INSERT INTO organizationmember SELECT {value}, n, repeat('x', 100), '{{us}}'"
        f" FROM generate_series(1, {total}) AS n"
    )
    if analysed == "as it is":
        await connection.execute("ANALYZE organizationmember")
    first = await connection.fetchval(f"SELECT id FROM organizationmember ORDER BY id OFFSET {total // 2} LIMIT 1")

    walk = await walk_of(connection, WALKS[name])
    plan = await plan_of(connection, walk, first, 100)

    scans = [node for node in nodes(plan) if node.get("Relation Name") == "organizationmember"]
    assert [node for node in scans if node["Node Type"] not in ("Index Scan", "Index Only Scan")] == []
    assert all(re.search(r"organizationmember_pkey", node["Index Name"]) for node in scans)
    assert all(node["Actual Rows"] <= 101 for node in scans), scans
    read = sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in scans)
    assert read < 150, "blocks of the source table; it has more than 900"


async def test_a_walk_reads_each_row_as_often_at_its_end_as_at_its_beginning(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 20_000)
    config = with_models(backfills_per_minute=1_000_000)
    async with walking(database, config) as backfill:
        await backfill.tick(paced=False)

    read = await rows_read(connection)
    assert 20_000 <= read <= 3 * 20_000


async def rows_read(connection: asyncpg.Connection) -> int:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    total: int = await connection.fetchval(
        "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'organizationmember'"
    )
    return total
