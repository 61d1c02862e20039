"""docs/postgresql.md: every statement and command in it, run by the role that it names."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
import pytest

from outboxd import contract, dsn, inspection
from outboxd.config import Config
from tests import processes
from tests.acceptance.shop_database import DISCARDED, DOCUMENT, PASSWORD, REFUSED, blocks, granted, shop_database
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.acceptance.servers import ScramServer
    from tests.acceptance.shop_database import ShopDatabase

SECTIONS = {
    "Roles and grants": ["sql", "console", "sql", "sql", "sql", "sql"],
    "TLS": ["sh", "sql"],
    "Passwords that rotate": ["sh", "sql"],
    "Failover and standbys": ["sh", "sql"],
    "Poolers": ["toml"],
    "Connections": ["sql", "sql"],
    "Upgrades, and two versions at once": ["sql"],
    "Autovacuum": ["sql", "sql"],
    "Held snapshots": ["sh", "sql"],
}
KINDS = {
    "daemon": "outbox_daemon",
    "producer": "shop",
    "operator": "outbox_operator",
    "reader": "outbox_reader",
}
WRITE = (
    "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) VALUES (1, 1, 1, 1) RETURNING id"
)
PAUSE = "INSERT INTO outboxd.pause (kind, outbox) VALUES ('outbox', 'main')"
DENIED = asyncpg.InsufficientPrivilegeError


def test_every_block_is_run_here() -> None:
    found: dict[str, list[str]] = {}
    for block in blocks():
        found.setdefault(block.section, []).append(block.language)
    assert found == SECTIONS


@pytest.fixture
async def bare_shop(tmp_path: Path, scram: ScramServer) -> AsyncIterator[ShopDatabase]:
    """The roles, and nothing granted to them."""
    async with shop_database(tmp_path, scram) as made:
        yield made


@pytest.fixture
async def shop(bare_shop: ShopDatabase) -> ShopDatabase:
    """Migrated, and granted exactly what the document says."""
    await bare_shop.grant()
    return bare_shop


async def drained(shop: ShopDatabase) -> None:
    async def is_empty() -> bool:
        return await shop.count() == 0

    await eventually(is_empty)


# --- Roles and grants ----------------------------------------------------------------------------------------


async def test_check_prints_what_stands_there(bare_shop: ShopDatabase) -> None:
    (block,) = blocks("Roles and grants", "console")
    commands = re.findall(r"^\$ (.+)$", block.text, re.MULTILINE)
    expected = [line for line in block.text.splitlines() if not line.startswith("$")]

    printed = [bare_shop.shell(command, OWNER=bare_shop.dsn("outbox_owner")) for command in commands]

    assert "table outbox: created with its indexes" in printed[0]
    assert [line for line in printed[1].splitlines() if "-> GRANT" in line] == expected


@pytest.mark.parametrize("kind", KINDS)
async def test_the_documented_grants_are_exactly_those_that_check_asks_for(bare_shop: ShopDatabase, kind: str) -> None:
    role = KINDS[kind]
    await bare_shop.run("migrate", role="outbox_owner")
    asked = await bare_shop.run("check", "--role", kind, "--as", role, role="outbox_owner", code=78)

    statements = "".join(block.text for block in blocks("Roles and grants", "sql")[1:3])
    documented = {grant for grant in granted(statements) if grant[2] == role}
    assert set(granted(asked.stdout)) == documented

    await bare_shop.execute(*blocks("Roles and grants", "sql")[1:])
    assert f"role {role} can" in (await bare_shop.run("check", "--role", kind, role=role)).stdout


async def test_the_daemon_s_role_drains_and_backfills(shop: ShopDatabase) -> None:
    async with shop.connected("shop") as producer:
        await producer.execute("INSERT INTO account VALUES (1, 'free'), (2, 'pro')")
        await producer.fetchval(WRITE)
    async with shop.daemon() as daemon:
        await daemon.wait_for_event("daemon.ready")
        await drained(shop)

        async def walked() -> bool:
            return bool(await shop.admin.fetchval("SELECT version = 2 FROM outboxd.backfill_watermark"))

        await eventually(walked, error=daemon.stderr)
        await drained(shop)
    assert not [line for line in daemon.stderr_lines if "permission denied" in line]


async def test_what_holds_vacuum_back_is_among_the_metrics_of_the_daemon_s_role(shop: ShopDatabase) -> None:
    async with shop.daemon(OUTBOX_HTTP_LISTEN="127.0.0.1:0") as daemon:
        address = (await daemon.wait_for_event("http.listening"))["addresses"][0]

        async def told() -> bool:
            async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as answer:
                return "\noutboxd_oldest_snapshot_seconds " in await answer.text()

        await eventually(told)


async def test_check_says_what_the_metrics_lack_where_the_daemon_s_role_sees_no_activity(shop: ShopDatabase) -> None:
    asked = ("check", "--as", "outbox_daemon")
    listening = shop.environment("outbox_owner") | {"OUTBOX_HTTP_LISTEN": "127.0.0.1:0"}
    grant = "GRANT pg_read_all_stats TO outbox_daemon;"
    assert grant not in (await processes.run(*asked, config=shop.config, env=listening)).stdout

    await shop.admin.execute("REVOKE pg_read_all_stats FROM outbox_daemon")
    lacking = await processes.run(*asked, config=shop.config, env=listening)
    assert (lacking.returncode, f"-> {grant}" in lacking.stdout) == (0, True), lacking.stdout
    assert grant not in (await shop.run(*asked, role="outbox_owner")).stdout, "it has no metrics"


async def test_a_failure_and_a_burial_need_no_more_either(shop: ShopDatabase) -> None:
    for shard in (REFUSED, DISCARDED):
        await shop.admin.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) VALUES (1, $1, 1, 1)",
            shard,
        )

    await shop.run("--once", role="outbox_daemon", code=1)

    failures = await shop.admin.fetch("SELECT shard_identifier, last_error FROM outboxd.failure")
    assert [(row["shard_identifier"], "not today" in row["last_error"]) for row in failures] == [(str(REFUSED), True)]
    assert await shop.admin.fetchval("SELECT scheduled_for > now() FROM outbox")
    assert await shop.admin.fetchval("SELECT reason FROM outboxd.dead_letter") == "never"


async def test_a_daemon_without_its_grants_waits_for_them(bare_shop: ShopDatabase) -> None:
    await bare_shop.run("migrate", role="outbox_owner")
    async with bare_shop.daemon() as daemon:
        waiting = await daemon.wait_for_event("daemon.waiting")
        assert "permission denied" in waiting["error"]
        await bare_shop.execute(*blocks("Roles and grants", "sql")[1:])
        await daemon.wait_for_event("daemon.ready")


FORBIDDEN = {
    "shop": [
        "DELETE FROM outbox",
        "UPDATE outbox SET payload = NULL",
        "SELECT FROM outboxd.failure",
        PAUSE,
        "TRUNCATE outbox",
    ],
    "outbox_daemon": [
        "ALTER TABLE outbox ADD COLUMN more int",
        "DROP TABLE outboxd.pause",
        "CREATE TABLE more (id int)",
        "UPDATE account SET plan = 'free'",
    ],
    "outbox_operator": [
        "ALTER TABLE outbox ADD COLUMN more int",
        "CREATE TABLE outboxd.more ()",
        "DELETE FROM account",
    ],
    "outbox_reader": [WRITE, PAUSE, "DELETE FROM outbox", "DELETE FROM outboxd.failure", "DELETE FROM account"],
}
ALLOWED = {
    "shop": [WRITE],
    "outbox_operator": [
        PAUSE,
        "DELETE FROM outboxd.pause",
        """INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_outboxes', '[]')""",
        WRITE,
        "UPDATE outbox SET scheduled_for = now()",
        "DELETE FROM outbox",
        "DELETE FROM outboxd.dead_letter",
    ],
    "outbox_reader": [
        f"SELECT FROM outboxd.{table}" for table in ("failure", "pause", "option", "worker", "dead_letter")
    ]
    + ["SELECT FROM outbox"],
}


