"""
Capture, where one statement changes a row several times: the newest message tells what is true when it has ended.

Foreign keys with two actions on one row, triggers of the application's own that change the row again, and statements
that delete a row and write it anew.
"""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.captures import capture
from tests.drains import connected

SCHEMA = """
CREATE TABLE team (id bigint PRIMARY KEY);
CREATE TABLE member (
    id bigint PRIMARY KEY,
    org bigint NOT NULL,
    team bigint REFERENCES team ON DELETE CASCADE ON UPDATE CASCADE,
    second bigint REFERENCES team ON DELETE SET NULL ON UPDATE CASCADE,
    boss bigint REFERENCES member ON DELETE SET NULL ON UPDATE CASCADE,
    slug text NOT NULL
);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.slug = 'ada' THEN
        UPDATE member SET slug = 'Ada' WHERE id = NEW.id;
    ELSIF NEW.slug = 'moves' THEN
        UPDATE member SET slug = 'moved', org = 3 - org WHERE id = NEW.id;
    ELSIF NEW.slug = 'goes' THEN
        DELETE FROM member WHERE id = NEW.id;
    ELSIF NEW.slug = 'returns' THEN
        DELETE FROM member WHERE id = NEW.id;
        INSERT INTO member VALUES (NEW.id, NEW.org, NEW.team, NEW.second, NULL, 'returned');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER touch AFTER INSERT OR UPDATE ON member FOR EACH ROW EXECUTE FUNCTION touch();
"""
MODEL = {
    "where_sql": "second IS NOT NULL OR team IS NOT NULL OR slug <> 'alone'",
    "payload_sql": "to_jsonb(member)",
    "capture_delete_payload_sql": "'\"gone\"'::jsonb",
}
Places = dict[int, tuple[int, dict[str, Any]]]
"""Of each object that the model wants, its shard and its payload."""


async def places(connection: asyncpg.Connection) -> Places:
    rows = await connection.fetch(f"SELECT id, org, to_jsonb(member) AS text FROM member WHERE {MODEL['where_sql']}")
    return {row["id"]: (row["org"], json.loads(row["text"])) for row in rows}


async def newest(connection: asyncpg.Connection) -> dict[tuple[int, int], tuple[str, Any]]:
    """Of each object in each shard, the operation and the payload of the newest message; the newest last."""
    rows = await connection.fetch("DELETE FROM outbox RETURNING *")
    told: dict[tuple[int, int], tuple[str, Any]] = {}
    for row in sorted(rows, key=lambda row: int(row["id"])):
        place = row["shard_identifier"], row["object_identifier"]
        told.pop(place, None)
        told[place] = json.loads(row["headers"])["op"], json.loads(row["payload"])
    return told


async def look(connection: asyncpg.Connection, *statements: str) -> None:
    """Whatever the last statement does, its newest messages tell what is true after it, and of no object too many."""
    for statement in statements[:-1]:
        await connection.execute(statement)
    await newest(connection)
    before = await places(connection)
    try:
        await connection.execute(statements[-1])
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.TriggeredDataChangeViolationError):
        assert await newest(connection) == {}
        return
    after, told = await places(connection), await newest(connection)

    changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
    expected = {(each[n][0], n) for n in changed for each in (before, after) if n in each}
    assert expected <= told.keys(), (statements[-1], expected - told.keys())
    last = {number: shard for shard, number in told}
    for (shard, number), (op, payload) in told.items():
        if number in after and shard == after[number][0]:
            assert payload == after[number][1], statements[-1]
            assert op in ("insert", "update"), statements[-1]
        elif number in after or shard != last[number]:  # it has left this shard, and perhaps changed again elsewhere
            assert op == "update" or (op, payload) == ("delete", "gone"), statements[-1]
        else:
            assert (op, payload) == ("delete", "gone"), statements[-1]


