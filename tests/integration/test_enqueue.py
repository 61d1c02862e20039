"""`outboxd enqueue` on a real PostgreSQL: one message by the rules, or a refusal that says which rule."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import choose, errors
from outboxd.enqueue import NewMessage, enqueue
from outboxd.migrate import migrate
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
    from pathlib import Path

    import asyncpg

    from tests.conftest import Postgres

KEY = "3f5e8a4e-0000-4000-8000-000000000000"


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[str]:
    async with empty_database(postgres) as dsn:
        yield dsn


def message(**values: Any) -> NewMessage:
    return NewMessage(**{"category": "MEMBER_UPDATE", "shard": "7", "object": "42", **values})


class TestWrite:
    async def test_a_message_is_due_at_once(self, connection: asyncpg.Connection) -> None:
        config = configuration()
        await migrate(connection, config)
        written = await enqueue(
            connection, config, message(payload='{"n": 1e400, "é": null}', headers='{"traceparent": "00-1"}')
        )
        assert written == ("region", 1)
        row = await connection.fetchrow("SELECT *, scheduled_for < now() AS is_due FROM outbox")
        assert row is not None
        assert (row["shard_scope"], row["shard_identifier"], row["category"], row["object_identifier"]) == (0, 7, 3, 42)
        assert row["payload"].startswith('{"n": 1000000'), "numbers of any size are kept"
        assert json.loads(row["headers"]) == {"traceparent": "00-1"}
        assert row["is_due"]

    async def test_category_and_scope_go_by_number_too(self, connection: asyncpg.Connection) -> None:
        config = configuration()
        await migrate(connection, config)
        await enqueue(connection, config, message(category="3", scope="0"))
        assert await connection.fetchval("SELECT category FROM outbox") == 3

    async def test_without_payload_it_is_sql_null(self, connection: asyncpg.Connection) -> None:
        config = configuration()
        await migrate(connection, config)
        await enqueue(connection, config, message())
        assert await connection.fetchval("SELECT count(*) FROM outbox WHERE payload IS NULL AND headers IS NULL")

    async def test_control_outbox_with_uuid_keys(self, connection: asyncpg.Connection) -> None:
        config = configuration(region(), control(key_type="uuid"))
        await migrate(connection, config)
        new = message(region="us", shard=KEY, object=KEY)
        assert await enqueue(connection, config, new) == ("control", 1)
        row = await connection.fetchrow("SELECT region_name, shard_identifier FROM control_outbox")
        assert row is not None
        assert tuple(row) == ("us", uuid.UUID(KEY))

    async def test_adopted_table(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE)
        config = configuration()
        await migrate(connection, config)
        await enqueue(connection, config, message(object="it's \U0001f4e6"))
        assert await connection.fetchval("SELECT object_identifier FROM outbox") == "it's \U0001f4e6"
        with pytest.raises(errors.InvalidOutboxError, match="no column headers"):
            await enqueue(connection, config, message(headers="{}"))
        with pytest.raises(errors.InvalidOutboxError, match=r"--shard must be an integer \(integer\)"):
            await enqueue(connection, config, message(shard=str(2**31)))
        with pytest.raises(errors.InvalidOutboxError, match="too long"):
            await enqueue(connection, config, message(object="x" * 41))
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 1

    async def test_a_column_that_nobody_fills_is_a_matter_of_the_schema(self, connection: asyncpg.Connection) -> None:
        await connection.execute(APPLICATION_TABLE.replace("id bigserial", "id bigint"))
        await migrate(connection, configuration())
        with pytest.raises(errors.SchemaError, match='"id"') as caught:
            await enqueue(connection, configuration(), message())
        assert "default" in caught.value.hint

    async def test_a_payload_of_50_mb(self, connection: asyncpg.Connection, tmp_path: Path) -> None:
        config = configuration()
        await migrate(connection, config)
        file = tmp_path / "large.json"
        file.write_text(json.dumps(["x" * 1_000_000] * 50))
        await enqueue(connection, config, message(payload=choose.read_json(f"@{file}", "--payload")))
        assert await connection.fetchval("SELECT jsonb_array_length(payload) FROM outbox") == 50


class TestRefuse:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"category": "MEMBER_UPDAT"}, "unknown category MEMBER_UPDAT, did you mean MEMBER_UPDATE?"),
            ({"category": "999"}, "unknown category 999"),
            ({"scope": "USER_SCOP"}, "there is no scope USER_SCOP, did you mean USER_SCOPE?"),
            ({"scope": "USER_SCOPE"}, "MEMBER_UPDATE belongs to ORGANIZATION_SCOPE, not to USER_SCOPE"),
            ({"outbox": "control"}, "--region is missing"),
            ({"outbox": "region", "region": "us"}, "--region does not apply"),
            ({"outbox": "regio"}, "no outbox regio, did you mean region?"),
            ({"region": ""}, "--region must not be empty"),
            ({"shard": "seven"}, "--shard must be an integer (bigint), got 'seven'"),
            ({"shard": "1_000"}, "--shard must be an integer"),
            ({"object": str(2**63)}, "--object must be an integer (bigint)"),
            ({"region": "us", "object": "4"}, "--object must be a uuid, got '4'"),
            ({"region": "u\0s", "shard": KEY, "object": KEY}, "NUL"),
            ({"payload": '"\\u0000"'}, "u0000"),
            ({"payload": '"\\ud800"'}, "invalid input syntax"),
            ({"headers": "[]"}, "--headers must be a JSON object"),
        ],
    )
    async def test_by_rule(self, connection: asyncpg.Connection, values: dict[str, str], words: str) -> None:
        config = configuration(region(), control(key_type="uuid"))
        await migrate(connection, config)
        with pytest.raises((errors.UsageError, errors.InvalidOutboxError)) as caught:
            await enqueue(connection, config, message(**values))
        assert words in str(caught.value)
        assert caught.value.exit_code == 2
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0

    async def test_more_than_one_outbox_fits(self) -> None:
        config = configuration(region(), region("other", name="second"), control())
        with pytest.raises(errors.UsageError, match=r"2 outboxes fit.*region \(no region\), second .*, control"):
            choose.choose_outbox(config, None, None)
        assert choose.choose_outbox(config, "second", None).name == "second"
        assert choose.choose_outbox(config, None, "us").name == "control"

    async def test_no_outbox_fits(self) -> None:
        with pytest.raises(errors.UsageError, match="no outbox goes without one: control"):
            choose.choose_outbox(configuration(control()), None, None)
        with pytest.raises(errors.UsageError, match="no outbox takes one: region"):
            choose.choose_outbox(configuration(), None, "us")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"a": }', "expecting value (line 1, column 7)"),
            ("", "line 1, column 1"),
            ("NaN", "NaN is not a number in JSON"),
            ("[" * 100_000, "nested too deeply"),
            ("\udcff", "not valid UTF-8"),
            ("@/nonexistent.json", "cannot read /nonexistent.json"),
        ],
    )
    async def test_json(self, text: str, words: str) -> None:
        with pytest.raises(errors.OutboxdError) as caught:
            choose.read_json(text, "--payload")
        assert words in str(caught.value)
        assert caught.value.exit_code == 2

    async def test_bytes_that_are_not_utf8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"\xff"')))
        with pytest.raises(errors.InvalidOutboxError, match=r"not UTF-8 \(byte 1\)"):
            choose.read_json("-", "--payload")

    async def test_a_table_that_is_not_migrated(self, connection: asyncpg.Connection) -> None:
        with pytest.raises(errors.SchemaError, match="no table outbox"):
            await enqueue(connection, configuration(), message())


class TestCommand:
    async def test_prints_the_id(self, database: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, database)
        await run("migrate", config=config)
        arguments = ("enqueue", "MEMBER_UPDATE", "--shard", "-7", "--object", "42", "--payload", "{}")
        first, second = await asyncio.gather(run(*arguments, config=config), run(*arguments, "--json", config=config))
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        printed = json.loads(second.stdout)
        assert {int(first.stdout), printed["id"]} == {1, 2}
        assert printed["outbox"] == "region"
        assert await connection.fetchval("SELECT min(shard_identifier) FROM outbox") == -7

    async def test_rules_are_checked_before_the_database_is_asked(self, tmp_path: Path) -> None:
        config = write_configuration(tmp_path, "postgresql:///nowhere?host=/nonexistent")
        wrong = await run("enqueue", "MEMBER_UPDAT", "--shard", "1", "--object", "2", config=config)
        assert (wrong.returncode, "did you mean MEMBER_UPDATE?" in wrong.stderr) == (2, True)
        down = await run("enqueue", "MEMBER_UPDATE", "--shard", "1", "--object", "2", config=config)
        assert down.returncode == 69