@pytest.mark.parametrize("role", FORBIDDEN)
async def test_a_role_can_do_nothing_more(shop: ShopDatabase, role: str) -> None:
    async with shop.connected(role) as connection:
        for statement in FORBIDDEN[role]:
            with pytest.raises(DENIED):
                await connection.execute(statement)


@pytest.mark.parametrize("role", ALLOWED)
async def test_a_role_can_do_what_it_is_for(shop: ShopDatabase, role: str) -> None:
    async with shop.connected(role) as connection:
        for statement in ALLOWED[role]:
            await connection.execute(statement)


@pytest.mark.parametrize("role", ["outbox_operator", "outbox_reader"])
async def test_commands_that_look_need_no_more_than_a_reader(shop: ShopDatabase, role: str) -> None:
    for command in (["catalog"], ["backfill", "status"]):
        done = await shop.run(*command, role=role)
        assert "permission denied" not in done.stdout + done.stderr, command


async def test_tables_of_a_later_migration_need_no_second_round(shop: ShopDatabase) -> None:
    async with shop.connected("outbox_owner") as owner:
        await owner.execute("CREATE TABLE outboxd.later (id int)")
    for role in ("outbox_daemon", "outbox_operator"):
        async with shop.connected(role) as connection:
            await connection.execute("INSERT INTO outboxd.later VALUES (1); UPDATE outboxd.later SET id = 2")
    async with shop.connected("outbox_reader") as reader:
        assert await reader.fetchval("SELECT count(*) FROM outboxd.later") == 2
        with pytest.raises(DENIED):
            await reader.execute("DELETE FROM outboxd.later")


