"""What the commands that look at messages refuse, with which exit code, and what they say to do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

from outboxd import diagnosis, errors, query
from tests import terminal
from tests.drains import connected
from tests.processes import ROOT, Outboxd, run
from tests.trouble import DEEP, FAILING, Trouble

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


async def test_a_negative_identifier_is_told_where_it_belongs(trouble: Trouble) -> None:
    said = await refused(trouble, "inspect", "0", "-5")

    assert "hint: What begins with a dash and is no option stands last, behind --" in said
    assert (await run("inspect", "0", "--", "-5", config=trouble.file)).returncode == 0


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
        done = await run(*arguments, config=trouble.file)
        assert (done.returncode, "hint: Run `outboxd migrate`" in done.stderr) == (78, True)
    await connection.execute("ALTER SCHEMA outboxd RENAME TO other")
    for arguments in COMMANDS:
        said = await refused(trouble, *arguments, code=78)
        assert "the database has no schema outboxd of outboxd\nhint: Run `outboxd migrate`." in said


@pytest.mark.parametrize("flags", [(), ("--stuck",)], ids=["deepest", "stuck"])
async def test_an_outbox_whose_table_is_missing_does_not_hide_the_others(
    trouble: Trouble, flags: tuple[str, ...]
) -> None:
    alone = await run("shards", *flags, "--outbox", "region", "--json", config=trouble.file)
    trouble.file.write_text(trouble.file.read_text().replace('table = "control_outbox"', 'table = "nothing"'))

    done = await run("shards", *flags, "--json", config=trouble.file)
    table = await run("shards", *flags, config=trouble.file)

    assert (done.returncode, table.returncode) == (78, 78)
    places = [[(row["outbox"], row["shard_identifier"]) for row in json.loads(each.stdout)] for each in (done, alone)]
    assert places[0] == places[1] != []
    assert f"ORGANIZATION_SCOPE {FAILING} " in table.stdout
    assert "error: outbox control: there is no table nothing" in done.stderr
    assert "write schema.table when it lies outside the search_path" in done.stderr


async def test_an_outbox_that_is_locked_does_not_hide_the_others(trouble: Trouble) -> None:
    async with connected(trouble.dsn) as other:
        await other.execute("BEGIN; LOCK TABLE control_outbox")

        done = await run("shards", "--json", config=trouble.file)

    assert done.returncode == 1
    assert {row["outbox"] for row in json.loads(done.stdout)} == {"region"}
    assert "outbox control" in done.stderr
    assert "outboxd doctor" in done.stderr


async def test_what_is_asked_outbox_by_outbox_comes_in_one_order(trouble: Trouble) -> None:
    together = await run("shards", "--limit", "20", "--json", config=trouble.file)
    trouble.file.write_text(trouble.file.read_text() + '[[outbox]]\nname = "lost"\ntable = "nothing"\n')
    done = await run("shards", "--limit", "20", "--json", config=trouble.file)

    assert done.returncode == 78
    depths = [row["depth"] for row in json.loads(done.stdout)]
    assert depths == [row["depth"] for row in json.loads(together.stdout)] == sorted(depths, reverse=True)
    assert {row["outbox"] for row in json.loads(done.stdout)} == {"region", "control"}


async def test_where_no_outbox_can_be_looked_at_the_first_is_named(trouble: Trouble) -> None:
    text = trouble.file.read_text()
    for table in ("outbox", "control_outbox"):
        text = text.replace(f'table = "{table}"', f'table = "lost_{table}"')
    trouble.file.write_text(text)

    assert "error: outbox region: there is no table lost_outbox" in await refused(trouble, "shards", code=78)


async def test_of_a_table_outside_the_search_path_it_is_said_how_to_name_it(
    trouble: Trouble, connection: asyncpg.Connection
) -> None:
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET search_path = pg_catalog')

    for arguments in COMMANDS:
        said = await refused(trouble, *arguments, "--outbox", "region", code=78)
        assert "outbox region: there is no table outbox" in said
        assert "write schema.table" in said


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
            assert (done.returncode, "error" in done.stderr) == (0, False)
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
    assert output.split() == b"id category object written due tries payload".split()


@pytest.mark.parametrize("columns", [40, 70, 100])
async def test_a_terminal_of_any_width_shows_everything(trouble: Trouble, columns: int) -> None:
    plain = {}
    for arguments in COMMANDS:
        shown = await terminal.run(trouble.file, *arguments, columns=columns)
        plain[" ".join(arguments)] = STYLE.sub("", shown).replace("\r", "")
        table = plain[" ".join(arguments)].partition("\n\n")[0]
        assert max(map(len, table.splitlines())) <= columns, arguments

    if columns == 40:
        assert "shard: ORGANIZATION_SCOPE 3\noutbox: region\ndepth: 12\n" in plain["shards"]
    if columns == 100:
        assert re.search(
            r"^ORGANIZATION_SCOPE 3 +region +12 +0 .+ in backoff for (39|40) min", plain["shards"], re.MULTILINE
        )


@pytest.mark.parametrize("columns", [100, 80, 60, 40])
async def test_no_table_breaks_inside_a_word(trouble: Trouble, columns: int) -> None:
    """Nor between a scope and its identifier; at 100 columns it is a table still, as old as messages may be."""
    for table in ("outbox", "control_outbox"):
        await trouble.connection.execute(f"UPDATE {table} SET date_added = now() - interval '23 h 58 min'")
    for arguments in (["shards"], ["shards", "--stuck"], ["pause", "--list"]):
        shown = STYLE.sub("", await terminal.run(trouble.file, *arguments, columns=columns)).replace("\r", "")
        lines = shown.splitlines()

        assert max(map(len, lines)) <= columns
        if columns == 100:
            assert lines[0].split()[0] in ("shard", "pause")
            assert len(shown.partition("\n\n")[0].splitlines()) <= 11
        whole = "ORGANIZATION_SCOPE 6" if arguments != ["shards", "--stuck"] else "ORGANIZATION_SCOPE 10"
        assert any(re.search(rf"{whole}\b", line) for line in lines), shown


async def test_errors_options_and_reasons_fold_on_a_narrow_terminal(trouble: Trouble) -> None:
    for arguments in (
        ["options", "list", "--all"],
        ["options", "get", "outbox.disabled_shards.ORG"],
        ["dead-letters", "list"],
        ["inspect", "NOBODY", "1"],
    ):
        shown = await terminal.run(trouble.file, *arguments, columns=40)
        assert max(map(len, shown.replace("\r", "").splitlines())) <= 40, shown


async def test_a_closed_standard_output_makes_no_noise(trouble: Trouble) -> None:
    for arguments in ("shards --limit 100", "shards --stuck", "explain 0 3", "pause --list", "doctor", "options list"):
        line = f"{sys.executable} -m outboxd --config {trouble.file} {arguments} >&-"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", line), stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        _, complaints = await process.communicate()
        assert complaints == b""


async def test_a_locked_table_is_not_waited_for_long(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "LOCK_TIMEOUT_S", 0.2)
    config, outbox = trouble.config, trouble.config.outboxes[1]  # nobody has written to it
    async with connected(trouble.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE control_outbox")

        for asked in (
            diagnosis.shards(config, [outbox], limit=1, region=None),
            diagnosis.messages_of_shard(config, outbox, 1, "21", region="eu", limit=1),
        ):
            with pytest.raises(errors.StatementFailed, match="lock timeout") as caught:
                await query.fetch(trouble.connection, asked, "looking")
            assert caught.value.hint == "Somebody has locked the table: `outboxd doctor` names who."
