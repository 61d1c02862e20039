"""What the commands that look at messages refuse, with which exit code, and what they say to do."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests import terminal
from tests.processes import ROOT, Outboxd, run
from tests.trouble import DEEP, Trouble

if TYPE_CHECKING:
    import asyncpg

COMMANDS = [["shards"], ["shards", "--stuck"], ["inspect", "0", "1"], ["depth", "1"], ["object", "1", "1"]]
STYLE = re.compile(r"\x1b\[[0-9;]*m")
UUID_OUTBOX = """
[[outbox]]
name = "uuid"
table = "uuid_outbox"
key_type = "uuid"
"""


async def refused(trouble: Trouble, *arguments: str, code: int = 2, **options: str) -> str:
    done: Outboxd = await run(*arguments, config=trouble.file, env=options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["inspect", "ORGANISATION_SCOPE", "1"],
            "there is no scope ORGANISATION_SCOPE, did you mean ORGANIZATION_SCOPE?",
        ),
        (["depth", "MEMBRE"], "did you mean MEMBER?"),
        (["object", "MEMBRE", "1"], "did you mean MEMBER?"),
        (["shards", "--outbox", "regio"], "there is no outbox regio, did you mean region?"),
        (["inspect", "0", "abc"], "the shard identifier must be an integer (bigint), got 'abc'"),
        (["inspect", "0", "9223372036854775808"], "the shard identifier must be an integer (bigint)"),
        (["object", "1", "1.5"], "the object identifier must be an integer (bigint), got '1.5'"),
        (["inspect", "1", "21", "--outbox", "control"], "outbox control shards by region: --region is missing"),
        (["shards", "--outbox", "region", "--region", "eu"], "outbox region has no region_name"),
        (["shards", "--region", ""], "--region must not be empty"),
        (["shards", "--limit", "0"], "0 is not in the range"),
        (["shards", "--json", "--sql"], "--json and --sql exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_what_cannot_be_meant_is_a_usage_error(trouble: Trouble, arguments: list[str], said: str) -> None:
    assert said in await refused(trouble, *arguments)


async def test_where_several_outboxes_fit_they_are_listed(trouble: Trouble) -> None:
    trouble.file.write_text(trouble.file.read_text() + UUID_OUTBOX)

    for arguments in (["inspect", "0", "1"], ["depth", "1"], ["object", "1", "1"]):
        said = await refused(trouble, *arguments)
        assert "2 outboxes fit: name one with --outbox: region (no region), control (with region), uuid" in said
    assert "must be a uuid, got '1'" in await refused(trouble, "inspect", "0", "1", "--outbox", "uuid")
    assert (await run("shards", config=trouble.file)).returncode == 0
    said = await refused(trouble, "shards", "--region", "eu", OUTBOX_SILO_MODE="region")
    assert "no outbox takes one: region (no region), uuid (no region)" in said


async def test_a_database_that_is_away_not_migrated_or_incomplete(
    trouble: Trouble, connection: asyncpg.Connection
) -> None:
    for arguments in COMMANDS:
        said = await refused(trouble, *arguments, code=69, OUTBOX_DSN="postgresql://nobody@127.0.0.1:1/x")
        assert "hint: Look whether PostgreSQL runs there" in said
    trouble.file.write_text(trouble.file.read_text().replace('table = "outbox"', 'table = "nothing"'))
    for arguments in COMMANDS:
        assert "hint: Run `outboxd migrate`" in await refused(trouble, *arguments, code=78)
    await connection.execute("ALTER SCHEMA outboxd RENAME TO other")
    for arguments in COMMANDS:
        said = await refused(trouble, *arguments, code=78)
        assert "the database has no schema outboxd of outboxd\nhint: Run `outboxd migrate`." in said


async def test_a_missing_privilege_is_answered_with_its_grant(trouble: Trouble, connection: asyncpg.Connection) -> None:
    role = f"onlooker_{os.getpid()}"  # roles belong to the server, not to the database
    dsn = re.sub(r"//[^@/]*@", f"//{role}@", trouble.dsn)
    await connection.execute(f"CREATE ROLE {role} LOGIN")
    await connection.execute(f"GRANT USAGE ON SCHEMA outboxd TO {role}; GRANT SELECT ON outboxd.migration TO {role}")
    try:
        for arguments in COMMANDS:
            said = await refused(trouble, *arguments, code=78, OUTBOX_DSN=dsn)
            assert f"GRANT SELECT ON public.outbox TO {role};" in said
            assert f"GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO {role};" in said
        await connection.execute(f"GRANT SELECT ON outbox, control_outbox TO {role}")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO {role}")
        for arguments in COMMANDS:
            done = await run(*arguments, config=trouble.file, env={"OUTBOX_DSN": dsn})
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_reader_who_leaves_early_is_no_error(trouble: Trouble) -> None:
    line = f"{sys.executable} -m outboxd --config {trouble.file} inspect 0 {DEEP} --limit 3000 | head -1"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"set -o pipefail; {line}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)},
    )
    output, complaints = await process.communicate()

    assert (process.returncode, complaints) == (141, b"")
    assert output.split() == b"id category object written due attempts payload".split()


@pytest.mark.parametrize("columns", [40, 70, 100])
async def test_a_terminal_of_any_width_shows_everything(trouble: Trouble, columns: int) -> None:
    plain = {}
    for arguments in COMMANDS:
        shown = await terminal.run(trouble.file, *arguments, columns=columns)
        plain[" ".join(arguments)] = STYLE.sub("", shown).replace("\r", "")
        table = plain[" ".join(arguments)].partition("\n\n")[0]
        assert max(map(len, table.splitlines())) <= columns, arguments

    if columns == 40:
        assert "shard: ORGANIZATION_SCOPE 3\noutbox: region\nregion: -\ndepth: 12\n" in plain["shards"]
    if columns == 100:
        assert re.search(
            r"^ORGANIZATION_SCOPE 3 +region +- +12 +0 .+ in backoff, for (39|40) min", plain["shards"], re.MULTILINE
        )
