"""A model that cannot be walked says why, holds up nobody else (I14), and goes on when it is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from outboxd.privileges import missing_grants
from outboxd.walker import RETRY_S_MAX
from tests.drains import CONTROL, REGION, TEXT, connected
from tests.walks import (
    create_members,
    let_a_minute_pass,
    model,
    objects,
    progress_of,
    walk_to_the_end,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.backfill import Backfill

OTHER = "public.other"
COLUMNS = "organization_id bigint DEFAULT 1, slug text"
ROW = "INSERT INTO organizationmember SELECT"


class Case:
    """What is wrong, what the error says, and what mends it."""

    def __init__(self, says: str, mends: str, *wrong: str, **values: Any) -> None:
        self.says, self.mends, self.wrong, self.values = says, mends, wrong, values


GOOD = f"CREATE TABLE organizationmember (id int PRIMARY KEY, {COLUMNS}); {ROW} 1, 1"
ANEW = f"DROP TABLE organizationmember; {GOOD}"
CASES = {
    "composite key": Case(
        r"its primary key is \(id, organization_id\)",
        ANEW,
        f"CREATE TABLE organizationmember (id int, {COLUMNS}, PRIMARY KEY (id, organization_id))",
    ),
    "no key": Case("it has no primary key", ANEW, f"CREATE TABLE organizationmember (id int, {COLUMNS})"),
    "text key": Case(
        "its primary key id is of type text", ANEW, f"CREATE TABLE organizationmember (id text PRIMARY KEY, {COLUMNS})"
    ),
    "view": Case(
        "is not a table",
        f"DROP VIEW organizationmember; {GOOD}",
        "CREATE VIEW organizationmember AS SELECT 1 AS id, 1 AS organization_id",
    ),
    "no table": Case("there is no such table", GOOD),
    "no column in payload": Case(
        'column "colour" does not exist',
        "ALTER TABLE organizationmember ADD colour text",
        GOOD,
        payload_sql="to_jsonb(colour)",
    ),
    "no column of the shard": Case(
        "tenant does not exist",
        "ALTER TABLE organizationmember ADD tenant int DEFAULT 1",
        GOOD,
        shard_identifier="tenant",
    ),
    "null shard": Case(
        "null value in column",
        "UPDATE organizationmember SET organization_id = 1",
        GOOD,
        f"{ROW} 2, NULL",
    ),
    "error of a row": Case(
        "division by zero", "DELETE FROM organizationmember WHERE id = 0", GOOD, f"{ROW} 0, 1", where_sql="1 / id = 1"
    ),
    "no syntax": Case("syntax error", "", GOOD, where_sql="id >"),
    "broken outbox": Case(
        "shard_identifier is missing",
        "ALTER TABLE text_outbox RENAME gone TO shard_identifier",
        GOOD,
        "ALTER TABLE text_outbox RENAME shard_identifier TO gone",
        outbox="text",
    ),
}


def retry_now(backfill: Backfill) -> None:
    """Let the time pass until a broken model is tried again."""
    for walker in backfill.walkers:
        walker._retry_at = 0.0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_broken_model_says_why_and_holds_up_nobody_else(
    database: str, connection: asyncpg.Connection, case: Case
) -> None:
    await create_members(connection, 5, table=OTHER)
    for statement in case.wrong:
        await connection.execute(statement)
    config = with_models(model(**case.values), model(table=OTHER), outboxes=(REGION, TEXT))
    async with walking(database, config) as backfill:
        assert await backfill.tick(paced=False)
        assert progress_of(backfill, OTHER).condition == "finished"
        progress = progress_of(backfill)
        assert progress.condition == "broken"
        with pytest.raises(AssertionError, match=case.says):
            raise AssertionError(progress.error)
        assert await watermark(connection) in (None, ("0", 1))
        assert await written(connection) == 5

        if case.mends:
            await connection.execute(case.mends)
            retry_now(backfill)
            assert await backfill.tick(paced=False)
            assert (progress.condition, progress.error) == ("finished", "")
            assert await written(connection) > 5


async def written(connection: asyncpg.Connection) -> int:
    total: int = await connection.fetchval(
        "SELECT (SELECT count(*) FROM outbox)"
        " + CASE WHEN to_regclass('text_outbox') IS NULL THEN 0 ELSE (SELECT count(*) FROM text_outbox) END"
    )
    return total


async def test_a_broken_model_is_tried_ever_more_rarely(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("outboxd.walker.time.monotonic", lambda: clock[0])
    await connection.execute(GOOD)
    waits = []
    async with walking(database, with_models(model(where_sql="1 / (id - 1) = 0"))) as backfill:
        for _ in range(8):
            await backfill.tick(paced=False)
            assert progress_of(backfill).condition == "broken"
            waits.append(backfill.walkers[0]._retry_at - clock[0])
            clock[0] = backfill.walkers[0]._retry_at + 0.1
        assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, RETRY_S_MAX, RETRY_S_MAX, RETRY_S_MAX]

        await connection.execute("UPDATE organizationmember SET id = 3")
        await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "finished"


async def test_a_table_that_is_locked_is_broken_until_it_is_free(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    await create_members(connection, 3, table=OTHER)
    async with walking(database, with_models(model(), model(table=OTHER))) as backfill, connected(database) as locker:
        backfill.session._settings["lock_timeout"] = "50"
        async with locker.transaction():
            await locker.execute("LOCK TABLE organizationmember")
            await backfill.tick(paced=False)
            assert progress_of(backfill).condition == "broken"
            assert "lock timeout" in progress_of(backfill).error
            await backfill.tick(paced=False)
            assert progress_of(backfill, OTHER).condition == "finished"
        retry_now(backfill)
        await let_a_minute_pass(connection)
        assert await backfill.tick(paced=False)

    assert await objects(connection) == [1, 1, 2, 2, 3, 3]


async def test_a_table_whose_rows_name_their_regions_may_be_empty(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 0)
    by_row = model(outbox="control", region_names_sql="region")
    async with walking(database, with_models(by_row, outboxes=(CONTROL,))) as backfill:
        await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "finished"

    assert await watermark(connection) == ("0", 2)


async def test_row_level_security_that_comes_in_mid_walk_is_an_error(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 20)
    name = f"outboxd_walker_{connection.get_server_pid()}"
    await connection.execute(f"CREATE ROLE {name} LOGIN")
    try:
        config = with_models(backfills_per_minute=10)
        for grant in await missing_grants(connection, config, name, "daemon"):
            await connection.execute(grant)
        dsn = urlunsplit(urlsplit(database)._replace(netloc=f"{name}@"))
        async with walking(dsn, config) as backfill:
            await backfill.tick(paced=False)
            await connection.execute("ALTER TABLE organizationmember ENABLE ROW LEVEL SECURITY")
            await let_a_minute_pass(connection)
            await backfill.tick(paced=False)
            assert progress_of(backfill).condition == "broken"
            assert "row-level security" in progress_of(backfill).error
    finally:
        await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")

    assert await watermark(connection) == ("11", 1)


async def test_a_walk_that_is_broken_here_is_left_to_others(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    wrong = with_models(model(where_sql="1 / (id - id) = 1"))
    async with walking(database, wrong) as one, walking(database) as other:
        await one.tick(paced=False)
        assert progress_of(one).condition == "broken"
        await walk_to_the_end(other, connection)

    assert await objects(connection) == [1, 2, 3]


async def test_a_fault_of_ours_stops_one_model_only(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_members(connection, 3)
    await create_members(connection, 3, table=OTHER)
    async with walking(database, with_models(model(), model(table=OTHER))) as backfill:
        faulty = next(walker for walker in backfill.walkers if walker.table != OTHER)
        monkeypatch.setattr(faulty, "fan_out", lambda: 1 // 0)
        await backfill.tick(paced=False)

    assert progress_of(backfill).condition == "broken"
    assert progress_of(backfill, OTHER).condition == "finished"


async def test_a_batch_that_takes_too_long_is_tried_again_with_fewer_rows(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 20)
    slow = model(payload_sql="(SELECT to_jsonb(slug) FROM pg_sleep(0.02 + 0 * id))")
    async with walking(database, with_models(slow)) as backfill:
        backfill.session._settings["statement_timeout"] = "200"
        [walker] = backfill.walkers
        walker.rows_max = 16
        await backfill.tick(paced=False)
        assert "statement timeout" in progress_of(backfill).error
        assert walker.rows_max == 4
        walker._retry_at = 0.0
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == list(range(1, 21))
