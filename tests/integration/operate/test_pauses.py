"""`outboxd pause` and `outboxd resume`: a row for each pause, who and why, and what still holds when one has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from outboxd import switching
from outboxd.load import load
from outboxd.options import SwitchBoard
from tests.drains import REGION, TEXT, Recorder, configure, drain_once, failing, write
from tests.integration.operate.switched import OUTBOXES, TEXT_OUTBOX

if TYPE_CHECKING:
    import asyncpg

    from tests.integration.operate.switched import Here

UUID = "0E5B2A0C-6A0B-4D43-9E9A-0A6F8D1F5C11"
SHARDS = "outbox.disabled_shards.ORGANIZATION_SCOPE"
SHARD = ("--scope", "ORGANIZATION_SCOPE", "--shard", "1")

COLUMNS = ("kind", "shard_scope", "shard_identifier", "region_name", "category", "outbox", "table_name")
COVERED: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "shard": (SHARD, "shard ORGANIZATION_SCOPE 1", {"shard_scope": 0, "shard_identifier": "1"}),
    "shard by number": (
        ("--scope", "1", "--shard", "-007"),
        "shard USER_SCOPE -7",
        {"shard_scope": 1, "shard_identifier": "-7"},
    ),
    "shard of an unknown scope": (
        ("--scope", "9", "--shard", "1"),
        "shard 9 1",
        {"shard_scope": 9, "shard_identifier": "1"},
    ),
    "shard in a region": (
        (*SHARD, "--region", "eu"),
        "shard ORGANIZATION_SCOPE 1 in eu",
        {"shard_scope": 0, "shard_identifier": "1", "region_name": "eu"},
    ),
    "shard with a uuid": (
        ("--scope", "0", "--shard", UUID),
        f"shard ORGANIZATION_SCOPE {UUID.lower()}",
        {"shard_scope": 0, "shard_identifier": UUID.lower()},
    ),
    "category": (("--category", "TEAM"), "category TEAM", {"category": 2}),
    "category by number": (("--category", "2"), "category TEAM", {"category": 2}),
    "unknown category": (("--category", "77"), "category 77", {"category": 77}),
    "outbox": (("--outbox", "control"), "outbox control", {"outbox": "control"}),
    "backfill": (
        ("--backfill", "organizationmember"),
        "backfill of organizationmember",
        {"table_name": "organizationmember"},
    ),
    "backfills": (("--backfill-all",), "backfill of every table", {}),
}


async def pauses(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch("SELECT * FROM outboxd.pause ORDER BY id")]


@pytest.mark.parametrize(("arguments", "subject", "columns"), COVERED.values(), ids=COVERED)
async def test_a_pause_is_a_row_and_resuming_by_the_same_words_ends_it(
    here: Here, connection: asyncpg.Connection, arguments: tuple[str, ...], subject: str, columns: dict[str, Any]
) -> None:
    done = await here.run("pause", *arguments, "--reason", "it's  down", "--expires", "2h", "--author", "alice")

    [row] = await pauses(connection)
    assert done.stdout.startswith(f"paused: {subject}, pause {row['id']} by alice, until 2")
    assert done.stdout.endswith(" UTC: it's down\n")
    assert {name: row[name] for name in COLUMNS if row[name] is not None} == {"kind": row["kind"], **columns}
    assert (row["expires_at"] - row["created_at"]).total_seconds() == 7200
    assert (row["author"], row["reason"]) == ("alice", "it's  down")

    resumed = await here.run("resume", *arguments)

    assert resumed.stdout.startswith(f"resumed: {subject}, pause {row['id']} by alice, until ")
    assert await pauses(connection) == []


async def test_a_pause_without_author_is_that_of_the_account(here: Here) -> None:
    [row] = await here.json("pause", "--outbox", "region")

    assert (row["author"], row["reason"], row["expires_at"]) == (switching.account(), None, None)


async def test_a_text_is_an_identifier_where_an_outbox_has_texts(here: Here, connection: asyncpg.Connection) -> None:
    here.configure(TEXT_OUTBOX, model="")

    await here.run("pause", "--scope", "0", "--shard", "it's 'x'")

    assert [row["shard_identifier"] for row in await pauses(connection)] == ["it's 'x'"]


async def test_a_shard_is_paused_as_each_outbox_reads_its_identifier(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    here.configure(OUTBOXES + TEXT_OUTBOX, model="")
    await write(connection, shard=7)
    await write(connection, shard="007", obj="x", table="text_outbox")
    seen = Recorder()

    done = await here.run("pause", "--scope", "0", "--shard", "007")
    await drain_once(database, seen, configure(REGION, TEXT))

    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"paused: shard ORGANIZATION_SCOPE {n}" for n in ("7", "007")]
    assert seen.messages == []
    await here.run("resume", "--scope", "0", "--shard", "007")
    assert await pauses(connection) == []


async def test_a_shard_can_be_paused_while_an_outbox_table_is_missing(
    here: Here, connection: asyncpg.Connection
) -> None:
    await connection.execute("DROP TABLE outbox; ALTER TABLE uuid_outbox DROP COLUMN shard_identifier")

    await here.run("pause", *SHARD)

    assert len(await pauses(connection)) == 1


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": (("pause",), "what is to be paused?"),
    "half a shard": (("pause", "--shard", "1"), "a shard is named by --scope and --shard together"),
    "a region alone": (("pause", "--region", "eu"), "a shard is named by --scope and --shard together"),
    "two things": (("pause", *SHARD, "--category", "TEAM"), "only one of --scope with --shard, --category"),
    "two kinds of backfill": (("pause", "--backfill", "organizationmember", "--backfill-all"), "only one of"),
    "unknown scope": (("pause", "--scope", "ORGANISATION_SCOPE", "--shard", "1"), "did you mean ORGANIZATION_SCOPE?"),
    "wrong type": (("pause", "--scope", "0", "--shard", "x"), "--shard must be an integer (bigint), got 'x'"),
    "empty region": (("pause", *SHARD, "--region", ""), "--region must not be empty"),
    "unknown category": (("pause", "--category", "TAEM"), "did you mean TEAM?"),
    "unknown outbox": (("pause", "--outbox", "regoin"), "there is no outbox regoin, did you mean region?"),
    "unknown table": (("pause", "--backfill", "member"), "there is no model of a table member"),
    "expired": (("pause", *SHARD, "--expires", "0s"), "--expires must be a duration, got '0s'"),
    "past": (("pause", *SHARD, "--expires", "-2h"), "--expires must be a duration, got '-2h'"),
    "nonsense": (("pause", *SHARD, "--expires", "2 hours"), "--expires must be a duration, got '2 hours'"),
    "for ever": (("pause", *SHARD, "--expires", "99999d"), "--expires must be a duration"),
    "list of one": (("pause", "--list", *SHARD), "--list takes no more than --json or --sql"),
    "sql of an act": (("pause", *SHARD, "--sql"), "--sql goes with --list"),
    "nothing to resume": (("resume",), "what is to be resumed?"),
    "too much to resume": (("resume", "1", *SHARD), "what is to be resumed?"),
    "all and one": (("resume", "--all", "1"), "what is to be resumed?"),
    "no id": (("resume", "one"), "'one' is not a valid integer"),
    "backfill now": (("resume", "--backfill-all", "--now"), "--now makes messages due"),
    "resume, nonsense": (("resume", "1", "--expires", "x"), "--expires must be a duration, got 'x'"),
    "resume all, nobody to ask": (("resume", "--all"), "nobody is there to answer"),
}


@pytest.mark.parametrize(("arguments", "error"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    here: Here, connection: asyncpg.Connection, arguments: tuple[str, ...], error: str
) -> None:
    await connection.execute("INSERT INTO outboxd.pause (kind, outbox) VALUES ('outbox', 'region')")
    before = await pauses(connection)

    assert error in await here.refused(*arguments)
    assert await pauses(connection) == before


async def test_a_region_is_refused_where_no_outbox_has_one(here: Here) -> None:
    here.configure(TEXT_OUTBOX, model="")

    assert "no outbox shards by region" in await here.refused("pause", *SHARD, "--region", "eu")


# --- the list ----------------------------------------------------------------------------------------------


async def everything_off(here: Here, connection: asyncpg.Connection) -> None:
    for number, (arguments, _, _) in enumerate(COVERED.values()):
        await here.run("pause", *arguments, "--author", f"alice {number}", "--reason", "it's down")
    await here.run("options", "set", SHARDS, '[1, 42.0, "43"]', "--reason", "their endpoint", "--expires", "1d")
    await connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_categories', '[\"TEAM\", \"TAEM\", 1]'),"
        " ('outbox.disabled_outboxes', '{}'), ('old.key', '[1]')"
    )
    await connection.execute(
        "INSERT INTO outboxd.pause (kind, outbox, expires_at) VALUES ('outbox', 'region', now() - interval '1 s')"
    )


async def test_the_list_has_every_pause_and_every_option_that_switches_something_off(
    here: Here, connection: asyncpg.Connection
) -> None:
    await everything_off(here, connection)

    found = await here.json("pause", "--list")

    assert sorted(f"{row['kind']} {row['what']}" for row in found if row["option"]) == [
        "category TEAM",
        "shard ORGANIZATION_SCOPE 1",
        "shard ORGANIZATION_SCOPE 42",
        "shard ORGANIZATION_SCOPE 43",
    ]
    assert [(switching.subject(row), row["author"], row["reason"]) for row in found if row["id"]] == [
        (subject, f"alice {number}", "it's down") for number, (_, subject, _) in enumerate(COVERED.values())
    ]
    assert all(row["in_force"] for row in found)
    text = (await here.run("pause", "--list")).stdout
    assert all(subject in text for _, subject, _ in COVERED.values())
    assert f"set by option {SHARDS}" in text


async def test_psql_returns_what_the_list_shows(here: Here, connection: asyncpg.Connection) -> None:
    await everything_off(here, connection)

    assert await here.in_psql("pause", "--list") == await here.json("pause", "--list")


async def test_a_list_of_nothing_says_so(here: Here) -> None:
    assert (await here.run("pause", "--list")).stdout == "nothing is switched off\n"
    assert await here.json("pause", "--list") == []


# --- the end -----------------------------------------------------------------------------------------------


async def test_of_two_pauses_ending_one_leaves_the_other_and_says_so(
    here: Here, connection: asyncpg.Connection
) -> None:
    await here.run("pause", *SHARD, "--author", "alice")
    await here.run("pause", *SHARD, "--author", "bob", "--reason", "not yet")

    done = await here.run("resume", "1", "--reason", "their endpoint is back")

    assert done.stdout.splitlines() == [
        "resumed: shard ORGANIZATION_SCOPE 1, pause 1 by alice",
        "still off: shard ORGANIZATION_SCOPE 1, pause 2 by bob: not yet",
    ]
    assert "End it: outboxd resume 2" in done.stderr
    [event] = done.events("pause.ended")
    assert (event["pauses"], event["reason"]) == ([1], "their endpoint is back")
    assert [row["id"] for row in await pauses(connection)] == [2]


async def test_resuming_by_name_ends_every_pause_of_it(here: Here, connection: asyncpg.Connection) -> None:
    for arguments in (SHARD, SHARD, (*SHARD, "--region", "eu"), ("--scope", "0", "--shard", "2")):
        await here.run("pause", *arguments)

    await here.run("resume", *SHARD)

    assert [row["shard_identifier"] for row in await pauses(connection)] == ["2"]


async def test_a_region_stays_off_while_all_regions_are(here: Here, connection: asyncpg.Connection) -> None:
    await here.run("pause", *SHARD)
    await here.run("pause", *SHARD, "--region", "eu")

    done = await here.run("resume", *SHARD, "--region", "eu", code=1)

    assert "still off: shard ORGANIZATION_SCOPE 1, pause 1" in done.stdout
    assert [row["region_name"] for row in await pauses(connection)] == [None]


async def test_a_backfill_stays_off_while_all_are(here: Here) -> None:
    await here.run("pause", "--backfill-all")
    await here.run("pause", "--backfill", "organizationmember")

    done = await here.run("resume", "--backfill", "organizationmember", code=1)

    assert "still off: backfill of every table, pause 1" in done.stdout


@pytest.mark.parametrize(
    ("key", "value", "arguments", "remedy"),
    [
        (SHARDS, '[1, 42, "it\'s"]', SHARD, f"""set {SHARDS} '[42, "it'"'"'s"]'"""),
        (SHARDS, '["1"]', SHARD, f"unset {SHARDS}"),
        ("outbox.disabled_categories", '["TEAM", "MEMBER"]', ("--category", "2"), """'["MEMBER"]'"""),
        ("outbox.disabled_outboxes", '["region"]', ("--outbox", "region"), "unset outbox.disabled_outboxes"),
    ],
)
async def test_what_an_option_switches_off_stays_off_and_how_to_lift_it_is_said(
    here: Here, connection: asyncpg.Connection, key: str, value: str, arguments: tuple[str, ...], remedy: str
) -> None:
    await here.run("pause", *arguments)
    await connection.execute("INSERT INTO outboxd.option (key, value, updated_by) VALUES ($1, $2, 'bob')", key, value)

    ended = await here.run("resume", *arguments, code=1)
    again = await here.run("resume", *arguments, code=1)

    assert ended.stdout.startswith("resumed: ")
    assert f", option {key} by bob\n" in ended.stdout
    for done in (ended, again):
        assert "is still off" in done.stderr
        assert f"outboxd options {remedy}" in done.stderr or remedy in done.stderr
    assert await pauses(connection) == []


async def test_resuming_what_is_not_paused_says_so_with_exit_code_1(here: Here, connection: asyncpg.Connection) -> None:
    await here.run("pause", "--scope", "0", "--shard", "2")

    assert "no pause covers this: nothing was changed" in await here.refused("resume", *SHARD, code=1)
    assert "there is no pause 9, 12" in await here.refused("resume", "12", "9", code=1)
    assert len(await pauses(connection)) == 1


async def test_resume_all_asks_and_ends_every_pause(here: Here, connection: asyncpg.Connection) -> None:
    await here.run("pause", *SHARD)
    await here.run("pause", "--backfill-all")

    done = await here.run("resume", "--all", "--yes")
    again = await here.run("resume", "--all", "--yes")

    assert len(done.stdout_lines) == 2
    assert again.stdout == "nothing is paused\n"
    assert await pauses(connection) == []


async def test_an_expired_pause_can_be_cleared_by_its_id(here: Here, connection: asyncpg.Connection) -> None:
    await here.run("pause", *SHARD, "--expires", "1s")
    await connection.execute("UPDATE outboxd.pause SET expires_at = now()")

    done = await here.run("resume", "1")

    assert done.stdout == "resumed: pause 1, which had expired\n"
    assert await pauses(connection) == []


async def test_what_is_resumed_for_a_while_is_paused_again_by_itself(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    board = SwitchBoard(load(here.file, environ={}).config, lambda: database)
    await here.run("pause", *SHARD, "--author", "alice", "--reason", "their endpoint is down")

    done = await here.run("resume", *SHARD, "--expires", "1h")

    await board.refresh()
    assert board.now.shards == set()
    assert done.stdout.startswith("resumed for a while: shard ORGANIZATION_SCOPE 1, pause 1 by alice")
    listed = await here.run("pause", "--list")
    assert "pause 1 was lifted for a while; it counts again from then on" in listed.stdout
    await connection.execute("UPDATE outboxd.pause SET created_at = created_at - interval '1 hour'")  # time passes
    await board.refresh()
    assert board.now.shards == {(0, "1", None)}
    await board.close()
    [row] = await here.json("pause", "--list")
    assert (row["in_force"], row["reason"]) == (True, "their endpoint is down")


# --- resume --now ------------------------------------------------------------------------------------------


async def in_backoff(database: str, connection: asyncpg.Connection) -> None:
    """Two categories of shard 1 and one of shard 2 have failed."""
    for category, shard in (("SKIPPING", 1), ("TEAM", 1), ("TEAM", 2)):
        await write(connection, category=category, shard=shard)
    await drain_once(database, Recorder(failing()), configure())
    assert await due(connection) == []


async def due(connection: asyncpg.Connection) -> list[tuple[int, int]]:
    """The shards and categories of the messages that are due."""
    rows = await connection.fetch(
        "SELECT shard_identifier, category FROM outbox WHERE scheduled_for <= now() ORDER BY id"
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (SHARD, [(1, 4), (1, 2)]),
        (("--category", "TEAM"), [(1, 2), (2, 2)]),
        (("--outbox", "region"), [(1, 4), (1, 2), (2, 2)]),
    ],
)
async def test_what_is_in_backoff_keeps_its_time_unless_it_is_resumed_now(
    here: Here,
    database: str,
    connection: asyncpg.Connection,
    arguments: tuple[str, ...],
    expected: list[tuple[int, int]],
) -> None:
    await in_backoff(database, connection)
    await here.run("pause", *arguments)
    await here.run("pause", *arguments)
    await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour'")

    await here.run("resume", "1")
    assert await due(connection) == []
    done = await here.run("resume", *arguments, "--now")

    assert await due(connection) == expected
    assert f"made due: {len(expected)} messages in " in done.stdout


async def test_resume_now_passes_over_an_outbox_that_is_broken_and_says_so(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    await in_backoff(database, connection)
    await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour'")
    await connection.execute("DROP TABLE control_outbox")
    here.configure(OUTBOXES)
    await here.run("pause", *SHARD)

    done = await here.run("resume", *SHARD, "--now", code=78)

    assert done.stderr.count("there is no table control_outbox") == 1
    assert await due(connection) == [(1, 4), (1, 2)]
