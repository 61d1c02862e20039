"""Capture: whatever changes a table, and however, its messages are written, by the statement that changed it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outboxd import errors
from outboxd.config import OutboxConfig
from outboxd.migrate import migrate
from tests.captures import TABLE, capture, capturing, taken
from tests.drains import UUID, connected
from tests.processes import run

if TYPE_CHECKING:
    from pathlib import Path

CAPTURE_WRITTEN = "table member: capture written"


CONFIGURATION = """
dsn = "{dsn}"

[scopes.ORGANIZATION_SCOPE]
value = 0

[categories.MEMBER]
value = 1
scope = "ORGANIZATION_SCOPE"

[[outbox]]
name = "region"
table = "outbox"

[[model]]
table = "member"
outbox = "region"
category = "MEMBER"
shard_identifier = "org"
capture = true
replication_version = 0
"""


# --- kinds of statements ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO member VALUES (3, 7, 'c'), (4, 8, 'd')", [(7, 3, "insert"), (8, 4, "insert")]),
        (
            "INSERT INTO member SELECT n, 7, 'x' FROM generate_series(10, 12) n",
            [(7, n, "insert") for n in (10, 11, 12)],
        ),
        ("UPDATE member SET slug = 'z'", [(7, 1, "update"), (7, 2, "update")]),
        ("UPDATE member SET slug = slug WHERE id = 1", [(7, 1, "update")]),
        ("UPDATE member SET slug = 'z' WHERE false", []),
        ("UPDATE member SET org = 9 WHERE id = 1", [(7, 1, "update"), (9, 1, "update")]),
        ("UPDATE member SET id = 5 WHERE id = 1", [(7, 1, "delete"), (7, 5, "insert")]),
        ("UPDATE member SET id = id - 1", [(7, 0, "insert"), (7, 1, "update"), (7, 2, "delete")]),
        ("DELETE FROM member WHERE id = 2", [(7, 2, "delete")]),
        ("DELETE FROM member", [(7, 1, "delete"), (7, 2, "delete")]),
        ("TRUNCATE member", [(7, 1, "delete"), (7, 2, "delete")]),
        (
            "INSERT INTO member VALUES (1, 7, 'z'), (3, 7, 'c') ON CONFLICT (id) DO UPDATE SET slug = excluded.slug",
            [(7, 1, "update"), (7, 3, "insert")],
        ),
        ("INSERT INTO member VALUES (1, 7, 'z') ON CONFLICT DO NOTHING", []),
        (
            "WITH gone AS (DELETE FROM member WHERE id = 1 RETURNING *) INSERT INTO member SELECT 3, org FROM gone",
            [(7, 1, "delete"), (7, 3, "insert")],
        ),
    ],
)
async def test_every_kind_of_statement(connection: asyncpg.Connection, statement: str, expected: list[Any]) -> None:
    assert CAPTURE_WRITTEN in await capture(connection)
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'), (2, 7, 'b')")
    await taken(connection)

    await connection.execute(statement)

    assert await taken(connection) == expected


async def test_copy(connection: asyncpg.Connection) -> None:
    await capture(connection)
    await connection.copy_records_to_table("member", records=[(n, 7, "x", 0) for n in range(3)])
    assert await taken(connection) == [(7, n, "insert") for n in range(3)]


async def test_merge(connection: asyncpg.Connection) -> None:
    if connection.get_server_version().major < 15:
        pytest.skip("MERGE came with PostgreSQL 15")
    await capture(connection)
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'), (2, 7, 'b')")
    await taken(connection)
    await connection.execute(
        "MERGE INTO member USING (VALUES (1), (2), (3)) AS v (id) ON member.id = v.id"
        " WHEN MATCHED AND v.id = 1 THEN UPDATE SET slug = 'z' WHEN MATCHED THEN DELETE"
        " WHEN NOT MATCHED THEN INSERT VALUES (v.id, 7, 'c')"
    )
    assert await taken(connection) == [(7, 1, "update"), (7, 2, "delete"), (7, 3, "insert")]


async def test_cascades_of_foreign_keys(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE organization (id bigint PRIMARY KEY)")
    await capture(
        connection,
        "CREATE TABLE member (id bigint PRIMARY KEY,"
        " org bigint REFERENCES organization ON DELETE CASCADE ON UPDATE CASCADE)",
    )
    await connection.execute(
        "INSERT INTO organization VALUES (7), (8); INSERT INTO member VALUES (1, 7), (2, 8), (3, 8)"
    )
    await taken(connection)
    await connection.execute("DELETE FROM organization WHERE id = 8")
    assert await taken(connection) == [(8, 2, "delete"), (8, 3, "delete")]
    await connection.execute("UPDATE organization SET id = 9")
    assert await taken(connection) == [(7, 1, "update"), (9, 1, "update")]


async def test_it_is_part_of_the_transaction(connection: asyncpg.Connection) -> None:
    await capture(connection)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    await transaction.rollback()
    assert await taken(connection) == []


async def test_one_statement_is_one_insert(connection: asyncpg.Connection) -> None:
    await capture(connection)
    await connection.execute(
        "CREATE TABLE statements (n int);"
        "CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.statements VALUES (1); RETURN NULL; END $$;"
        "CREATE TRIGGER counted AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION counted()"
    )
    await connection.execute("INSERT INTO member SELECT n, 7, 'x' FROM generate_series(1, 500) n")
    assert await connection.fetchval("SELECT count(*) FROM statements") == 1
    assert len(await taken(connection)) == 500


# --- what a model says --------------------------------------------------------------------------------------


async def test_only_the_columns_that_count(connection: asyncpg.Connection) -> None:
    await capture(connection, capture_columns=["slug", "org"])
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'), (2, 7, NULL)")
    await taken(connection)
    await connection.execute("UPDATE member SET seen = seen + 1")
    await connection.execute("UPDATE member SET slug = slug")
    assert await taken(connection) == []
    await connection.execute("UPDATE member SET slug = 'b' WHERE id = 2")
    assert await taken(connection) == [(7, 2, "update")]
    await connection.execute("UPDATE member SET slug = NULL")
    assert await taken(connection) == [(7, 1, "update"), (7, 2, "update")]


async def test_payloads(connection: asyncpg.Connection) -> None:
    await capture(
        connection,
        payload_sql="jsonb_build_object('slug', slug) -- a comment",
        capture_delete_payload_sql="jsonb_build_object('was', member.slug)",
    )
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    await connection.execute("UPDATE member SET slug = 'b'")
    await connection.execute("UPDATE member SET org = 8")
    await connection.execute("DELETE FROM member")
    assert await taken(connection) == [
        (7, 1, "insert", {"slug": "a"}),
        (7, 1, "update", {"slug": "b"}),
        (7, 1, "update", {"slug": "b"}),
        (8, 1, "delete", {"was": "b"}),
        (8, 1, "update", {"slug": "b"}),
    ]


async def test_rows_that_do_not_count(connection: asyncpg.Connection) -> None:
    await capture(connection, where_sql="org IS NOT NULL", capture_columns=["slug"])
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'), (2, NULL, 'b')")
    assert await taken(connection) == [(7, 1, "insert")]
    await connection.execute("UPDATE member SET slug = 'z'")
    assert await taken(connection) == [(7, 1, "update")]
    await connection.execute("UPDATE member SET org = 9 WHERE id = 2")
    assert await taken(connection) == [(9, 2, "insert")]
    await connection.execute("UPDATE member SET org = NULL WHERE id = 2")
    assert await taken(connection) == [(9, 2, "delete")]
    await connection.execute("DELETE FROM member")
    assert await taken(connection) == [(7, 1, "delete")]


async def test_an_object_that_is_not_the_key(connection: asyncpg.Connection) -> None:
    await capture(connection, object_identifier="seen", shard_identifier_sql="org * 10", shard_identifier="")
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a', 100)")
    assert await taken(connection) == [(70, 100, "insert")]
    await connection.execute("UPDATE member SET seen = 101")
    assert await taken(connection) == [(70, 100, "delete"), (70, 101, "insert")]


async def test_columns_that_are_generated_when_they_are_read(connection: asyncpg.Connection) -> None:
    if connection.get_server_version().major < 18:
        pytest.skip("virtual columns came with PostgreSQL 18")
    table = TABLE[:-1] + """, "Lower" text GENERATED ALWAYS AS (lower(slug)) VIRTUAL)"""
    columns = {"capture_columns": ["Lower"], "payload_sql": """jsonb_build_object('lower', member."Lower")"""}
    await capture(
        connection, table, **columns, where_sql=""""Lower" <> 'x'""", capture_delete_payload_sql="to_jsonb(member)"
    )
    await connection.execute("INSERT INTO member VALUES (1, 7, 'A'), (2, 7, 'X')")
    assert await taken(connection) == [(7, 1, "insert", {"lower": "a"})]
    await connection.execute("UPDATE member SET slug = 'a'")
    assert await taken(connection) == [(7, 2, "insert", {"lower": "a"})]
    await connection.execute("UPDATE member SET slug = 'B' WHERE id = 1")
    assert await taken(connection) == [(7, 1, "update", {"lower": "b"})]
    await connection.execute("DELETE FROM member WHERE id = 1")
    assert await taken(connection) == [(7, 1, "delete", {"id": 1, "org": 7, "slug": "B", "seen": 0, "Lower": "b"})]
    await connection.execute("TRUNCATE member")
    assert [row[1] for row in await taken(connection)] == [2]


async def test_columns_of_any_type_count_by_what_they_show(connection: asyncpg.Connection) -> None:
    await capture(
        connection,
        "CREATE TABLE member (id int PRIMARY KEY, org int, j json, n numeric)",
        capture_columns=["j", "n"],
    )
    await connection.execute("INSERT INTO member VALUES (1, 7, '{}', 1.0)")
    await taken(connection)
    await connection.execute("UPDATE member SET j = '{}', n = 1.0")
    assert await taken(connection) == []
    await connection.execute("UPDATE member SET j = '[]'")
    await connection.execute("UPDATE member SET n = 1.00")
    assert await taken(connection) == [(7, 1, "update"), (7, 1, "update")]


async def test_an_object_that_lives_on_is_not_gone(connection: asyncpg.Connection) -> None:
    """The newest message decides what a receiver is told."""
    await capture(connection, "CREATE TABLE member (id int, month int, org int, PRIMARY KEY (id, month) DEFERRABLE)")
    await connection.execute("INSERT INTO member VALUES (1, 1, 7), (2, 1, 7)")
    await taken(connection)
    await connection.execute("UPDATE member SET month = 2")
    assert await taken(connection) == [(7, 1, "update"), (7, 2, "update")]
    await connection.execute("UPDATE member SET id = 3 - id")
    assert await taken(connection) == [(7, 1, "update"), (7, 2, "update")]
    await connection.execute("UPDATE member SET id = id + 10, org = 8 WHERE id = 1")
    assert await taken(connection) == [(7, 1, "delete"), (8, 11, "insert")]


async def test_the_past_is_told_before_the_present(connection: asyncpg.Connection) -> None:
    await capture(connection)
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    await taken(connection)
    await connection.execute("UPDATE member SET org = 8")
    rows = await connection.fetch("SELECT shard_identifier FROM outbox ORDER BY id")
    assert [row[0] for row in rows] == [7, 8]


async def test_rows_that_never_had_a_shard_can_be_mended_and_deleted(connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member VALUES (1, NULL, 'a'), (2, NULL, 'b')")
    await migrate(connection, capturing())
    await connection.execute("UPDATE member SET org = 7 WHERE id = 1; DELETE FROM member WHERE id = 2")
    assert await taken(connection) == [(7, 1, "update")]
    with pytest.raises(asyncpg.NotNullViolationError):
        await connection.execute("INSERT INTO member VALUES (3, NULL, 'c')")


async def test_a_kept_plan_is_right_for_many_rows(connection: asyncpg.Connection) -> None:
    """One that compared each with each would take some 20 s for these."""
    await capture(connection)
    await connection.execute("INSERT INTO member SELECT n, 7, 'x' FROM generate_series(1, 20000) n")
    for _ in range(8):
        await connection.execute("UPDATE member SET slug = 'y' WHERE id = 1")
    await connection.execute("SET statement_timeout = '10s'; UPDATE member SET slug = 'z'")
    assert len(await taken(connection)) == 40_008


@pytest.mark.parametrize(
    ("table", "model", "rows", "statement"),
    [
        (  # its rows were thought to be none, because of the condition
            "CREATE TABLE member (id bigint PRIMARY KEY, org bigint, kind text, gone_at timestamptz)",
            {"where_sql": "gone_at IS NULL AND kind = 'user'"},
            "SELECT n, n / 10, 'user' FROM generate_series(1, 20000) n",
            "UPDATE member SET org = org + 1",
        ),
        (  # each index seemed to be as good as the other
            "CREATE TABLE member (tenant text, code text, id bigint, org bigint, PRIMARY KEY (tenant, code));"
            "CREATE INDEX ON member (code);"
            "INSERT INTO member SELECT 't', n::text, -n, 1 FROM generate_series(1, 2000) n; ANALYZE member",
            {},
            "SELECT n::text, 'same', n, 1 FROM generate_series(1, 20000) n",
            "UPDATE member SET org = 2 WHERE code = 'same'",
        ),
        (
            "CREATE TABLE member (tenant int, id bigint, org bigint, PRIMARY KEY (tenant, id));"
            "CREATE INDEX ON member (tenant); ANALYZE member",
            {},
            "SELECT 1, n, 1 FROM generate_series(1, 20000) n",
            "UPDATE member SET org = 2",
        ),
    ],
)
async def test_nothing_is_compared_with_everything(
    connection: asyncpg.Connection, table: str, model: dict[str, Any], rows: str, statement: str
) -> None:
    await capture(connection, table, **model)
    await connection.execute("SET statement_timeout = '10s'")
    await connection.execute(f"INSERT INTO member {rows}")
    await taken(connection)
    await connection.execute(statement)
    assert len(await taken(connection)) == 40_000
    await connection.execute("DELETE FROM member")


@pytest.mark.parametrize("schema", ["public", "ext"])
async def test_what_is_equal_may_not_be_the_same(connection: asyncpg.Connection, schema: str) -> None:
    """The outbox keeps texts; of a type from a schema that nobody searches."""
    words = OutboxConfig(name="region", table="words", key_type="text")
    await connection.execute(f"CREATE SCHEMA IF NOT EXISTS ext; CREATE EXTENSION citext SCHEMA {schema}")
    await connection.execute(
        f"CREATE TABLE member (id {schema}.citext PRIMARY KEY, org {schema}.citext, slug text);"
        "INSERT INTO member SELECT n::text, '' FROM generate_series(1, 20000) n"
    )
    await migrate(connection, capturing(words, capture_columns=["slug"]))
    await connection.execute("SET statement_timeout = '10s'")
    await connection.execute("INSERT INTO member SELECT 'n' || n, '' FROM generate_series(1, 20000) n")
    await connection.execute("INSERT INTO member VALUES ('a', 'x')")
    await taken(connection, "words")
    await connection.execute("UPDATE member SET id = 'A' WHERE id = 'a'")
    assert await taken(connection, "words") == [("x", "A", "insert"), ("x", "a", "delete")]
    await connection.execute("UPDATE member SET org = 'X' WHERE id = 'A'")
    assert await taken(connection, "words") == [("X", "A", "update"), ("x", "A", "update")]


async def test_names_of_ours_are_not_those_of_others(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE stale (member bigint)")
    await capture(connection, where_sql="NOT EXISTS (SELECT FROM public.stale WHERE stale.member = member.id)")
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'); UPDATE member SET slug = 'b'")
    assert [row[2] for row in await taken(connection)] == ["insert", "update"]


async def test_a_row_that_changes_its_regions_is_told_of_where_it_was(connection: asyncpg.Connection) -> None:
    await capture(
        connection,
        outbox="control",
        category="PROFILE",
        region_names_sql="ARRAY[slug]",
        capture_columns=["seen"],
    )
    await connection.execute("INSERT INTO member VALUES (1, 7, 'eu')")
    await connection.execute("DELETE FROM control_outbox; UPDATE member SET slug = 'us'")
    rows = await connection.fetch("SELECT region_name, headers->>'op' FROM control_outbox ORDER BY id")
    assert [tuple(row) for row in rows] == [("eu", "update"), ("us", "update")]


@pytest.mark.parametrize(
    "regions", [{"region_names": ["eu", "us"]}, {"region_names_sql": "string_to_array(slug, ',')"}]
)
async def test_regions(connection: asyncpg.Connection, regions: dict[str, Any]) -> None:
    await capture(connection, outbox="control", category="PROFILE", **regions)
    await connection.execute("INSERT INTO member VALUES (1, 7, 'eu,us')")
    rows = await connection.fetch("SELECT region_name, shard_scope FROM control_outbox ORDER BY region_name")
    assert [tuple(row) for row in rows] == [("eu", 1), ("us", 1)]


async def test_a_table_without_headers(connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox DROP COLUMN headers")
    await capture(connection)
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    assert await connection.fetchval("SELECT object_identifier FROM outbox") == 1


async def test_uuids(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE member (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), org uuid)")
    await migrate(connection, capturing(UUID, outbox="uuid"))
    await connection.execute("INSERT INTO member (org) VALUES (gen_random_uuid())")
    assert await connection.fetchval("SELECT o.object_identifier = m.id FROM uuid_outbox o, member m")


async def test_strange_columns(connection: asyncpg.Connection) -> None:
    """Generated columns, an identity that takes no value, a key of two columns, names that ours could clash with."""
    await capture(
        connection,
        'CREATE TABLE member (id bigint GENERATED ALWAYS AS IDENTITY, "outboxd new" int DEFAULT 1, org bigint,'
        " twice bigint GENERATED ALWAYS AS (org * 2) STORED, old text, new text, changed text, rows text, target text,"
        ' PRIMARY KEY (id, "outboxd new"))',
        capture_columns=["old", "new", "twice"],
        payload_sql="jsonb_build_object('o', old, 'n', new, 'c', changed, 'r', rows, 't', target)",
    )
    await connection.execute("INSERT INTO member (org, old) VALUES (7, 'x')")
    await connection.execute("UPDATE member SET new = 'y'")
    await connection.execute("UPDATE member SET changed = 'y'")
    first, second = await taken(connection)
    assert (first[:3], second[:3]) == ((7, 1, "insert"), (7, 1, "update"))
    assert second[3] == {"o": "x", "n": "y", "c": None, "r": None, "t": None}


# --- migrating ----------------------------------------------------------------------------------------------


async def test_migrating_twice_does_nothing(connection: asyncpg.Connection) -> None:
    await capture(connection)
    assert await migrate(connection, capturing()) == []
    assert await migrate(connection, capturing(payload_sql="'1'::jsonb")) == [CAPTURE_WRITTEN]
    await connection.execute("DROP TRIGGER outboxd_capture_update ON member")
    assert await migrate(connection, capturing(payload_sql="'1'::jsonb")) == [CAPTURE_WRITTEN]
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    assert await taken(connection) == [(7, 1, "insert", 1)]


async def test_check_tells_what_is_not_captured(connection: asyncpg.Connection, database: str, tmp_path: Path) -> None:
    file = tmp_path / "outboxd.toml"
    file.write_text(CONFIGURATION.format(dsn=database))
    await connection.execute(TABLE)

    async def errors_found() -> list[str]:
        done = await run("check", "--json", config=file)
        return [each["text"] for each in json.loads(done.stdout) if each["level"] == "error"]

    assert await errors_found() == ["capture: its triggers are not installed"]
    assert (await run("migrate", config=file)).returncode == 0
    assert await errors_found() == []
    await connection.execute("ALTER TABLE member DISABLE TRIGGER outboxd_capture_delete")
    assert await errors_found() == ["capture: public.member lacks a trigger, or one is disabled"]
    file.write_text(file.read_text() + "payload_sql = \"'1'::jsonb\"\n")
    assert len(await errors_found()) == 2
    assert "capture member need a look" in (await run("migrate", "--sql", config=file)).stdout


async def test_triggers_that_call_another_function_are_mended(connection: asyncpg.Connection) -> None:
    await capture(connection)
    name = await connection.fetchval("SELECT proname FROM pg_proc WHERE proname LIKE 'capture\\_%'")
    await connection.execute(f"ALTER FUNCTION outboxd.{name}() RENAME TO capture_1")  # as if restored from a dump
    assert await migrate(connection, capturing()) == [CAPTURE_WRITTEN]
    assert await migrate(connection, capturing()) == []
    assert await connection.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture\\_%'") == 1


async def test_functions_of_others_stay(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "CREATE FUNCTION outboxd.capture_mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    await migrate(connection, capturing(capture=False))
    assert await connection.fetchval("SELECT to_regprocedure('outboxd.capture_mine()')") is not None


async def test_one_table_is_captured_once(connection: asyncpg.Connection) -> None:
    await connection.execute(TABLE)
    config = capturing()
    twin = msgspec.structs.replace(config.model[0], table="public.member")
    with pytest.raises(errors.SchemaError, match=r"models member and public\.member are one table"):
        await migrate(connection, msgspec.structs.replace(config, model=[*config.model, twin]))


@pytest.mark.parametrize("after", [{"capture": False}, {"table": "other", "capture": False}])
async def test_a_model_that_is_not_captured_any_more(connection: asyncpg.Connection, after: dict[str, Any]) -> None:
    await capture(connection)
    assert await migrate(connection, capturing(**after)) == ["table public.member: capture ended"]
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'); TRUNCATE member")
    assert await taken(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture%'") == 0


async def test_a_table_that_was_renamed_is_followed(connection: asyncpg.Connection) -> None:
    await capture(connection)
    await connection.execute("ALTER TABLE member RENAME TO person")
    await connection.execute("INSERT INTO person VALUES (1, 7, 'a'), (2, 7, 'b')")
    await connection.execute("UPDATE person SET slug = 'c' WHERE id = 1; TRUNCATE person")
    assert len(await taken(connection)) == 5
    await connection.execute("INSERT INTO person VALUES (1, 7, 'a')")
    await taken(connection)
    assert await migrate(connection, capturing(table="person")) == ["table person: capture written"]
    await connection.execute("DELETE FROM person")
    assert await taken(connection) == [(7, 1, "delete")]


async def test_a_column_that_was_renamed(connection: asyncpg.Connection) -> None:
    await capture(connection)
    await connection.execute("ALTER TABLE member RENAME COLUMN org TO organization")
    with pytest.raises(asyncpg.UndefinedColumnError, match="org"):  # rather than a change without its message
        await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    with pytest.raises(errors.SchemaError, match="has no column org"):
        await migrate(connection, capturing())
    assert await migrate(connection, capturing(shard_identifier="organization")) == [CAPTURE_WRITTEN]
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a')")
    assert await taken(connection) == [(7, 1, "insert")]


async def test_partitions(connection: asyncpg.Connection) -> None:
    await capture(
        connection,
        "CREATE TABLE member (id bigint, org bigint, slug text, PRIMARY KEY (id, org)) PARTITION BY LIST (org);"
        "CREATE TABLE member_7 PARTITION OF member FOR VALUES IN (7);"
        "CREATE TABLE member_8 PARTITION OF member FOR VALUES IN (8)",
    )
    await connection.execute("INSERT INTO member VALUES (1, 7, 'a'), (2, 8, 'b')")
    await connection.execute("INSERT INTO member_8 VALUES (3, 8, 'c')")
    assert await taken(connection) == [(7, 1, "insert"), (8, 2, "insert"), (8, 3, "insert")]
    await connection.execute("UPDATE member SET slug = 'z'")
    await connection.execute("UPDATE member_7 SET slug = 'y'")
    assert await taken(connection) == [(7, 1, "update"), (7, 1, "update"), (8, 2, "update"), (8, 3, "update")]
    await connection.execute("UPDATE member SET org = 8 WHERE id = 1")  # it moves to the other partition
    assert {row[:2] for row in await taken(connection)} == {(7, 1), (8, 1)}
    await connection.execute("TRUNCATE member_7")
    assert await taken(connection) == []
    await connection.execute("TRUNCATE member")
    assert [row[1:] for row in await taken(connection)] == [(1, "delete"), (2, "delete"), (3, "delete")]
    await connection.execute("CREATE TABLE member_9 PARTITION OF member FOR VALUES IN (9)")
    assert await migrate(connection, capturing()) == [CAPTURE_WRITTEN]
    await connection.execute("INSERT INTO member_9 VALUES (4, 9, 'd')")
    assert await taken(connection) == [(9, 4, "insert")]


@pytest.mark.parametrize(
    ("table", "model", "said"),
    [
        ("SELECT 1", {}, "there is no such table"),
        ("CREATE VIEW member AS SELECT 1 AS id, 2 AS org", {}, "is no ordinary table"),
        ("CREATE TABLE member (id bigint, org bigint)", {}, "has no primary key"),
        (TABLE, {"capture_columns": ["slag"]}, "has no column slag"),
        (TABLE, {"payload_sql": "jsonb_build_object('x', slag)"}, 'column "slag" does not exist'),
        (TABLE, {"capture_delete_payload_sql": "1/"}, "syntax error"),
        (f"{TABLE}; CREATE TABLE child () INHERITS (member)", {}, "others inherit from it"),
    ],
)
async def test_what_cannot_be_captured_is_refused_before_anybody_is_hurt(
    connection: asyncpg.Connection, table: str, model: dict[str, Any], said: str
) -> None:
    await connection.execute(table)
    with pytest.raises(errors.SchemaError) as refused:
        await migrate(connection, capturing(**model))
    assert said in str(refused.value)
    assert await connection.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'outboxd_capture%'") == 0


# --- a model in memory --------------------------------------------------------------------------------------

ROW = st.tuples(st.integers(1, 6), st.integers(1, 2), st.sampled_from("ab"))
STATEMENT = st.one_of(
    st.tuples(st.just("upsert"), st.lists(ROW, min_size=1, max_size=4, unique_by=lambda row: row[0])),
    st.tuples(st.just("update"), st.integers(1, 6), st.integers(1, 2), st.sampled_from("ab")),
    st.tuples(st.just("move"), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.just("delete"), st.integers(1, 6)),
    st.tuples(st.just("truncate")),
)


@dataclass
class Model:
    """The table as it should be, and what should have been captured of each statement."""

    rows: dict[int, tuple[int, str]] = field(default_factory=dict)

    def apply(self, statement: tuple[Any, ...]) -> tuple[str, set[tuple[int, int, str]]]:
        kind, *arguments = statement
        captured: set[tuple[int, int, str]] = set()
        if kind == "upsert":
            values = ", ".join(f"({number}, {org}, '{slug}')" for number, org, slug in arguments[0])
            for number, org, slug in arguments[0]:
                captured |= self._put(number, (org, slug))
            return (
                f"INSERT INTO member VALUES {values}"
                " ON CONFLICT (id) DO UPDATE SET org = excluded.org, slug = excluded.slug"
            ), captured
        if kind == "update":
            above, org, slug = arguments
            for number in [each for each in self.rows if each >= above]:
                captured |= self._put(number, (org, slug))
            return f"UPDATE member SET org = {org}, slug = '{slug}' WHERE id >= {above}", captured
        if kind == "move":
            before, after = arguments
            if before not in self.rows or after in self.rows:
                return "SELECT 1", captured
            row = self.rows.pop(before)
            self.rows[after] = row
            return f"UPDATE member SET id = {after} WHERE id = {before}", {
                (row[0], before, "delete"),
                (row[0], after, "insert"),
            }
        gone = list(self.rows) if kind == "truncate" else [each for each in self.rows if each >= arguments[0]]
        captured = {(self.rows.pop(number)[0], number, "delete") for number in gone}
        return "TRUNCATE member" if kind == "truncate" else f"DELETE FROM member WHERE id >= {arguments[0]}", captured

    def _put(self, number: int, row: tuple[int, str]) -> set[tuple[int, int, str]]:
        before = self.rows.get(number)
        self.rows[number] = row
        if before is None:
            return {(row[0], number, "insert")}
        if before == row:
            return set()
        return {(row[0], number, "update"), (before[0], number, "update")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(statements=st.lists(STATEMENT, max_size=8))
async def test_exactly_what_has_changed_is_captured(database: str, statements: list[tuple[Any, ...]]) -> None:
    async with connected(database) as connection:
        if await connection.fetchval("SELECT to_regclass('member')") is None:
            await capture(connection, capture_columns=["slug"])
        await connection.execute("TRUNCATE member")
        await taken(connection)
        model = Model()
        for statement in statements:
            text, expected = model.apply(statement)
            await connection.execute(text)
            assert set(await taken(connection)) == expected, text
        rows = await connection.fetch("SELECT id, org, slug FROM member")
        assert {row[0]: (row[1], row[2]) for row in rows} == model.rows
