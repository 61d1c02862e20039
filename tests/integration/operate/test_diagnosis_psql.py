"""What a command prints with `--sql` gives, in the real psql, exactly what the command says with `--json`."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outboxd.claims import SHARD_CLASS, WORKER_CLASS
from outboxd.sql import quote
from tests.drains import write
from tests.processes import run
from tests.psql import psql, rows_of
from tests.trouble import DEEP, EU_FAILING, FAILING, INVOICE, UNKNOWN_CATEGORY, USER, Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import asyncpg

AWAY = {"OUTBOX_DSN": "postgresql://nobody@127.0.0.1:1/x"}
IDENTIFIER = uuid.UUID("0b7c1f4e-4a52-4e0e-9d43-3f6c0a5d2c11")
STRANGE = 'it\'s \\ "{strange}" {value:limit} -- $1 :name ; \\q'
STRANGE_SCHEMA = "out\"b'o{x}d\\"
STRANGE_TABLE = "we\"ird\\t {value:limit} '--"
STRANGE_TEXT = f"{STRANGE}\n'; DROP TABLE outbox; --\\.\n"


COMMANDS: list[tuple[list[str], int]] = [
    (["shards"], 10),
    (["shards", "--limit", "100"], 14),
    (["shards", "--outbox", "region", "--limit", "2"], 2),
    (["shards", "--outbox", "control"], 4),
    (["shards", "--region", "eu"], 2),
    (["shards", "--stuck"], 5),
    (["shards", "--stuck", "--region", "eu", "--limit", "1"], 1),
    (["inspect", "ORGANIZATION_SCOPE", str(DEEP)], 50),
    (["inspect", "0", str(FAILING), "--limit", "12"], 12),
    (["inspect", str(USER), str(EU_FAILING), "--region", "eu"], 2),
    (["inspect", "--", "0", "-9223372036854775808"], 0),
    (["depth", "MEMBER"], 1),
    (["depth", str(UNKNOWN_CATEGORY)], 1),
    (["depth", "PROFILE", "--outbox", "control"], 1),
    (["depth", "PROFILE", "--region", "us"], 1),
    (["object", str(INVOICE), "101"], 1),
    (["object", "PROFILE", "221", "--outbox", "control"], 2),
    (["object", "PROFILE", "221", "--region", "us"], 1),
]
"""Command lines, and how many rows each has in the database with all kinds of trouble."""


async def same_in_psql(file: Path, dsn: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Prove it for one command line, and return the rows."""
    command, *rest = arguments
    told = await run(command, "--json", *rest, config=file)
    printed = await run(command, "--sql", *rest, config=file, env=AWAY)
    assert (told.returncode, printed.returncode) == (0, 0), told.stderr + printed.stderr
    rows = await rows_of(dsn, printed.stdout)
    assert rows == json.loads(told.stdout)
    assert [list(row) for row in rows] == [list(row) for row in json.loads(told.stdout)], "the keys in another order"
    assert re.search(r"^LIMIT \d+|^ +LIMIT \d+", printed.stdout, re.MULTILINE)
    assert printed.stdout.startswith("-- ")
    return rows


async def test_every_command_says_what_psql_says(trouble: Trouble) -> None:
    for arguments, count in COMMANDS:
        rows = await same_in_psql(trouble.file, trouble.dsn, arguments)

        assert len(rows) == count, arguments


async def test_all_numbers_have_their_names_in_comments(trouble: Trouble) -> None:
    lines = ["shards", "shards --stuck", "inspect 0 1", "inspect 9 1", "depth 1", "depth 999", "object 999 1"]
    lines += ["explain 0 1", "explain 9 1", "doctor", "pause --list", "dead-letters list", "dead-letters show 1"]
    for arguments in map(str.split, lines):
        printed = (await run(*arguments, "--sql", config=trouble.file, env=AWAY)).stdout
        comments = [line for line in printed.splitlines() if line.startswith("-- ")]

        for named in (
            "shard_scope 0 = ORGANIZATION_SCOPE; category 1 = MEMBER",
            "shard_scope 1 = USER_SCOPE; category 6 =",
        ):
            assert any(named in line for line in comments), arguments
        classes = {number for number in map(str, (SHARD_CLASS, WORKER_CLASS)) if number in printed}
        assert all(any(f"{number} = a" in line for line in comments) for number in classes), arguments


