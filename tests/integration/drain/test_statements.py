"""Every statement that runs can be prepared against the real schema, and takes what its header says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import pytest

from outboxd import sql
from outboxd.inspection import inspect_table
from outboxd.outbox import Outbox, renderer_of
from tests.drains import CONTROL, REGION, TEXT, UUID

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import OutboxConfig
    from outboxd.inspection import Table

SHORT_NAMES = {"bigint": "int8", "integer": "int4", "smallint": "int2", "character varying": "varchar"}
KEY_OF_FAILURE = ["text", "int4", "text", "int4", "text"]
WRITTEN_AS_TEXT = ("int2", "int4", "int8", "uuid")

_PARAMETER = re.compile(r"\$(\d+) ([a-z_0-9]+(?:\[\])?)(?=,|\s)")
_REST = re.compile(r"\$(\d+) \.\.\.\s+(.*)")


def header_of(statement: str) -> list[str]:
    """Return the comment lines that stand before the SQL, without their dashes."""
    lines = []
    for line in statement.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line[3:])
    return lines


def declared_parameters(statement: str, shard_types: list[str]) -> dict[int, str]:
    """
    Tell what a header says about the statement's parameters, by number.

    `$3 ...` stands for the sharding columns, or for the key of a failure when its columns are named; for an array of
    each, or its text, when the line says so.
    """
    declared: dict[int, str] = {}
    for line in header_of(statement):
        rest = _REST.match(line)
        if rest:
            first, words = int(rest[1]), rest[2]
            types = KEY_OF_FAILURE if "region_name" in words else shard_types
            suffix = "[]" if "array" in words else ""
            as_text = WRITTEN_AS_TEXT if "array's text" in words else ()
            typed = ["text" if type_ in as_text else type_ + suffix for type_ in types]
            declared |= {first + number: type_ for number, type_ in enumerate(typed)}
        elif line.startswith("$"):
            declared |= {int(number): type_ for number, type_ in _PARAMETER.findall(line)}
    return declared


async def problems(connection: asyncpg.Connection, statements: dict[str, str], shard_types: list[str]) -> list[str]:
    """List what is wrong with rendered statements, or with their headers."""
    found = []
    for name, statement in statements.items():
        prepared = await connection.prepare(statement)
        types = {number: type_.name for number, type_ in enumerate(prepared.get_parameters(), 1)}
        declared = declared_parameters(statement, shard_types)
        if types != declared:
            found.append(f"{name}: takes {types}, its header says {declared}")
        if any(line.startswith("returns") for line in header_of(statement)) and not prepared.get_attributes():
            found.append(f"{name}: returns nothing")
    return found


async def outbox_of(connection: asyncpg.Connection, config: OutboxConfig) -> Outbox:
    table = await inspect_table(connection, config)
    return Outbox(config.name, table, schema="outboxd", dsn=lambda: "")


def _shard_types(table: Table) -> list[str]:
    return [SHORT_NAMES.get(type_, type_) for type_ in table.shard_columns.values()]


@pytest.mark.parametrize("config", [REGION, CONTROL, UUID, TEXT], ids=lambda config: config.name)
async def test_the_statements_of_the_drain(connection: asyncpg.Connection, config: OutboxConfig) -> None:
    outbox = await outbox_of(connection, config)

    assert await problems(connection, outbox._sql, _shard_types(outbox.table)) == []


@pytest.mark.parametrize("config", [REGION, CONTROL, UUID, TEXT], ids=lambda config: config.name)
@pytest.mark.parametrize("filename", ["acts.sql", "sample.sql", "testing.sql"])
async def test_the_statements_of_operators_and_gauges(
    connection: asyncpg.Connection, config: OutboxConfig, filename: str
) -> None:
    table = await inspect_table(connection, config)
    holders = sql.without_header(sql.load("sample.sql")["holders"])
    renderer = renderer_of(table, "outboxd", holders=holders, headers_text="o.headers::text", tables=table.name)
    statements = {name: renderer.render(statement) for name, statement in sql.load(filename).items()}

    assert await problems(connection, statements, _shard_types(table)) == []


async def test_the_statements_of_the_drain_on_a_table_without_headers(connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox DROP COLUMN headers")
    outbox = await outbox_of(connection, REGION)

    assert await problems(connection, outbox._sql, _shard_types(outbox.table)) == []


async def test_the_statements_of_the_drain_on_names_that_need_quotes(connection: asyncpg.Connection) -> None:
    name = """it's "it" {0}"""
    await connection.execute('CREATE SCHEMA "Group"')
    await connection.execute('ALTER TABLE outbox SET SCHEMA "Group"')
    await connection.execute(f'ALTER TABLE "Group".outbox RENAME TO {sql.quote(name)}')
    outbox = await outbox_of(connection, msgspec.structs.replace(REGION, table=f"Group.{name}"))

    assert await problems(connection, outbox._sql, _shard_types(outbox.table)) == []


@pytest.mark.parametrize("filename", ["claim.sql", "options.sql", "inspect.sql"])
async def test_the_statements_about_no_outbox_in_particular(connection: asyncpg.Connection, filename: str) -> None:
    renderer = sql.Renderer({"schema": sql.quote("outboxd")}, {})
    statements = {name: renderer.render(statement) for name, statement in sql.load(filename).items()}

    assert await problems(connection, statements, []) == []


async def test_a_header_that_is_wrong_is_found(connection: asyncpg.Connection) -> None:
    statements = {
        "right": "-- $1 int4          one\n-- $2 text, $3 int8[]    others\nSELECT $1::int4, $2::text, $3::int8[]",
        "wrong": "-- $1 int4          a number\nSELECT $1::int8",
        "more": "-- $1 int4          a number\n-- $2 int4          none\nSELECT $1::int4",
        "less": "-- A number.\nSELECT $1::int4",
        "shard": "-- $1 ...           the shard\nSELECT $1::int4, $2::int8",
    }

    found = await problems(connection, statements, ["int4", "int8"])

    assert [problem.split(":")[0] for problem in found] == ["wrong", "more", "less"]
