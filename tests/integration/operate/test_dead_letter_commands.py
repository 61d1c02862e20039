"""`bury`, `dead-letters` and `drain`, typed against a database with all kinds of trouble."""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import acts
from outboxd.claims import SHARD_CLASS
from outboxd.inspection import inspect_table
from tests import psql, terminal
from tests.drains import remaining, write
from tests.letters import letter_ids, write_letters
from tests.processes import run
from tests.trouble import BURIED, CATEGORY_OFF, FAILING, HEALTHY, PAUSED, SWITCHED_OFF

if TYPE_CHECKING:
    from tests.processes import Outboxd
    from tests.trouble import Trouble


async def typed(trouble: Trouble, *arguments: str, **options: Any) -> Outboxd:
    done = await run(*arguments, config=trouble.file, **options)
    assert "Traceback" not in done.stderr
    return done


async def rows_of(trouble: Trouble, *arguments: str) -> Any:
    done = await typed(trouble, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_the_list_is_of_the_newest_first_and_fits_100_columns(trouble: Trouble) -> None:
    found = await rows_of(trouble, "dead-letters", "list")
    printed = await typed(trouble, "dead-letters", "list", "--category", "TEAM")

    assert [row["id"] for row in found] == [3, 2, 1]
    assert {(row["outbox"], row["region_name"], row["scope_name"]) for row in found} == {
        ("region", None, "ORGANIZATION_SCOPE"),
        ("control", "eu", "USER_SCOPE"),
    }
    assert max(len(line) for line in printed.stdout_lines) <= 100
    assert len(printed.stdout_lines) == 2


async def test_the_list_folds_on_a_terminal(trouble: Trouble) -> None:
    wide = STYLE.sub("", await terminal.run(trouble.file, "dead-letters", "list", columns=100))
    narrow = STYLE.sub("", await terminal.run(trouble.file, "dead-letters", "list", columns=40))

    assert max(len(line.rstrip()) for line in wide.splitlines()) <= 100
    assert {"category: LIMITED", "tries: 3", "shard: eu USER_SCOPE 23"} <= {
        line.rstrip() for line in narrow.splitlines()
    }


async def test_who_says_no_has_changed_nothing(trouble: Trouble) -> None:
    shown = await terminal.run(trouble.file, "dead-letters", "purge", "--all", answer="n")

    assert "Delete 1 dead letter of outbox control and 2 dead letters of outbox region for good?" in shown
    assert "nothing was changed" in shown
    assert await letter_ids(trouble.connection) == [1, 2, 3]


STYLE = re.compile(r"\x1b\[[0-9;]*m")
SELECTIONS: list[list[str]] = [
    [],
    ["--category", "TEAM"],
    ["--outbox", "control", "--region", "eu"],
    ["--scope", "ORGANIZATION_SCOPE", "--shard", str(BURIED), "--limit", "1"],
    ["--older-than", "1d"],
    ["--newer-than", "1d"],
]


async def test_the_sql_of_a_list_returns_in_psql_what_the_command_shows(trouble: Trouble) -> None:
    for options in SELECTIONS:
        asked = await typed(trouble, "dead-letters", "list", *options, "--sql")
        assert asked.stdout.startswith("-- ")
        assert await psql.rows_of(trouble.dsn, asked.stdout) == await rows_of(trouble, "dead-letters", "list", *options)
    asked = await typed(trouble, "dead-letters", "show", "2", "--sql")
    assert await psql.rows_of(trouble.dsn, asked.stdout) == [await rows_of(trouble, "dead-letters", "show", "2")]


async def test_sql_needs_no_database(trouble: Trouble) -> None:
    for arguments in (["list"], ["show", "1"]):
        asked = await typed(
            trouble, "dead-letters", *arguments, "--sql", env={"OUTBOX_DSN": "postgresql://nowhere.invalid/x"}
        )
        assert (asked.returncode, asked.stderr) == (0, "")


async def test_show_tells_everything_with_every_digit(trouble: Trouble) -> None:
    payload = '{"big": 1e400, "exact": 0.1000000000000000055511151231257827, "n": 123456789012345678901234567890}'
    [letter] = await write_letters(trouble.connection, payload=payload, shard="11", category=999)

    document = await typed(trouble, "dead-letters", "show", str(letter), "--json")
    printed = await typed(trouble, "dead-letters", "show", str(letter))

    for shown in (document.stdout, printed.stdout):
        assert "0.1000000000000000055511151231257827" in shown
        assert "123456789012345678901234567890" in shown
        assert "1" + "0" * 400 in shown
    parsed = json.loads(document.stdout)
    assert (parsed["id"], parsed["category_name"], parsed["buried_by"]) == (letter, "999", "ada")
    for words in ("999", "it never worked", "ada", "2026-01-02 03:04:05 UTC"):
        assert words in printed.stdout


async def test_show_takes_a_payload_of_megabytes_and_one_that_is_nested_deeply(trouble: Trouble) -> None:
    [large] = await write_letters(trouble.connection, payload=json.dumps({"t": "x" * 3_000_000}))
    [deep] = await write_letters(trouble.connection, payload="[" * 3_000 + "]" * 3_000)

    assert len((await typed(trouble, "dead-letters", "show", str(large))).stdout) > 3_000_000
    for options in ([], ["--json"]):
        done = await typed(trouble, "dead-letters", "show", str(deep), *options)
        assert done.returncode == 0
        assert "[[[[" in done.stdout.replace(" ", "").replace("\n", "")


async def test_show_of_nothing_is_exit_code_1(trouble: Trouble) -> None:
    done = await typed(trouble, "dead-letters", "show", "99")

    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no dead letter 99" in done.stderr


async def test_one_goes_back_without_a_question(trouble: Trouble) -> None:
    done = await typed(trouble, "dead-letters", "retry", "2")

    assert (done.returncode, done.stdout) == (0, "outbox region: 1 dead letter put back, due now\n")
    assert await letter_ids(trouble.connection) == [1, 3]


@pytest.mark.parametrize("act", ["retry", "purge"])
async def test_many_are_asked_for_and_without_anybody_to_answer_nothing_is_done(trouble: Trouble, act: str) -> None:
    for which in (["--all"], ["1", "2"], ["--category", "TEAM"]):
        done = await typed(trouble, "dead-letters", act, *which)
        assert done.returncode == 2
        assert "nobody is there to answer" in done.stderr

    assert await letter_ids(trouble.connection) == [1, 2, 3]


async def test_a_purge_of_one_is_asked_for_too(trouble: Trouble) -> None:
    assert (await typed(trouble, "dead-letters", "purge", "1")).returncode == 2

    done = await typed(trouble, "dead-letters", "purge", "1", "--yes")

    assert (done.returncode, done.stdout) == (0, "1 dead letter deleted\n")
    assert await letter_ids(trouble.connection) == [2, 3]


async def test_all_go_back_to_their_own_outboxes(trouble: Trouble) -> None:
    done = await typed(trouble, "dead-letters", "retry", "--all", "--yes")

    assert done.stdout_lines == [
        "outbox control: 1 dead letter put back, due now",
        "outbox region: 2 dead letters put back, due now",
    ]
    assert await letter_ids(trouble.connection) == []
    row = await trouble.connection.fetchrow("SELECT region_name, shard_identifier FROM control_outbox WHERE id = 3")
    assert row is not None
    assert tuple(row) == ("eu", 23)


async def test_those_of_an_outbox_that_is_not_configured_stay_and_can_be_purged(trouble: Trouble) -> None:
    [letter] = await write_letters(trouble.connection, outbox="old")

    for which in ([str(letter)], ["--outbox", "old"]):
        done = await typed(trouble, "dead-letters", "retry", *which, "--yes")
        assert done.returncode == 1
        assert "outbox old: 1 dead letter stay: no such outbox is configured" in done.stderr
    assert letter in await letter_ids(trouble.connection)

    assert (await typed(trouble, "dead-letters", "purge", "--outbox", "old", "--yes")).returncode == 0
    assert letter not in await letter_ids(trouble.connection)


async def test_those_of_another_silo_stay(trouble: Trouble) -> None:
    done = await typed(trouble, "dead-letters", "retry", "1", env={"OUTBOX_SILO_MODE": "region"})

    assert done.returncode == 1
    assert "the outbox is not of silo mode region" in done.stderr


async def test_one_whose_id_is_taken_stays_with_exit_code_1(trouble: Trouble) -> None:
    [letter] = await write_letters(trouble.connection, first_message=await write(trouble.connection))

    done = await typed(trouble, "dead-letters", "retry", str(letter))

    assert (done.returncode, done.stdout) == (1, "outbox region: 0 dead letters put back, due now\n")
    assert "their ids are taken" in done.stderr


WRONG: list[tuple[list[str], int, str]] = [
    (["retry"], 2, "which dead letters?"),
    (["purge"], 2, "which dead letters?"),
    (["retry", "1", "--all"], 2, "exclude each other"),
    (["purge", "1", "--category", "TEAM"], 2, "exclude each other"),
    (["retry", "--shard", "3"], 2, "--shard without --scope"),
    (["retry", "1", "77"], 1, "there is no dead letter 77"),
    (["retry", "0"], 2, "0 is not in the range"),
    (["retry", "x"], 2, "not a valid integer"),
    (["list", "--category", "TEEM"], 2, "did you mean TEAM?"),
    (["list", "--scope", "NOPE"], 2, "there is no scope NOPE"),
    (["list", "--older-than", "yesterday"], 2, "--older-than must be a duration"),
    (["list", "--limit", "0"], 2, "0 is not in the range"),
    (["list", "--json", "--sql"], 2, "exclude each other"),
]


async def test_what_cannot_be_is_said_and_nothing_is_done(trouble: Trouble) -> None:
    for arguments, code, words in WRONG:
        done = await typed(trouble, "dead-letters", *arguments, *(["--yes"] if arguments[0] != "list" else []))
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert words in done.stderr, arguments
    assert await letter_ids(trouble.connection) == [1, 2, 3]


async def test_a_missing_privilege_is_named_with_its_grant(trouble: Trouble) -> None:
    role = f"looker_{os.getpid()}"
    await trouble.connection.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA outboxd TO {role}")
    try:
        done = await typed(
            trouble, "dead-letters", "list", env={"OUTBOX_DSN": trouble.dsn.replace("outbox@", f"{role}@")}
        )
        assert done.returncode == 78
        assert f"GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO {role};" in done.stderr
    finally:
        await trouble.connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_message_is_buried_by_whoever_is_logged_in(trouble: Trouble) -> None:
    failing = await trouble.connection.fetchval("SELECT message_id FROM outboxd.failure WHERE object_identifier = '31'")

    done = await typed(trouble, "bury", str(failing), "--reason", "their endpoint is gone", env={"SUDO_USER": "ada"})

    assert done.returncode == 0
    assert done.stdout == f"message {failing} (MEMBER 31) is dead letter 4; the rest of its shard is due\n"
    row = await trouble.connection.fetchrow("SELECT reason, buried_by, attempts FROM outboxd.dead_letter WHERE id = 4")
    assert row is not None
    assert tuple(row) == ("their endpoint is gone", "ada", 3)
    assert (await typed(trouble, "drain", "0", str(FAILING))).returncode == 0


async def test_burying_asks_for_more_than_one_and_needs_a_reason(trouble: Trouble) -> None:
    ids = [str(number) for number in (await remaining(trouble.connection))[:2]]

    assert "nobody is there to answer" in (await typed(trouble, "bury", *ids, "--reason", "x")).stderr
    assert "--reason must not be empty" in (await typed(trouble, "bury", ids[0], "--reason", "  ")).stderr
    assert (await typed(trouble, "bury", ids[0])).returncode == 2
    unknown = await typed(trouble, "bury", "987654321", "--reason", "x")
    assert (unknown.returncode, "has no message 987654321" in unknown.stderr) == (1, True)
    assert await letter_ids(trouble.connection) == [1, 2, 3]

    assert (await typed(trouble, "bury", *ids, "--reason", "x", "--yes")).returncode == 0
    assert await letter_ids(trouble.connection) == [1, 2, 3, 4, 5]


DRAINS: list[tuple[list[str], int, str]] = [
    (["ORGANIZATION_SCOPE", str(HEALTHY)], 0, "delivered 3"),
    (["0", str(FAILING)], 1, "MEMBER 31 (message 1): 4 attempts, next in "),
    (["0", str(PAUSED)], 1, "by ada, until "),
    (["0", str(SWITCHED_OFF)], 1, "by grace: they write too much"),
    (["0", str(CATEGORY_OFF)], 1, "category AUDIT: pause 3 by ada: bad deploy"),
    (["0", "404"], 0, "there was no message in it"),
    (["USER_SCOPE", "22", "--region", "us"], 1, "moving to another cell"),
    (["USER_SCOPE", "22", "--region", "eu"], 0, "delivered 1"),
    (["USER_SCOPE", "22", "--outbox", "control"], 2, "--region is missing"),
    (["0", "not-a-number"], 2, "must be an integer"),
    (["NOPE", "1"], 2, "there is no scope NOPE"),
]


async def test_a_drain_says_what_it_did_or_why_not(trouble: Trouble) -> None:
    for arguments, code, words in DRAINS:
        done = await typed(trouble, "drain", *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert words in (done.stdout if code == 0 or "attempts" in words else done.stderr), arguments


async def test_the_result_of_a_drain_is_one_json_object(trouble: Trouble) -> None:
    done = await typed(trouble, "drain", "0", str(FAILING), "--json")

    result = json.loads(done.stdout)
    assert (done.returncode, result["failed"], result["remaining"]) == (1, 1, 12)
    assert result["failures"][0]["object"] == "31"


async def test_a_shard_that_somebody_else_has_is_left_alone_with_exit_code_1(trouble: Trouble) -> None:
    table = await inspect_table(trouble.connection, trouble.config.outbox[0])
    key = await acts.lock_key(trouble.connection, trouble.config, table, (0, HEALTHY))
    waiting = await remaining(trouble.connection)
    await trouble.connection.execute("SELECT pg_advisory_lock($1::int4, $2::int4)", SHARD_CLASS, key)
    first = await trouble.connection.fetchval("SELECT id FROM outbox WHERE shard_identifier = $1", HEALTHY)

    drained, buried = await asyncio.gather(
        typed(trouble, "drain", "0", str(HEALTHY)), typed(trouble, "bury", str(first), "--reason", "x")
    )

    for done in (drained, buried):
        assert (done.returncode, done.stdout) == (1, "")
        assert "the shard is being drained by the session with backend pid" in done.stderr
    assert await remaining(trouble.connection) == waiting


async def test_the_spelling_of_a_shard_does_not_matter(trouble: Trouble) -> None:
    await trouble.connection.execute(
        "INSERT INTO outboxd.dead_letter (outbox, message_id, shard_scope, shard_identifier, category,"
        " object_identifier, scheduled_from, scheduled_for, date_added)"
        " VALUES ('region', 1, 0, 'd41d8cd98f00b204e9800998ecf8427e', 1, '1', now(), now(), now())"
    )

    for spelling in ("d41d8cd98f00b204e9800998ecf8427e", "D41D8CD9-8F00-B204-E980-0998ECF8427E"):
        listed = await run("dead-letters", "list", "--json", "--scope", "0", "--shard", spelling, config=trouble.file)
        assert [row["message_id"] for row in json.loads(listed.stdout)] == [1]