async def test_what_is_printed_can_be_pasted_as_it_is(trouble: Trouble) -> None:
    printed = (await run("shards", "--limit", "3", "--sql", config=trouble.file, env=AWAY)).stdout

    lines = (await psql(trouble.dsn, printed)).splitlines()

    assert [line.split("|")[4] for line in lines] == ["2", "3", "7"]


def strange_toml(dsn: str, key_type: str, sharding_columns: list[str]) -> str:
    def text(value: str) -> str:
        return json.dumps(value)

    return f"""
dsn = {text(dsn)}
schema = {text(STRANGE_SCHEMA)}
[scopes.{text(STRANGE)}]
value = -2147483648
disabled_shards_option = {text(STRANGE)}
[categories.{text(STRANGE)}]
value = -2147483648
scope = {text(STRANGE)}
on_error = "skip"
[[outbox]]
name = {text(STRANGE)}
table = {text(STRANGE_TABLE)}
key_type = {text(key_type)}
sharding_columns = {json.dumps(sharding_columns)}
"""


@pytest.mark.parametrize(
    ("key_type", "identifier", "region", "has_headers"),
    [
        ("bigint", -7, None, True),
        ("uuid", IDENTIFIER, STRANGE_TEXT, False),
        ("text", STRANGE_TEXT, STRANGE_TEXT, True),
        ("text", STRANGE_TEXT, None, False),
    ],
    ids=["bigint", "uuid in a region without headers", "text in a region", "text without headers"],
)
async def test_names_and_values_of_any_kind_stay_what_they_are(
    database: str,
    connection: asyncpg.Connection,
    tmp_path: Path,
    key_type: str,
    identifier: Any,
    region: str | None,
    has_headers: bool,
) -> None:
    file = tmp_path / "strange.toml"
    columns = [*(["region_name"] if region else []), "shard_scope", "shard_identifier"]
    file.write_text(strange_toml(database, key_type, columns))
    assert (await run("migrate", config=file)).returncode == 0
    quoted = quote(STRANGE_TABLE)
    if not has_headers:
        await connection.execute(f"ALTER TABLE {quoted} DROP COLUMN headers")
    values = {"shard": identifier, "category": -(2**31), "scope": -(2**31), "table": STRANGE_TABLE, "region": region}
    await write(connection, obj=identifier, payload={"text": STRANGE_TEXT}, **values)
    if has_headers:
        await connection.execute(f'UPDATE {quoted} SET headers = \'{{"traceparent": "00"}}\'')
    await connection.execute(
        f"INSERT INTO {quote(STRANGE_SCHEMA)}.failure (outbox, region_name, shard_scope, shard_identifier, category,"
        " object_identifier, message_id, attempts, last_error) VALUES ($1, $2, $3, $4, $3, $4, 1, 2, $5)",
        STRANGE,
        region or "",
        -(2**31),
        str(identifier),
        STRANGE_TEXT,
    )
    narrow = ["--region", region] if region else []

    rows = [
        (await same_in_psql(file, database, arguments))[0]
        for arguments in (
            ["shards", *narrow],
            ["shards", "--stuck", *narrow],
            ["inspect", *narrow, "--", STRANGE, str(identifier)],
            ["object", *narrow, "--", STRANGE, str(identifier)],
            ["depth", *narrow, STRANGE],
        )
    ]

    as_json = identifier if isinstance(identifier, int) else str(identifier)
    assert [row.get("shard_identifier") for row in rows] == [as_json] * 4 + [None]
    assert [row.get("object_identifier") for row in rows[1:4]] == [as_json] * 3
    assert [row.get("region_name") for row in rows[:4]] == [region] * 4
    assert {row["outbox"] for row in rows} == {STRANGE}
    assert {row.get("category_name", STRANGE) for row in rows} == {STRANGE}
    assert [row["depth"] for row in (rows[0], rows[1], rows[4])] == [1, 1, 1]
    assert [row["payload"] for row in rows[2:4]] == [{"text": STRANGE_TEXT}] * 2
    assert [row["headers"] for row in rows[2:4]] == [{"traceparent": "00"} if has_headers else None] * 2
    assert [row["last_error"] for row in rows[1:4]] == [STRANGE_TEXT] * 3
