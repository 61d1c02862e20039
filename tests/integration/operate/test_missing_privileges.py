"""A missing privilege is answered with its GRANT: who does what the answers say, gets there."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.integration.operate.roles import role
from tests.processes import Outboxd, outboxd, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.trouble import Trouble

MODEL = """
[backfill]
backfills_per_minute = 100000

[[model]]
table = "account"
outbox = "region"
category = "TEAM"
shard_identifier = "id"
"""
ROUNDS_MAX = 4
SHARD = "--scope ORGANIZATION_SCOPE --shard 1"
ALL = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, outboxd TO {0}"
USAGE = "GRANT USAGE ON SCHEMA outboxd TO {0}"


@pytest.fixture
async def walked(trouble: Trouble) -> Trouble:
    await trouble.connection.execute("CREATE TABLE account (id bigint PRIMARY KEY)")
    await trouble.connection.execute("INSERT INTO account SELECT generate_series(1, 3)")
    trouble.file.write_text(trouble.file.read_text() + MODEL)
    return trouble


@contextlib.asynccontextmanager
async def granted(trouble: Trouble, *grants: str) -> AsyncIterator[tuple[str, str]]:
    """Make a role that has these GRANTs; yields its name and the DSN of its connections."""
    async with role(trouble.connection, trouble.dsn) as (name, dsn):
        for grant in grants:
            await trouble.connection.execute(grant.format(name))
        yield name, dsn


def daemon_of(trouble: Trouble, dsn: str) -> contextlib.AbstractAsyncContextManager[Outboxd]:
    return outboxd(config=trouble.file, env={"OUTBOX_DSN": dsn})


def grants_in(text: str, name: str) -> list[str]:
    return re.findall(rf"^ +(GRANT [^;]+ TO {name};)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [
        "--once",
        "enqueue MEMBER --shard 1 --object 14 --outbox region",
        "drain ORGANIZATION_SCOPE 1",
        "backfill status",
        "backfill plan",
        "backfill run",
        "backfill skip account --yes",
        "shards",
        "explain ORGANIZATION_SCOPE 3",
        "dead-letters list",
        "dead-letters retry 1",
        "bury 1 --outbox region --reason told",
        f"pause {SHARD}",
        "pause --list",
        "resume 1",
        "options list",
        "options set outbox.disabled_outboxes []",
        "retry ORGANIZATION_SCOPE 3",
    ],
)
async def test_who_does_what_the_answers_say_gets_there(walked: Trouble, line: str) -> None:
    async with granted(walked) as (name, dsn):
        for _ in range(ROUNDS_MAX):
            done = await run(*line.split(), config=walked.file, env={"OUTBOX_DSN": dsn})
            assert "Traceback" not in done.stderr
            if (grants := grants_in(done.stdout + done.stderr, name)) == []:
                break
            for grant in grants:
                await walked.connection.execute(grant)
        assert "permission denied" not in done.stdout + done.stderr
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("grants", [(), (USAGE, "GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO {0}")])
async def test_a_daemon_that_waits_for_a_privilege_names_it(walked: Trouble, grants: tuple[str, ...]) -> None:
    async with granted(walked, *grants) as (name, dsn), daemon_of(walked, dsn) as daemon:
        waiting = await daemon.wait_for_event("daemon.waiting")
        for grant in grants_in(waiting["hint"], name):
            await walked.connection.execute(grant)
        await daemon.wait_for_event("daemon.ready")


@pytest.mark.parametrize(
    "line",
    ["--once", "shards", "inspect 0 3", "retry ORGANIZATION_SCOPE 3", "retry --all-stuck --yes",
     "bury 1 --outbox region --reason told", "enqueue MEMBER --shard 1 --object 14 --outbox region"],
)  # fmt: skip
async def test_a_schema_that_hides_the_table_is_named(walked: Trouble, line: str) -> None:
    """A table without a schema in its name is not there for who may not use the schema on the search_path."""
    await walked.connection.execute("REVOKE USAGE ON SCHEMA public FROM public")
    async with granted(walked, USAGE, ALL) as (name, dsn):
        done = await run(*line.split(), config=walked.file, env={"OUTBOX_DSN": dsn})
        assert done.returncode == 78
        assert f"GRANT USAGE ON SCHEMA public TO {name};" in grants_in(done.stderr, name)
        for grant in grants_in(done.stderr, name):
            await walked.connection.execute(grant)
        done = await run(*line.split(), config=walked.file, env={"OUTBOX_DSN": dsn})
        assert done.returncode == 0, done.stdout + done.stderr


async def test_a_daemon_that_waits_for_a_hidden_table_names_its_schema(walked: Trouble) -> None:
    await walked.connection.execute("REVOKE USAGE ON SCHEMA public FROM public")
    async with granted(walked, USAGE, ALL) as (name, dsn), daemon_of(walked, dsn) as daemon:
        waiting = await daemon.wait_for_event("outbox.not_ready")
        assert f"GRANT USAGE ON SCHEMA public TO {name};" in waiting["hint"]
        for grant in grants_in(waiting["hint"], name):
            await walked.connection.execute(grant)
        await daemon.wait_for_event("daemon.ready")


REVOKED = [
    ("REVOKE INSERT, UPDATE, DELETE ON outboxd.failure FROM {0}", "ON ALL TABLES IN SCHEMA outboxd TO"),
    ("REVOKE ALL ON outboxd.dead_letter FROM {0}", "ON ALL TABLES IN SCHEMA outboxd TO"),
    ("REVOKE DELETE ON outbox FROM {0}", "GRANT DELETE ON public.outbox TO"),
]


@pytest.mark.parametrize(("revoked", "named"), REVOKED)
async def test_nothing_is_delivered_that_could_not_be_settled(trouble: Trouble, revoked: str, named: str) -> None:
    before = await trouble.connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for <= now()")
    async with granted(trouble, USAGE, ALL, revoked) as (_, dsn):
        done = await run("--once", config=trouble.file, env={"OUTBOX_DSN": dsn})

    assert done.returncode == 78
    assert named in done.stderr
    assert "shard.rescheduled" not in done.stderr
    due = await trouble.connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for <= now()")
    assert due == before


@pytest.mark.parametrize(("revoked", "named"), REVOKED)
async def test_a_daemon_goes_on_when_it_is_granted(walked: Trouble, revoked: str, named: str) -> None:
    async with granted(walked, USAGE, ALL, revoked) as (name, dsn), daemon_of(walked, dsn) as daemon:
        event = "outbox.not_ready" if "outboxd" not in revoked else "daemon.waiting"
        waiting = await daemon.wait_for_event(event)
        assert named in waiting["hint"]
        for grant in grants_in(waiting["hint"], name):
            await walked.connection.execute(grant)
        await daemon.wait_for_event("daemon.ready")


async def test_a_privilege_that_is_taken_from_a_daemon_is_named(walked: Trouble) -> None:
    async with granted(walked, USAGE, ALL) as (name, dsn), daemon_of(walked, dsn) as daemon:
        await daemon.wait_for_event("daemon.ready")
        await walked.connection.execute(f"REVOKE DELETE ON outbox FROM {name}")
        await walked.connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) VALUES (0, 1, 1, 1)"
        )
        deferred = await daemon.wait_for_event("settle.deferred")
        assert "outboxd check" in deferred["hint"]
        doctor = await run("doctor", config=walked.file)
        assert f"role {name}, as which pid {daemon.pid} on " in doctor.stdout
        assert f"-> GRANT DELETE ON public.outbox TO {name};" in doctor.stdout
        explained = await run("explain", "0", "1", config=walked.file)
        assert explained.stdout_lines[0].startswith(f"role {name}, as which the daemon works, lacks privileges")


async def test_of_a_daemon_of_one_silo_nothing_is_asked_about_the_other(walked: Trouble) -> None:
    only = "REVOKE ALL ON control_outbox FROM {0}"
    async with (
        granted(walked, USAGE, ALL, only) as (name, dsn),
        outboxd(config=walked.file, env={"OUTBOX_DSN": dsn, "OUTBOX_SILO_MODE": "region"}) as daemon,
    ):
        await daemon.wait_for_event("daemon.ready")
        doctor = await run("doctor", config=walked.file)

    assert f"drained by pid {daemon.pid} on " in doctor.stdout
    assert f"role {name}, as which" not in doctor.stdout


async def test_a_privilege_on_our_own_schema_that_is_taken_from_a_daemon_is_named(walked: Trouble) -> None:
    async with granted(walked, USAGE, ALL) as (name, dsn), daemon_of(walked, dsn) as daemon:
        await daemon.wait_for_event("daemon.ready")
        await walked.connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA outboxd FROM {name}")

        for event in ("claims.lost", "options.unread"):
            said = await daemon.wait_for_event(event)
            assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outboxd TO {name};" in said["hint"]

        for grant in grants_in(said["hint"], name):
            await walked.connection.execute(grant)
        await daemon.wait_for_event("claims.reopened")


async def test_a_daemon_names_what_one_outbox_or_one_backfill_lacks(walked: Trouble) -> None:
    tables = "REVOKE ALL ON outbox, account FROM {0}"
    async with granted(walked, USAGE, ALL, tables) as (name, dsn), daemon_of(walked, dsn) as daemon:
        broken = await daemon.wait_for_event("backfill.broken")
        assert f"GRANT SELECT ON public.account TO {name};" in broken["error"]
        assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.outbox TO {name};" in broken["error"]


async def test_a_policy_is_not_answered_with_a_grant(walked: Trouble) -> None:
    await walked.connection.execute("ALTER TABLE outboxd.pause ENABLE ROW LEVEL SECURITY")
    async with granted(walked, USAGE, ALL, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {0}") as (_, dsn):
        done = await run("pause", *SHARD.split(), config=walked.file, env={"OUTBOX_DSN": dsn})
        assert done.returncode == 78
        assert "row-level security" in done.stderr
        assert "GRANT" not in done.stderr.replace("missing GRANT", "")
