"""
Capture: with whose rights it runs, and what a writer with few of them cannot do with it.

The roles belong to the whole server; each test makes them anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from outboxd import capture, errors
from outboxd.migrate import migrate
from tests.captures import capturing, taken
from tests.drains import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outboxd.config import Config

ROLES = "capture_owner, capture_writer"
SET_UP = """
CREATE ROLE capture_owner;
CREATE ROLE capture_writer;
CREATE TABLE member (id bigint PRIMARY KEY, org bigint, slug text);
ALTER TABLE member OWNER TO capture_owner;
GRANT INSERT, UPDATE, DELETE ON member TO capture_writer;
GRANT INSERT ON outbox TO capture_owner;
"""
FUNCTION = "SELECT oid::regproc::text FROM pg_proc WHERE proname LIKE 'capture\\_%'"


@pytest.fixture
async def writer(connection: asyncpg.Connection, database: str) -> AsyncIterator[asyncpg.Connection]:
    """A role that may change members, and read nothing; the table belongs to another."""
    await connection.execute("DROP ROLE IF EXISTS capture_owner; DROP ROLE IF EXISTS capture_writer")
    await connection.execute(SET_UP)
    async with connected(database) as other:
        await other.execute("SET ROLE capture_writer")
        yield other
    await connection.execute(f"DROP OWNED BY {ROLES} CASCADE; DROP ROLE {ROLES}")


async def gaps(connection: asyncpg.Connection, config: Config) -> list[str]:
    return [fault.text for fault in await capture.gaps(connection, config, config.model[0])]


async def test_a_writer_needs_no_right_but_its_own(connection: asyncpg.Connection, writer: asyncpg.Connection) -> None:
    await migrate(connection, capturing(payload_sql="to_jsonb(current_user)"))
    await writer.execute("INSERT INTO member VALUES (1, 7, 'a'); UPDATE member SET slug = 'b'; DELETE FROM member")
    rows = await connection.fetch("SELECT headers->>'op', payload FROM outbox ORDER BY id")
    by_owner = '"capture_owner"'  # not the superuser that has migrated
    assert [tuple(row) for row in rows] == [("insert", by_owner), ("update", by_owner), ("delete", None)]


@pytest.mark.parametrize(
    "bait",
    [
        "CREATE FUNCTION public.jsonb_build_object(text, text) RETURNS jsonb LANGUAGE sql AS 'SELECT ''{}''::jsonb'",
        "CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL::text'",
        "CREATE FUNCTION public.f(varchar, varchar) RETURNS bool LANGUAGE sql AS 'SELECT false';"
        "CREATE OPERATOR public.= (FUNCTION = public.f, LEFTARG = varchar, RIGHTARG = varchar)",
        "CREATE TEMP TABLE pg_proc (oid oid)",
    ],
)
async def test_what_a_writer_creates_is_never_found(
    connection: asyncpg.Connection, writer: asyncpg.Connection, bait: str
) -> None:
    await connection.execute("GRANT CREATE ON SCHEMA public TO capture_writer")
    await connection.execute("ALTER TABLE member ALTER id TYPE varchar")
    await migrate(connection, capturing(object_identifier="org", payload_sql="to_jsonb(id)"))
    await writer.execute(bait)
    await writer.execute("SET search_path = pg_temp, public; INSERT INTO public.member VALUES ('a', 7, 'x')")
    assert await taken(connection) == [(7, 7, "insert", "a")]


@pytest.mark.parametrize("grant", ["", "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO capture_writer"])
async def test_nobody_has_a_table_of_his_own_captured(
    connection: asyncpg.Connection, writer: asyncpg.Connection, grant: str
) -> None:
    await connection.execute(f"GRANT USAGE ON SCHEMA outboxd TO capture_writer; {grant}")
    await migrate(connection, capturing())
    name = await connection.fetchval(FUNCTION)
    await writer.execute("CREATE TEMP TABLE forged (id bigint PRIMARY KEY, org bigint, slug text)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f"permission denied for function {name}"):
        await writer.execute(
            "CREATE TRIGGER t AFTER INSERT ON forged REFERENCING NEW TABLE AS outboxd_new"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )


async def test_an_error_shows_no_row(connection: asyncpg.Connection, writer: asyncpg.Connection) -> None:
    await migrate(connection, capturing(payload_sql="to_jsonb(member)"))
    await connection.execute("INSERT INTO member VALUES (1, 7, 'secret')")
    with pytest.raises(asyncpg.NotNullViolationError, match="a row of member has no shard, or no object") as refused:
        await writer.execute("UPDATE member SET org = NULL")
    assert "secret" not in str(refused.value.as_dict())


@pytest.mark.parametrize(
    ("model", "setting", "payload"),
    [
        ({"where_sql": r"slug NOT LIKE '\_%'"}, "SET standard_conforming_strings = off", None),
        ({"payload_sql": "to_jsonb(0.1::float8 + 0.2::float8)"}, "SET extra_float_digits = 0", "0.30000000000000004"),
        ({"payload_sql": "to_jsonb('01/02/2024'::date)"}, "SET datestyle = 'ISO, DMY'", '"2024-01-02"'),
    ],
)
async def test_settings_of_the_writer_change_nothing(
    connection: asyncpg.Connection, writer: asyncpg.Connection, model: dict[str, Any], setting: str, payload: Any
) -> None:
    await migrate(connection, capturing(**model))
    await writer.execute(f"{setting}; INSERT INTO member VALUES (1, 7, 'a')")
    assert await connection.fetchval("SELECT payload FROM outbox") == payload
    assert await connection.fetchval("SELECT count(*) FROM outbox") == 1


async def test_rows_that_a_policy_hides_from_the_writer_are_told_of(
    connection: asyncpg.Connection, writer: asyncpg.Connection
) -> None:
    await connection.execute(
        "ALTER TABLE member ENABLE ROW LEVEL SECURITY; CREATE POLICY add ON member FOR INSERT WITH CHECK (true)"
    )
    await migrate(connection, capturing())
    await writer.execute("INSERT INTO member VALUES (1, 7, 'a')")
    assert await taken(connection) == [(7, 1, "insert")]


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("REVOKE INSERT ON outbox FROM capture_owner", "GRANT INSERT ON outbox TO capture_owner"),
        (
            "ALTER TABLE member ENABLE ROW LEVEL SECURITY; ALTER TABLE member FORCE ROW LEVEL SECURITY",
            "ALTER TABLE member NO FORCE ROW LEVEL SECURITY",
        ),
        (
            "ALTER TABLE outbox ALTER id DROP IDENTITY; CREATE SEQUENCE numbers;"
            "ALTER TABLE outbox ALTER id SET DEFAULT nextval('numbers')",
            "GRANT USAGE ON SEQUENCE numbers TO capture_owner",
        ),
        (
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC, capture_owner",
            "GRANT USAGE ON SCHEMA public TO capture_owner",
        ),
        ("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY", "ALTER ROLE capture_owner BYPASSRLS"),
    ],
)
@pytest.mark.usefixtures("writer")
async def test_what_the_owner_lacks_is_named_before_a_statement_fails(
    connection: asyncpg.Connection, change: str, remedy: str
) -> None:
    config = capturing()
    await migrate(connection, config)
    await connection.execute(change)

    [fault] = await capture.gaps(connection, config, config.model[0])
    assert (fault.text, fault.remedy) == ("capture_owner, who owns the table, lacks a right", f"{remedy};")
    with pytest.raises(errors.SchemaError) as refused:
        await migrate(connection, config)
    assert remedy in str(refused.value.hint)
    await connection.execute(remedy)
    assert await gaps(connection, config) == []
    await migrate(connection, config)


@pytest.mark.usefixtures("writer")
async def test_a_partition_of_another_owner(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "DROP TABLE member; CREATE TABLE member (id bigint PRIMARY KEY, org bigint) PARTITION BY LIST (id);"
        "ALTER TABLE member OWNER TO capture_owner; CREATE TABLE member_1 PARTITION OF member DEFAULT"
    )
    with pytest.raises(errors.SchemaError) as refused:
        await migrate(connection, capturing())
    assert "GRANT SELECT ON member_1 TO capture_owner" in str(refused.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE member OWNER TO capture_writer; GRANT INSERT ON outbox TO capture_writer",
        "ALTER FUNCTION {function}() SECURITY INVOKER",
        "GRANT EXECUTE ON FUNCTION {function}() TO PUBLIC",
        "ALTER FUNCTION {function}() OWNER TO CURRENT_USER",
    ],
)
async def test_other_rights_are_noticed_and_mended(
    connection: asyncpg.Connection, writer: asyncpg.Connection, change: str
) -> None:
    config = capturing()
    await migrate(connection, config)
    await connection.execute(change.format(function=await connection.fetchval(FUNCTION)))
    assert await gaps(connection, config) == ["its function has other rights than outboxd migrate gives it"]
    assert await migrate(connection, config) == ["table member: capture written"]
    assert await gaps(connection, config) == []
    await writer.execute("INSERT INTO member VALUES (1, 7, 'a')")
    assert await taken(connection) == [(7, 1, "insert")]


@pytest.mark.usefixtures("writer")
async def test_only_its_own_triggers_fire_when_it_is_tried(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON member FOR EACH STATEMENT EXECUTE FUNCTION refuse();"
        "ALTER TABLE member ENABLE ALWAYS TRIGGER refuse"
    )
    assert "table member: capture written" in await migrate(connection, capturing())
    assert [row[0] for row in await connection.fetch(ENABLED)] == ["O"] * 4 + ["A"]


ENABLED = "SELECT tgenabled::text FROM pg_trigger WHERE tgrelid = 'member'::regclass ORDER BY tgname"


async def test_values_must_fit_as_they_are(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE member (id bigint PRIMARY KEY, org text)")
    with pytest.raises(errors.SchemaError, match="is of type bigint but expression is of type text"):
        await migrate(connection, capturing())


async def test_an_error_about_regions_shows_no_row(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE member (id bigint PRIMARY KEY, org bigint, slug text)")
    await migrate(
        connection, capturing(outbox="control", category="PROFILE", region_names_sql="ARRAY[slug, 'eu', 'eu']")
    )
    await connection.execute("INSERT INTO member VALUES (1, 7, NULL)")
    assert [row[0] for row in await connection.fetch("SELECT region_name FROM control_outbox")] == ["eu"]


async def test_a_role_that_does_not_own_the_table_cannot_migrate_it(
    connection: asyncpg.Connection, writer: asyncpg.Connection
) -> None:
    await migrate(connection, capturing(capture=False))
    await connection.execute(
        "GRANT ALL ON SCHEMA outboxd TO capture_writer; GRANT ALL ON ALL TABLES IN SCHEMA outboxd TO capture_writer;"
        "GRANT TRIGGER, SELECT ON member TO capture_writer"
    )
    with pytest.raises(errors.SchemaError) as refused:
        await capture.install(writer, capturing())
    assert "as capture_owner, who owns the table" in str(refused.value.hint)
    assert await connection.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'outboxd_capture%'") == 0


async def test_a_member_of_the_owner_may_migrate(connection: asyncpg.Connection, writer: asyncpg.Connection) -> None:
    await migrate(connection, capturing(capture=False))
    await connection.execute(
        "GRANT capture_owner TO capture_writer; GRANT USAGE, CREATE ON SCHEMA outboxd TO capture_writer;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO capture_writer; GRANT SELECT ON outbox TO capture_writer"
    )
    with pytest.raises(errors.SchemaError) as refused:
        await capture.install(writer, capturing())
    assert "needs CREATE on schema outboxd" in str(refused.value.hint)
    await connection.execute("GRANT CREATE ON SCHEMA outboxd TO capture_owner")
    assert await capture.install(writer, capturing()) == ["table member: capture written"]
    await writer.execute("INSERT INTO member VALUES (1, 7, 'a')")
    assert await taken(connection) == [(7, 1, "insert")]


@pytest.mark.usefixtures("writer")
async def test_a_table_is_captured_for_one_schema(connection: asyncpg.Connection) -> None:
    await migrate(connection, capturing())
    await connection.execute(
        "CREATE SCHEMA second; CREATE FUNCTION second.capture_1() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'; COMMENT ON FUNCTION second.capture_1() IS 'Writes the messages of member. x';"
        "CREATE OR REPLACE TRIGGER outboxd_capture_insert AFTER INSERT ON member"
        " FOR EACH STATEMENT EXECUTE FUNCTION second.capture_1()"
    )
    with pytest.raises(errors.SchemaError, match="captured already, for the schema second"):
        await migrate(connection, capturing())