# --- TLS, passwords, failover, poolers -----------------------------------------------------------------------


def exported(section: str) -> list[str]:
    (block,) = blocks(section, "sh")
    return re.findall(r"^export OUTBOX_DSN='(.+)'$", block.text, re.MULTILINE)


def test_the_dsns_are_understood() -> None:
    system, own = map(dsn.parameters, exported("TLS"))
    (several,) = map(dsn.parameters, exported("Failover and standbys"))

    assert (system["sslmode"], system["sslrootcert"]) == ("verify-full", "system")
    assert (own["sslmode"], own["sslcert"]) == ("verify-full", "/etc/outboxd/client.pem")
    assert several["host"].split(",") == ["db1.example.com", "db2.example.com"]
    assert dsn.connect_arguments(exported("Failover and standbys")[0])["target_session_attrs"] == "read-write"


def test_shell_blocks_run_as_they_stand(bare_shop: ShopDatabase) -> None:
    for section in ("TLS", "Failover and standbys"):
        (block,) = blocks(section, "sh")
        assert bare_shop.shell(f'{block.text}\nprintf %s "$OUTBOX_DSN"') == exported(section)[-1]


async def test_whether_sessions_are_encrypted_can_be_seen(shop: ShopDatabase) -> None:
    (block,) = blocks("TLS", "sql")
    async with shop.daemon() as daemon:
        await daemon.wait_for_event("daemon.ready")

        async def all_there() -> bool:  # each session is opened when it is first needed
            return {"outboxd: claim", "outboxd: find main"} <= {r["application_name"] for r in await shop.fetch(block)}

        await eventually(all_there)
        rows = await shop.fetch(block)

    assert {row["ssl"] for row in rows} == {False}, "this server has no certificate"


async def test_a_password_rotates_while_the_daemon_runs(shop: ShopDatabase) -> None:
    (write_file,), (alter,) = blocks("Passwords that rotate", "sh"), blocks("Passwords that rotate", "sql")
    (new,) = re.findall(r"PASSWORD '(.+)'", alter.text)
    file = shop.folder / "dsn"
    file.write_text(shop.dsn("outbox_daemon"))
    async with shop.daemon(OUTBOX_DSN="", OUTBOX_DSN_FILE=str(file)) as daemon:
        await daemon.wait_for_event("daemon.ready")
        host = f"127.0.0.1:{shop.server.port}"
        printed = shop.shell(write_file.text, NEW_PASSWORD=new, HOST=host, OUTBOX_DSN_FILE=str(file))
        assert printed == ""
        await shop.execute(alter)
        await daemon.wait_for_event("claims.reopened")
        await shop.admin.fetchval(WRITE)
        await drained(shop)
    assert (file.read_text(), file.stat().st_mode & 0o777) == (shop.dsn("outbox_daemon").replace(PASSWORD, new), 0o600)


async def test_a_sequence_moves_on_after_a_failover(shop: ShopDatabase) -> None:
    (block,) = blocks("Failover and standbys", "sql")
    before = await shop.admin.fetchval(WRITE)

    await shop.execute(block)

    async with shop.connected("shop") as producer:
        assert await producer.fetchval(WRITE) > before + 1_000_000


def test_the_configuration_for_a_pooler_is_valid() -> None:
    (block,) = blocks("Poolers")
    given = tomllib.loads(block.text)

    assert set(given) == {"dsn", "session_dsn"} <= set(Config.__struct_fields__)
    assert len({dsn.parameters(text)["host"] for text in given.values()}) == 2


# --- Connections, upgrades -----------------------------------------------------------------------------------


