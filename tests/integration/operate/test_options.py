"""`outboxd options`: what is set, by whom and why; what is refused; what the daemon makes of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import option_keys, setting, switching
from outboxd.load import load
from outboxd.options import SwitchBoard
from outboxd.query import fetch
from outboxd.switching import By

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config
    from tests.integration.operate.switched import Here

OUTBOXES = "outbox.disabled_outboxes"
CATEGORIES = "outbox.disabled_categories"
SHARDS = "outbox.disabled_shards.ORGANIZATION_SCOPE"
VERSION = "outbox_replication.organizationmember.replication_version"


def configuration(here: Here) -> Config:
    return load(here.file, environ={}).config


async def rows(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch("SELECT key, value FROM outboxd.option ORDER BY key")


async def test_an_option_is_set_shown_and_unset(here: Here, connection: asyncpg.Connection) -> None:
    done = await here.run("options", "set", CATEGORIES, '["TEAM"]', "--reason", "bad deploy", "--expires", "2h")
    shown = await here.run("options", "get", CATEGORIES)
    [row] = await here.json("options", "list")

    assert done.stdout.startswith(f'{CATEGORIES} = ["TEAM"] by ')
    assert done.stdout.endswith(" UTC: bad deploy\n")
    assert shown.stdout == '["TEAM"]\n'
    times = {name: row.pop(name) for name in ("updated_at", "expires_at")}
    assert await connection.fetchval(
        "SELECT $2::text::timestamptz - $1::text::timestamptz = interval '2 hours'", *times.values()
    )
    assert row == {
        "key": CATEGORIES,
        "value": ["TEAM"],
        "state": "in force",
        "problem": None,
        "updated_by": switching.account(),
        "reason": "bad deploy",
    }
    unset = await here.run("options", "unset", CATEGORIES, "--reason", "mended")
    assert unset.stdout == f"{CATEGORIES} is unset\n"
    assert unset.events("option.unset")[0]["reason"] == "mended"
    assert await rows(connection) == []


async def test_setting_replaces_value_reason_and_end(here: Here, connection: asyncpg.Connection) -> None:
    await here.run("options", "set", SHARDS, "[1]", "--reason", "first", "--expires", "2h", "--author", "alice")

    done = await here.run("options", "set", SHARDS, "[2]", "--author", "bob")

    assert done.stdout == f"{SHARDS} = [2] by bob (was: [1], in force)\n"
    assert (await here.json("options", "get", SHARDS)).items() >= {"reason": None, "expires_at": None}.items()


async def test_the_list_marks_what_does_not_count_and_what_means_nothing(
    here: Here, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO outboxd.option (key, value, expires_at, updated_at) VALUES"
        f" ('old.key', '1', NULL, now()), ('{OUTBOXES}', '[\"region\", \"regoin\"]', NULL, now()),"
        f" ('{CATEGORIES}', '[\"TEAM\"]', now(), now()), ('{SHARDS}', '[1]', NULL, now() + interval '1 hour')"
    )

    found = {row["key"]: (row["state"], row["problem"]) for row in await here.json("options", "list", "--all")}

    assert found.pop("old.key") == ("in force", "unknown key")
    assert found.pop(OUTBOXES) == ("in force", "expected a list of names of outboxes")
    assert found.pop(CATEGORIES) == ("expired", None)
    assert found.pop(SHARDS) == ("lifted", None)
    assert set(found.values()) == {("not set", None)}
    assert VERSION in found
    text = (await here.run("options", "list")).stdout
    assert "  expired, since " in text
    assert "  has no effect, or not all of it has: unknown key" in text
    assert (await here.run("options", "get", CATEGORIES, code=1)).stderr == f"{CATEGORIES} is expired\n"


@pytest.mark.parametrize("arguments", [("options", "list"), ("options", "list", "--all")])
async def test_psql_returns_what_the_command_shows(
    here: Here, connection: asyncpg.Connection, arguments: tuple[str, ...]
) -> None:
    await here.run("options", "set", SHARDS, '[1, "2"]', "--reason", "it's broken", "--expires", "1d")
    await connection.execute("INSERT INTO outboxd.option (key, value) VALUES ('it''s old', '{\"a\": [null]}')")

    assert await here.in_psql(*arguments) == await here.json(*arguments)


@pytest.mark.parametrize("key", [SHARDS, CATEGORIES])
async def test_psql_returns_the_one_option_that_get_shows(here: Here, key: str) -> None:
    await here.run("options", "set", SHARDS, '[1, "2"]', "--reason", "it's broken")
    await here.run("options", "set", OUTBOXES, "[]")
    code = 0 if key == SHARDS else 1

    assert await here.in_psql("options", "get", key) == [await here.json("options", "get", key, code=code)]
    assert "exclude each other" in await here.refused("options", "get", key, "--json", "--sql")


async def test_what_could_be_set_is_spoken_of_only_where_it_is_shown(here: Here) -> None:
    headers = [(await here.run("options", "list", *more, "--sql")).stdout_lines[0] for more in ([], ["--all"])]

    assert headers == ["-- The options that are set.", "-- The options that are set, and those that could be."]
    assert "could be" not in (await here.run("options", "list", "--sql")).stdout


async def test_an_option_that_ends_before_it_would_come_back_does_not_come_back(here: Here) -> None:
    await here.run("options", "set", SHARDS, "[1]", "--expires", "90s")
    await here.run("options", "set", OUTBOXES, "[]", "--expires", "2h")

    sooner = await here.run("options", "unset", SHARDS, "--expires", "1h")
    later = await here.run("options", "unset", OUTBOXES, "--expires", "1h")

    assert sooner.stdout == f"{SHARDS} is unset; it does not come back: it ends before that\n"
    assert later.stdout == f"{OUTBOXES} is unset; it comes back after 1h\n"


LISTS = [
    '["TEAM"]',
    "[]",
    '["region"]',
    '["x"]',
    "[1]",
    "[1.0]",
    "[1.5]",
    "[null]",
    "[[1]]",
    "[true]",
    "[1e400]",
    "[1, 1e5000]",
]
LISTS += [f"[{'9' * 5_000}]", f"[1, {'[' * 2_000}{']' * 2_000}]"]
OTHERS = ['["TEAM", 1]', "{}", "null", '"1"', "0", "3", "-1", "1.5", "true", "1e2"]


@pytest.mark.parametrize("value", [*LISTS, *OTHERS])
async def test_the_list_finds_the_problems_that_the_daemon_finds(
    here: Here, connection: asyncpg.Connection, value: str
) -> None:
    config = configuration(here)
    known = option_keys.known(config)
    for name in known:
        await connection.execute("INSERT INTO outboxd.option (key, value) VALUES ($1, $2)", name, value)

    found = await fetch(connection, setting.options_query(config, unset_too=False), "reading")

    texts = {row[0]: row[1] for row in await rows(connection)}
    assert {row["key"] for row in found if row["problem"]} == {
        name for name, key in known.items() if key.read(texts[name])[1]
    }


async def test_a_value_comes_from_a_file_too(here: Here, connection: asyncpg.Connection) -> None:
    file = here.file.parent / "shards.json"
    file.write_text("[1, 2]\n")

    await here.run("options", "set", SHARDS, f"@{file}")

    assert [json.loads(row["value"]) for row in await rows(connection)] == [[1, 2]]


async def test_a_number_of_a_category_is_stored_as_its_name(here: Here) -> None:
    await here.run("options", "set", CATEGORIES, '[2, "MEMBER"]')

    assert (await here.run("options", "get", CATEGORIES)).stdout == '["TEAM", "MEMBER"]\n'


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown key": (("set", "outbox.disabled_outboxs", "[]"), f"did you mean {OUTBOXES}?"),
    "unknown key to get": (("get", "outbox.disabled_outboxs"), f"did you mean {OUTBOXES}?"),
    "unknown key to unset": (("unset", "outbox.disabled_outboxs"), f"did you mean {OUTBOXES}?"),
    "no JSON": (("set", OUTBOXES, "[region]"), "the value is not JSON: expecting value (line 1, column 2)"),
    "no list": (("set", OUTBOXES, '"region"'), f'{OUTBOXES}: expected a list of names of outboxes, got "region"'),
    "unknown name": (("set", OUTBOXES, '["regoin"]'), 'got "regoin", did you mean region?'),
    "number of many digits": (("set", CATEGORIES, f"[{'9' * 5_000}]"), "names of categories, got 99999"),
    "unknown number": (("set", CATEGORIES, "[77]"), "expected a list of names of categories, got 77"),
    "no version": (("set", VERSION, '"1"'), f'{VERSION}: expected a whole number, 0 or more, got "1"\n'),
    "no shard": (("set", SHARDS, '["x"]'), f"{SHARDS}: expected identifiers of type bigint or uuid, got 'x'"),
    "no shard so written": (("set", SHARDS, '["007"]'), "got '007'"),
    "shard out of range": (("set", SHARDS, f"[{2**63}]"), f"got '{2**63}'"),
    "no duration": (("set", OUTBOXES, "[]", "--expires", "soon"), "--expires must be a duration, got 'soon'"),
    "expired duration": (("set", OUTBOXES, "[]", "--expires", "0s"), "--expires must be a duration, got '0s'"),
    "no file": (("set", OUTBOXES, "@/nowhere"), "cannot read /nowhere"),
    "both": (("list", "--json", "--sql"), "--json and --sql exclude each other"),
}


@pytest.mark.parametrize(("arguments", "error"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    here: Here, connection: asyncpg.Connection, arguments: tuple[str, ...], error: str
) -> None:
    assert error in await here.refused("options", *arguments)
    assert await rows(connection) == []


async def test_what_is_not_set_is_said_with_exit_code_1(here: Here) -> None:
    assert await here.refused("options", "get", OUTBOXES, code=1) == f"{OUTBOXES} is not set\n"
    assert await here.refused("options", "unset", OUTBOXES, code=1) == f"{OUTBOXES} is not set\n"
    assert (await here.json("options", "get", OUTBOXES, code=1))["state"] == "not set"
    assert (await here.run("options", "list")).stdout == "no option is set\n"


@pytest.mark.parametrize("strange", ["9" * 5_000, "1e5000", "[" * 2_000 + "]" * 2_000], ids=["digits", "large", "deep"])
async def test_a_value_that_python_cannot_read_is_shown_and_replaced(
    here: Here, connection: asyncpg.Connection, strange: str
) -> None:
    await connection.execute("INSERT INTO outboxd.option (key, value) VALUES ($1, $2)", SHARDS, f"[6, {strange}]")
    value = await connection.fetchval("SELECT value::text FROM outboxd.option")

    for arguments in (("get", SHARDS), ("list",), ("list", "--json"), ("get", SHARDS, "--json")):
        shown = (await here.run("options", *arguments)).stdout
        assert re.sub(r"\s", "", value) in re.sub(r"\s", "", shown)
    explained = await here.run("explain", "0", "6", "--outbox", "region")
    assert ("options set" in explained.stdout) is (not strange.startswith("["))
    await here.run("doctor", code=1)
    assert await here.run("options", "set", SHARDS, "[6]")


async def test_a_list_that_is_cut_says_so(here: Here, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO outboxd.option (key, value) SELECT n::text, '[]' FROM generate_series(1, 1001) AS n"
    )
    await connection.execute(
        "INSERT INTO outboxd.pause (kind, category) SELECT 'category', 1 FROM generate_series(1, 1001)"
    )
    lists = [("options", "list"), ("options", "list", "--all"), ("pause", "--list")]
    for arguments in [*lists, *((*each, "--json") for each in lists)]:
        assert (await here.run(*arguments)).stderr == "note: only the first 1,000 are shown\n", arguments


async def test_an_unknown_key_that_is_set_can_be_shown_and_unset(here: Here, connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO outboxd.option (key, value) VALUES ('old.key', '[1]')")

    assert (await here.run("options", "get", "old.key")).stdout == "[1]\n"
    await here.run("options", "unset", "old.key")
    assert await rows(connection) == []


async def test_what_is_unset_for_a_while_comes_back_by_itself(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    config = configuration(here)
    board = SwitchBoard(config, lambda: database)
    await setting.set_option(connection, config, OUTBOXES, '["region"]', By("alice", "maintenance"))
    await board.refresh()
    assert board.now.outboxes == {"region"}

    done = await here.run("options", "unset", OUTBOXES, "--expires", "1h")
    await board.refresh()
    assert board.now.outboxes == set()

    await connection.execute("UPDATE outboxd.option SET updated_at = updated_at - interval '1 hour'")  # time passes
    await board.refresh()
    assert board.now.outboxes == {"region"}
    await board.close()
    assert done.stdout == f"{OUTBOXES} is unset; it comes back after 1h\n"
    row: Any = await here.json("options", "get", OUTBOXES)
    assert (row["reason"], row["updated_by"], row["state"]) == ("maintenance", "alice", "in force")