TEAMS = "INSERT INTO team VALUES (1), (2)"
MEMBERS = "INSERT INTO member VALUES (1, 1, 1, 1, NULL, 'x'), (2, 1, 1, 2, 1, 'y'), (3, 2, NULL, 1, 2, 'alone')"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM team WHERE id = 1",
        "DELETE FROM team WHERE id = 2",
        "DELETE FROM team",
        "UPDATE team SET id = 9 WHERE id = 1",
        "UPDATE team SET id = id + 10",
        "UPDATE member SET slug = 'alone', team = NULL WHERE id = 2; DELETE FROM team WHERE id = 2",
        "INSERT INTO member VALUES (4, 1, NULL, NULL, NULL, 'ada')",
        "INSERT INTO member VALUES (4, 1, NULL, NULL, NULL, 'moves')",
        "INSERT INTO member VALUES (4, 1, NULL, NULL, NULL, 'goes')",
        "INSERT INTO member VALUES (4, 1, NULL, NULL, NULL, 'returns')",
        "UPDATE member SET slug = 'ada'",
        "UPDATE member SET slug = 'moves' WHERE id < 3",
        "UPDATE member SET slug = 'goes' WHERE id = 2",
        "UPDATE member SET slug = 'returns', org = 2 WHERE id = 1",
        "WITH gone AS (DELETE FROM member WHERE id = 2 RETURNING *) INSERT INTO member SELECT 4, 1 FROM gone",
        "UPDATE member SET id = id + 10",
        "DELETE FROM member WHERE id IN (1, 2)",
        "TRUNCATE team CASCADE",
    ],
)
async def test_the_newest_message_tells_what_is_true(connection: asyncpg.Connection, statement: str) -> None:
    await capture(connection, SCHEMA, **MODEL)
    await look(connection, TEAMS, MEMBERS, statement)


async def test_many_rows_with_two_cascades(connection: asyncpg.Connection) -> None:
    await capture(connection, SCHEMA, **MODEL)
    await connection.execute(TEAMS)
    await look(
        connection,
        "INSERT INTO member SELECT n, n % 7, 1, 1, NULL, 'x' FROM generate_series(1, 3000) n",
        "UPDATE team SET id = 3 WHERE id = 1",
    )


IDS, TEAM = st.integers(1, 5), st.one_of(st.none(), st.integers(1, 3))
SLUG = st.sampled_from(["x", "y", "alone", "ada", "moves", "goes", "returns"])
MEMBER = st.tuples(IDS, st.integers(1, 2), TEAM, TEAM, st.one_of(st.none(), IDS), SLUG)


def _values(*rows: tuple[Any, ...]) -> str:
    return ", ".join(str(row).replace("None", "NULL") for row in rows)


STATEMENT = st.one_of(
    st.lists(MEMBER, min_size=1, max_size=3, unique_by=lambda row: row[0]).map(
        lambda rows: (
            f"INSERT INTO member VALUES {_values(*rows)} ON CONFLICT (id) DO UPDATE SET"
            " org = excluded.org, team = excluded.team, second = excluded.second, slug = excluded.slug"
        )
    ),
    st.tuples(IDS, SLUG).map(lambda it: f"UPDATE member SET slug = '{it[1]}' WHERE id >= {it[0]}"),
    st.tuples(IDS, IDS).map(lambda it: f"UPDATE member SET id = {it[1]} WHERE id = {it[0]}"),
    st.tuples(IDS, IDS).map(lambda it: f"UPDATE team SET id = {it[1]} WHERE id = {it[0]}"),
    IDS.map(lambda number: f"DELETE FROM team WHERE id >= {number}"),
    IDS.map(lambda number: f"DELETE FROM member WHERE id >= {number}"),
    MEMBER.map(
        lambda row: (
            f"WITH gone AS (DELETE FROM member WHERE id = {row[0]} RETURNING id)"
            f" INSERT INTO member VALUES {_values(row)}"
        )
    ),
    st.just("INSERT INTO team VALUES (1), (2), (3) ON CONFLICT DO NOTHING"),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(statements=st.lists(STATEMENT, max_size=8))
async def test_whatever_happens_in_one_statement(database: str, statements: list[str]) -> None:
    async with connected(database) as connection:
        if await connection.fetchval("SELECT to_regclass('member')") is None:
            await capture(connection, SCHEMA, **MODEL)
        await connection.execute("TRUNCATE team CASCADE; INSERT INTO team VALUES (1), (2), (3)")
        for statement in statements:
            await look(connection, statement)
