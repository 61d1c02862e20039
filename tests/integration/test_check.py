"""`outboxd check` on a real PostgreSQL: what is missing is named, with what to do about it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from outboxd import errors
from outboxd.migrate import migrate
from outboxd.privileges import RoleKind, missing_grants
from outboxd.session import connect
from tests.integration.schema_cases import (
    APPLICATION_TABLE,
    configuration,
    control,
    empty_database,
    region,
    write_configuration,
)
from tests.processes import Outboxd, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from outboxd.config import Config
    from tests.conftest import Postgres

_numbers = itertools.count(1)

MODEL = """
[[model]]
table = "member"
outbox = "region"
category = "MEMBER_UPDATE"
shard_identifier = "organization_id"
"""

REPLICATING = """
from outboxd import replicates

@replicates("member")
class Members:
    async def handle_async_replication(self, row, message): ...
    async def handle_async_deletion(self, identifier, message): ...
"""


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[str]:
    async with empty_database(postgres) as dsn:
        yield dsn


@pytest.fixture
async def role(connection: asyncpg.Connection) -> AsyncIterator[str]:
    """A role with a name that needs quoting; roles belong to the server, not to the database."""
    name = f"Outboxd test {os.getpid()} {next(_numbers)}"
    await connection.execute(f'CREATE ROLE "{name}" LOGIN')
    yield name
    with contextlib.suppress(asyncpg.ObjectInUseError):
        await connection.execute(f'DROP OWNED BY "{name}" CASCADE; DROP ROLE "{name}"')


async def check(config: Path, *arguments: str, **options: Any) -> tuple[int | None, list[dict[str, str]]]:
    done: Outboxd = await run("check", "--json", *arguments, config=config, **options)
    findings: list[dict[str, str]] = json.loads(done.stdout) if done.stdout else []
    return done.returncode, findings


def of_level(findings: list[dict[str, str]], level: str) -> dict[str, str]:
    return {f"{f['subject']}: {f['text']}": f["remedy"] for f in findings if f["level"] == level}


async def as_role(connection: asyncpg.Connection, role: str, kind: RoleKind, config: Config) -> list[str]:
    """Let a role have exactly the grants it is told to lack."""
    grants = await missing_grants(connection, config, role, kind)
    for grant in grants:
        await connection.execute(grant)
    assert await missing_grants(connection, config, role, kind) == []
    return grants


class TestWhole:
    async def test_in_order(self, database: str, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database)
        assert (await run("migrate", config=config)).returncode == 0
        code, findings = await check(config)
        assert (code, of_level(findings, "error")) == (0, {})
        subjects = {finding["subject"] for finding in findings if finding["level"] == "ok"}
        assert subjects == {
            "configuration",
            "receivers",
            "connection",
            "server",
            "schema",
            "outbox region",
            "outbox control",
            "privileges",
        }

    async def test_text_has_errors_last_with_remedies(self, database: str, tmp_path: Path) -> None:
        done = await run("check", config=write_configuration(tmp_path, database))
        assert done.returncode == 78
        assert "error    outbox region: there is no table outbox" in done.stdout_lines
        assert any("-> Run `outboxd migrate`" in line for line in done.stdout_lines)
        assert done.stdout_lines[-1].startswith("3 errors")

    async def test_a_wrong_configuration(self, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, "postgresql:///x", more="[drian]\n")
        code, findings = await check(config)
        assert code == 78
        assert "did you mean drain?" in next(iter(of_level(findings, "error")))

    async def test_no_receiver_is_said_loudly(self, database: str, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database, receivers="print('noise')")
        await run("migrate", config=config)
        code, findings = await check(config)
        assert code == 0
        assert any("NO RECEIVER" in text for text in of_level(findings, "warning"))

    async def test_receivers_that_do_not_import(self, database: str, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database, receivers="import nowhere_at_all")
        await run("migrate", config=config)
        code, findings = await check(config)
        assert code == 78
        assert "nowhere_at_all" in next(iter(of_level(findings, "error")))


class TestConnection:
    async def test_down(self, tmp_path: Path) -> None:
        code, findings = await check(write_configuration(tmp_path, "postgresql:///x?host=/nonexistent"))
        assert code == 69
        [remedy] = of_level(findings, "error").values()
        assert "host and port" in remedy

    async def test_two_dsns_that_lead_to_different_databases(
        self, database: str, postgres: Postgres, tmp_path: Path
    ) -> None:
        async with empty_database(postgres) as other:
            config = write_configuration(tmp_path, database)
            await run("migrate", config=config)
            _, same = await check(config, env={"OUTBOX_SESSION_DSN": database})
            code, found = await check(config, env={"OUTBOX_SESSION_DSN": other})
        assert of_level(same, "error") == {}
        assert code == 78
        assert any("different databases" in text for text in of_level(found, "error"))

    async def test_read_only_by_default(self, database: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database)
        await run("migrate", config=config)
        name = urlsplit(database).path[1:]
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        code, found = await check(config)
        [(text, remedy)] = of_level(found, "error").items()
        assert (code, "read-only by default" in text, "ALTER DATABASE" in remedy) == (69, True, True)

    async def test_unknown_database(self, database: str, tmp_path: Path) -> None:
        nowhere = urlunsplit(urlsplit(database)._replace(path="/nowhere_at_all"))
        code, findings = await check(write_configuration(tmp_path, nowhere))
        assert code == 78
        assert "Create the database" in next(iter(of_level(findings, "error").values()))

    async def test_unknown_role(self, database: str) -> None:
        parts = urlsplit(database)
        stranger = urlunsplit(parts._replace(netloc=f"nobody_at_all@{parts.netloc.rpartition('@')[2]}"))
        with pytest.raises(errors.ConfigError, match="refuses the login"):
            await connect(stranger, name="test")


class TestTables:
    async def test_advice_for_an_adopted_table(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path
    ) -> None:
        await connection.execute(APPLICATION_TABLE.replace("bigserial", "integer"))
        await connection.execute(
            "ALTER TABLE outbox ADD tenant text NOT NULL, SET UNLOGGED; "
            "CREATE INDEX leftover ON outbox (category); "
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'leftover'::regclass"
        )
        config = write_configuration(tmp_path, database)
        await run("migrate", config=config)
        code, findings = await check(config)
        assert (code, of_level(findings, "error")) == (0, {})
        warnings = of_level(findings, "warning")
        for words in ("unlogged", "autovacuum runs", "leftover", "tenant", "id has no default", "id is an integer"):
            assert any(words in text for text in warnings), words
        await connection.execute(next(r for t, r in warnings.items() if "autovacuum runs" in t))
        await connection.execute(next(r for t, r in warnings.items() if "leftover" in t))
        await connection.execute(next(r for t, r in warnings.items() if "id has no default" in t))

    async def test_missing_index_and_nullable_key(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path
    ) -> None:
        config = write_configuration(tmp_path, database)
        await run("migrate", config=config)
        await connection.execute(
            "DROP INDEX outbox_shard_scope_shard_identifier_id_idx; "
            "ALTER TABLE control_outbox ALTER region_name DROP NOT NULL"
        )
        code, findings = await check(config)
        assert code == 78
        assert of_level(findings, "error") == {
            "outbox region: there is no valid index on (shard_scope, shard_identifier, id)": "Run `outboxd migrate`.",
            "outbox control: column region_name can be null": (
                'ALTER TABLE "public"."control_outbox" ALTER COLUMN region_name SET NOT NULL;'
            ),
        }

    @pytest.mark.parametrize(
        ("columns", "more", "words"),
        [
            ("id bigint, organization_id bigint, PRIMARY KEY (id, organization_id)", "", "its primary key is (id, org"),
            ("id bigint, organization_id bigint", "", "it has no primary key"),
            ("id text PRIMARY KEY, organization_id bigint", "", "is of type text"),
            (
                "id bigint PRIMARY KEY, organization_id bigint",
                "payload_sql = 'to_jsonb(slug)'",
                '"slug" does not exist',
            ),
            ("id bigint PRIMARY KEY, organization_id uuid", "", "is of type bigint but expression is of type uuid"),
        ],
    )
    async def test_models_that_cannot_be_walked(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path, columns: str, more: str, words: str
    ) -> None:
        await connection.execute(f"CREATE TABLE member ({columns})")
        config = write_configuration(tmp_path, database, more=MODEL + more)
        await run("migrate", config=config)
        code, findings = await check(config)
        [error] = of_level(findings, "error")
        assert (code, words in error) == (78, True), error

    async def test_models(self, database: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database, more=MODEL)
        await run("migrate", config=config)
        _, findings = await check(config)
        assert "model member: there is no table member" in of_level(findings, "error")
        await connection.execute("CREATE TABLE member (id bigint PRIMARY KEY)")
        _, findings = await check(config)
        assert "model member: public.member has no column organization_id" in of_level(findings, "error")
        await connection.execute("ALTER TABLE member ADD organization_id bigint")
        assert (await check(config))[0] == 0

    async def test_row_level_security_is_an_error(self, connection: asyncpg.Connection, role: str) -> None:
        config = configuration()
        await migrate(connection, config)
        await as_role(connection, role, "daemon", config)
        await connection.execute(f'ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; SET ROLE "{role}"')
        with pytest.raises(errors.SchemaError, match="passed over in silence"):
            await migrate(connection, config)
        await connection.execute("RESET ROLE")


class TestPrivileges:
    async def test_daemon(self, connection: asyncpg.Connection, role: str) -> None:
        config = configuration(region(), control())
        await migrate(connection, config)
        assert await as_role(connection, role, "daemon", config) == [
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON public.outbox TO "{role}";',
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON public.control_outbox TO "{role}";',
            f'GRANT USAGE ON SCHEMA outboxd TO "{role}";',
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outboxd TO "{role}";',
        ]
        await connection.execute(f'REVOKE DELETE ON outbox FROM "{role}"')
        assert await missing_grants(connection, config, role, "daemon") == [
            f'GRANT DELETE ON public.outbox TO "{role}";'
        ]

    async def test_producer_of_an_application_table(self, connection: asyncpg.Connection, role: str) -> None:
        await connection.execute("CREATE SCHEMA shop; SET search_path = shop")
        await connection.execute(APPLICATION_TABLE)
        config = configuration(region("shop.outbox"))
        await migrate(connection, config)
        assert await as_role(connection, role, "producer", config) == [
            f'GRANT USAGE ON SCHEMA shop TO "{role}";',
            f'GRANT SELECT, INSERT ON shop.outbox TO "{role}";',
            f'GRANT USAGE ON SEQUENCE shop.outbox_id_seq TO "{role}";',
        ]
        await connection.execute(f'SET ROLE "{role}"')
        await connection.execute(
            "INSERT INTO shop.outbox (shard_scope, shard_identifier, category, object_identifier) VALUES (0, 1, 3, 'a')"
        )
        await connection.execute("RESET ROLE")

    async def test_owner_before_and_after_migrate(self, connection: asyncpg.Connection, role: str) -> None:
        config = configuration()
        before = await as_role(connection, role, "owner", config)
        database = await connection.fetchval("SELECT current_database()")
        assert before == [
            f'GRANT CREATE ON SCHEMA public TO "{role}";',
            f'GRANT CREATE ON DATABASE {database} TO "{role}";',
        ]
        await migrate(connection, config)
        assert f'ALTER TABLE public.outbox OWNER TO "{role}";' in await as_role(connection, role, "owner", config)
        await connection.execute(f'SET ROLE "{role}"')
        await connection.execute("DROP INDEX outbox_shard_scope_shard_identifier_id_idx")
        assert len(await migrate(connection, config, notify=True)) == 2
        await connection.execute("RESET ROLE")

    async def test_migrate_without_privileges_names_check(self, connection: asyncpg.Connection, role: str) -> None:
        await connection.execute(f'SET ROLE "{role}"')
        with pytest.raises(errors.SchemaError, match="permission denied") as caught:
            await migrate(connection, configuration())
        assert "check --role owner" in caught.value.hint
        await connection.execute("RESET ROLE")

    async def test_command_prints_grants_ready_to_paste(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path, role: str
    ) -> None:
        config = write_configuration(tmp_path, database)
        await run("migrate", config=config)
        code, findings = await check(config, "--role", "daemon", "--role", "producer", "--as", role)
        assert code == 78
        for remedy in of_level(findings, "error").values():
            await connection.execute(remedy)
        code, findings = await check(config, "--role", "daemon", "--role", "producer", "--as", role)
        assert (code, of_level(findings, "error")) == (0, {})

    async def test_a_role_without_any_privilege_sees_everything_it_lacks(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path, role: str
    ) -> None:
        await connection.execute(
            "CREATE SCHEMA hidden; ALTER DATABASE " + urlsplit(database).path[1:] + " SET search_path = hidden, public"
        )
        await run("migrate", config=write_configuration(tmp_path, database))
        parts = urlsplit(database)
        netloc = f"{role.replace(' ', '%20')}@{parts.netloc.rpartition('@')[2]}"
        config = write_configuration(tmp_path, urlunsplit(parts._replace(netloc=netloc)))
        code, findings = await check(config)
        errors_found = of_level(findings, "error")
        assert code == 78
        assert any("out of reach" in text for text in errors_found)
        hidden = next(remedy for text, remedy in errors_found.items() if text.startswith("schema"))
        assert hidden.startswith(("GRANT USAGE", "GRANT SELECT"))
        refused = await run("migrate", config=config)
        assert "check --role owner" in refused.stderr
        grants = next(remedy for text, remedy in errors_found.items() if text.startswith("privileges"))
        await connection.execute(grants)
        code, findings = await check(config)
        assert (code, of_level(findings, "error")) == (0, {})

    async def test_receivers_that_want_rows_need_their_table(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path, role: str
    ) -> None:
        config = write_configuration(tmp_path, database, MODEL, REPLICATING)
        await connection.execute("CREATE TABLE member (id bigint PRIMARY KEY, organization_id bigint)")
        await run("migrate", config=config)
        for kind in ("daemon", "operator"):
            _, findings = await check(config, "--role", kind, "--as", role)
            grants = next(iter(of_level(findings, "error").values()))
            assert f'GRANT SELECT ON public.member TO "{role}";' in grants.splitlines()
        _, findings = await check(config, "--role", "reader", "--as", role)
        assert "member" not in str(of_level(findings, "error"))

    @pytest.mark.parametrize(
        ("table", "where", "complaint"),
        [
            ("id bigint, organization_id bigint, PRIMARY KEY (id, organization_id)", "", "id is not unique"),
            ("id bigint UNIQUE DEFERRABLE, organization_id bigint", "", "id is not unique"),
            ("id text PRIMARY KEY, organization_id bigint", "", "id is text, but the outbox has object identifiers of"),
            ("id bigint PRIMARY KEY, organization_id bigint", "gone > 1", 'column "gone" does not exist'),
            ("id bigint PRIMARY KEY, organization_id bigint); CREATE TABLE child () INHERITS (member", "", "has child"),
        ],
        ids=["key of two columns", "deferrable", "another type", "condition", "children"],
    )
    async def test_rows_that_receivers_could_not_be_given(
        self, database: str, connection: asyncpg.Connection, tmp_path: Path, table: str, where: str, complaint: str
    ) -> None:
        model = f'{MODEL}replication_version = 0\nwhere_sql = "{where}"\n'
        config = write_configuration(tmp_path, database, model, REPLICATING)
        await connection.execute(f"CREATE TABLE member ({table})")
        await run("migrate", config=config)
        code, findings = await check(config)
        assert code == 78
        assert complaint in str(of_level(findings, "error"))

    async def test_what_is_not_there_yet_is_not_said_to_be_granted(
        self, database: str, tmp_path: Path, role: str
    ) -> None:
        config = write_configuration(tmp_path, database)
        _, findings = await check(config, "--as", role)
        assert not any("privileges" in text for text in of_level(findings, "ok"))
        assert any("shows when all is migrated" in text for text in of_level(findings, "info"))

    async def test_an_unknown_role(self, database: str, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database)
        await run("migrate", config=config)
        code, findings = await check(config, "--as", "nobody at all")
        assert code == 78
        assert of_level(findings, "error") == {
            "privileges: there is no role nobody at all": 'CREATE ROLE "nobody at all" LOGIN;'
        }