async def test_a_daemon_holds_as_many_sessions_as_the_table_says(shop: ShopDatabase) -> None:
    limit, count = blocks("Connections", "sql")
    await shop.execute(limit)
    (row,) = re.findall(r"^\| a daemon \| \d+ \| (\d+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    async with shop.daemon(OUTBOX_HTTP_LISTEN="127.0.0.1:0") as daemon:
        await daemon.wait_for_event("daemon.ready")
        await shop.admin.fetchval(WRITE)  # the session that deletes is opened for the first delivery

        async def all_are_open() -> bool:
            return {r["usename"]: r["count"] for r in await shop.fetch(count)} == {"outbox_daemon": int(row)}

        await eventually(all_are_open, error=daemon.stderr)


async def test_a_daemon_that_finds_no_connection_free_waits_for_one(shop: ShopDatabase) -> None:
    await shop.admin.execute("ALTER ROLE outbox_daemon CONNECTION LIMIT 0")
    async with shop.daemon() as daemon:
        await daemon.wait_for_event("daemon.waiting")
        await shop.execute(blocks("Connections", "sql")[0])
        await daemon.wait_for_event("daemon.ready")


async def test_timeouts_of_the_role_do_not_reach_the_sessions_that_a_daemon_keeps(shop: ShopDatabase) -> None:
    """Its find waits 2 s for a lock and 60 s for an answer, whatever the role says."""
    await shop.admin.execute("ALTER ROLE outbox_daemon SET statement_timeout = '300ms'")
    async with shop.daemon() as daemon:
        await daemon.wait_for_event("daemon.ready")
        async with shop.admin.transaction():
            await shop.admin.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
            unavailable = await daemon.wait_for_event("outbox.unavailable")
    assert "lock timeout" in unavailable["error"]


async def test_a_running_daemon_goes_on_when_the_schema_is_newer_and_a_new_one_waits(shop: ShopDatabase) -> None:
    newer = inspection.latest_migration() + 1
    async with shop.daemon() as old:
        await old.wait_for_event("daemon.ready")
        await shop.admin.execute("INSERT INTO outboxd.migration (number, name) VALUES ($1, 'later')", newer)
        await shop.admin.fetchval(WRITE)
        await drained(shop)

        async with shop.daemon() as late:
            waiting = await late.wait_for_event("daemon.waiting")
            assert (waiting["hint"], "newer" in waiting["error"]) == ("Upgrade outboxd.", True)
        once = await shop.run("--once", role="outbox_daemon", code=78)
        assert "Upgrade outboxd." in once.stderr

        versions = await shop.fetch(blocks("Upgrades, and two versions at once", "sql")[0])
        assert [row["number"] for row in versions] == list(range(1, newer + 1))


async def test_a_daemon_on_an_older_schema_waits_and_a_single_run_ends(shop: ShopDatabase) -> None:
    await shop.admin.execute("DELETE FROM outboxd.migration WHERE number = $1", inspection.latest_migration())
    async with shop.daemon() as daemon:
        waiting = await daemon.wait_for_event("daemon.waiting")
        assert waiting["hint"] == "Run `outboxd migrate`."
    await shop.run("--once", role="outbox_daemon", code=78)


# --- Autovacuum ----------------------------------------------------------------------------------------------


async def storage(shop: ShopDatabase) -> dict[str, str]:
    options = await shop.admin.fetchval("SELECT reloptions FROM pg_class WHERE oid = 'outbox'::regclass")
    return dict(option.split("=") for option in options or [])


async def test_an_adopted_table_gets_the_settings_of_ours(shop: ShopDatabase) -> None:
    settings, query = blocks("Autovacuum", "sql")
    created = await storage(shop)
    await shop.admin.execute(f"ALTER TABLE outbox RESET ({', '.join(contract.STORAGE)})")
    assert "a queue needs its own" in (await shop.run("check", role="outbox_daemon")).stdout

    await shop.execute(settings)

    assert await storage(shop) == created == contract.STORAGE
    assert "a queue needs its own" not in (await shop.run("check", role="outbox_daemon")).stdout
    assert [row["relname"] for row in await shop.fetch(query)] == ["outbox"]


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+) = (\S+)` \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)

    assert dict(rows) == contract.STORAGE


@pytest.mark.parametrize("holds", ["a snapshot", "what it wrote"])
async def test_who_holds_vacuum_back_is_seen_by_a_reader(shop: ShopDatabase, holds: str) -> None:
    (ask,), (limit,) = blocks("Held snapshots", "sh"), blocks("Held snapshots", "sql")
    snapshot = holds == "a snapshot"
    async with (
        shop.connected("shop") as producer,
        producer.transaction(isolation="repeatable_read" if snapshot else "read_committed"),
    ):
        await producer.fetchval("SELECT count(*) FROM outbox" if snapshot else WRITE)
        await shop.admin.fetchval(WRITE)

        printed = shop.shell(ask.text, OUTBOX_DSN=shop.dsn("outbox_reader"))

        (line,) = [line for line in printed.splitlines() if f"backend {producer.get_server_pid()} " in line]
        assert re.search(r"role shop, idle in transaction, for \d+.* holds back vacuum by \d+ transaction", line)
    await shop.execute(limit)
    async with shop.connected("shop") as producer:
        assert await producer.fetchval("SHOW idle_in_transaction_session_timeout") == "1min"
