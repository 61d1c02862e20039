"""The statements of an operator's acts and switches can be prepared, and take what their headers say."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from outboxd import dead_letters, setting, sql, switching
from outboxd.dead_letters import Selection
from outboxd.inspection import inspect_table
from outboxd.outbox import renderer_of
from tests.drains import CONTROL, REGION, TEXT, UUID, configure
from tests.integration.drain.test_statements import SHORT_NAMES, header_of, problems

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import OutboxConfig
    from outboxd.query import Query

CONFIG = configure(REGION, CONTROL)
DAY = dt.timedelta(days=1)
EVERY_CONDITION = Selection(
    ids=(1,), outbox="region", region="us", scope=0, shard="7", category=1, older_than=DAY, newer_than=DAY
)
SWITCHED = {
    "switched_off": switching.switches(CONFIG),
    "switched_off_list": switching.switched_off_query(CONFIG),
    "pauses": switching.pauses_query(CONFIG, [1]),
    "options": setting.options_query(CONFIG, unset_too=True),
    "only": setting.options_query(CONFIG, unset_too=True, only="it's"),
}
LETTERS = {"list", "show", "count", "revive", "purge"}
"""Asked with a selection; `purge_expired` has none."""


async def columns_of(connection: asyncpg.Connection, question: Query) -> list[str]:
    """What a question returns, once the server has understood it."""
    text, arguments = question.bound()
    prepared = await connection.prepare(text)
    assert len(prepared.get_parameters()) == len(arguments)
    return [attribute.name for attribute in prepared.get_attributes()]


def returned(statement: str) -> str:
    """What a header says that a statement returns."""
    return next(line for line in header_of(statement) if line.startswith("returns"))


@pytest.mark.parametrize("filename", ["acts.sql", "burial.sql"])
@pytest.mark.parametrize("outbox", [REGION, CONTROL, UUID, TEXT], ids=lambda outbox: outbox.name)
async def test_the_statements_about_a_shard(
    connection: asyncpg.Connection, outbox: OutboxConfig, filename: str
) -> None:
    table = await inspect_table(connection, outbox)
    renderer = renderer_of(table, "outboxd")
    statements = {name: renderer.render(text) for name, text in sql.load(filename).items()}
    types = [SHORT_NAMES.get(type_, type_) for type_ in table.shard_columns.values()]

    assert await problems(connection, statements, types) == []


@pytest.mark.parametrize("filename", ["setting.sql", "switching.sql"])
async def test_the_statements_about_switches_and_options(connection: asyncpg.Connection, filename: str) -> None:
    loaded = sql.load(filename)
    renderer = sql.Renderer({"schema": sql.quote("outboxd")}, {})
    plain = {name: renderer.render(text) for name, text in loaded.items() if name not in SWITCHED}

    assert await problems(connection, plain, []) == []
    for name in loaded.keys() & SWITCHED.keys():
        assert await columns_of(connection, SWITCHED[name]), name


async def test_what_is_switched_off_is_listed_with_all_its_columns(connection: asyncpg.Connection) -> None:
    listed = await columns_of(connection, SWITCHED["switched_off_list"])

    assert listed == await columns_of(connection, SWITCHED["switched_off"])
    assert {"id", "kind", "what", "option", "in_force"} < set(listed)


def test_every_statement_about_dead_letters_is_tested_here() -> None:
    whole = {name for name, text in sql.load("dead_letters.sql").items() if not text.startswith("-- A fragment")}

    assert whole == LETTERS | {"purge_expired"}


@pytest.mark.parametrize("selection", [Selection(), EVERY_CONDITION], ids=["all", "every condition"])
@pytest.mark.parametrize("outbox", [REGION, CONTROL, UUID, TEXT], ids=lambda outbox: outbox.name)
@pytest.mark.parametrize("name", sorted(LETTERS))
async def test_the_statements_about_dead_letters(
    connection: asyncpg.Connection, name: str, outbox: OutboxConfig, selection: Selection
) -> None:
    table = await inspect_table(connection, outbox)
    question = dead_letters._query(
        CONFIG,
        name,
        selection,
        {"limit": 10, "of": outbox.name, "after": 0, "until": 9, "rows_max": 5, "bytes_max": 1_000},
        names=dead_letters._table_names(table),
        shard_columns=table.shard_columns,
    )

    columns = await columns_of(connection, question)

    said = returned(sql.load("dead_letters.sql")[name])
    if name in ("list", "show"):
        assert columns[:3] == ["id", "buried_at", "outbox"]
        assert ("payload" in columns) == (name == "show")
    else:
        assert all(column in said for column in columns), (said, columns)


async def test_the_statement_that_purges_old_dead_letters(connection: asyncpg.Connection) -> None:
    header, _ = sql.split_header(sql.load("dead_letters.sql")["purge_expired"])
    renderer = sql.Renderer({"schema": sql.quote("outboxd")}, {})
    statement = header + renderer.render(dead_letters._body("purge_expired"))

    assert await problems(connection, {"purge_expired": statement}, []) == []
