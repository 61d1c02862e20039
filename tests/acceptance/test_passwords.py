"""Logins that are refused, passwords that rotate, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests import processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.acceptance.installation import Installation
    from tests.acceptance.servers import ScramServer

SECRET = "correct-horse-battery"
ROTATED = "staple-of-another-day"
WRONG = "trustno1-trustno1"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'outboxd%'"
ENQUEUE = ["enqueue", "EVENT", "--shard", "1", "--object", "1"]


@pytest.fixture
async def guarded(bare: Installation, scram: ScramServer) -> AsyncIterator[Installation]:
    """An installation on the server that asks `app` for SECRET; its configuration names no database."""
    bare.connection = await asyncpg.connect(scram.dsn)
    try:
        await bare.connection.execute(
            "DROP TABLE IF EXISTS outbox; DROP SCHEMA IF EXISTS outboxd CASCADE; DROP ROLE IF EXISTS app;"
            f"CREATE ROLE app LOGIN SUPERUSER PASSWORD '{SECRET}'"
        )
        bare.configure(dsn="")
        await bare.migrate()
        yield bare
    finally:
        await bare.connection.close()


@pytest.mark.parametrize(
    "arguments", [[], ["--once"], ["migrate"], ["check"], ENQUEUE], ids=lambda arguments: " ".join(arguments[:1])
)
async def test_a_wrong_password_exits_78_and_is_not_shown(
    guarded: Installation, scram: ScramServer, arguments: list[str]
) -> None:
    process = await guarded.run(*arguments, env={"OUTBOX_DSN": scram.dsn_of("app", WRONG)})

    assert process.returncode == 78, process.stderr
    assert "app" in process.stdout + process.stderr
    assert WRONG not in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


async def test_a_password_given_as_a_flag_is_not_shown(guarded: Installation, scram: ScramServer) -> None:
    process = await guarded.run("--dsn", scram.dsn_of("app", WRONG), "--once")

    assert process.returncode == 78
    assert WRONG not in process.stdout + process.stderr


async def test_an_unknown_database_exits_78_and_is_named(guarded: Installation, scram: ScramServer) -> None:
    process = await guarded.run(env={"OUTBOX_DSN": scram.dsn_of("app", SECRET, "nosuchdb")})

    assert process.returncode == 78
    assert "nosuchdb" in process.stderr
    assert SECRET not in process.stderr


async def test_no_password_is_in_the_log_the_process_list_or_the_help(
    guarded: Installation, scram: ScramServer
) -> None:
    """With the log at its most talkative, through lost connections and failing receivers."""
    guarded.receive(
        'import os\n\n@receiver("EVENT")\nasync def fail(message):\n'
        '    if message.attempt == 1:\n        raise ConnectionError("cannot reach " + os.environ["OUTBOX_DSN"])\n'
        "    record(message)\n"
    )
    guarded.config.write_text(guarded.config.read_text() + '[log]\nlevel = "debug"\n')
    environment = {"OUTBOX_DSN": scram.dsn_of("app", SECRET)}
    await guarded.insert([1])
    async with guarded.ready_daemon(env=environment) as daemon:
        await guarded.connection.execute(CUT)
        await guarded.drained(by=daemon)
        listed = Path(f"/proc/{daemon.pid}/cmdline").read_text()
        activity = await guarded.connection.fetch("SELECT application_name, query FROM pg_stat_activity")
    help_ = await processes.run("--help", env=environment)

    assert daemon.events("shard.rescheduled")
    for text in (daemon.stderr, daemon.stdout, listed, str(activity), help_.stdout):
        assert SECRET not in text


async def test_a_password_file_is_read_again_when_the_password_has_changed(
    guarded: Installation, scram: ScramServer
) -> None:
    """First the old password stops working, then the file follows."""
    file = guarded.folder / "dsn"
    file.write_text(scram.dsn_of("app", SECRET) + "\n")
    async with guarded.ready_daemon(env={"OUTBOX_DSN_FILE": str(file)}) as daemon:
        await guarded.insert([1])
        await guarded.drained(by=daemon)
        await guarded.connection.execute(f"ALTER ROLE app PASSWORD '{ROTATED}'")
        await guarded.connection.execute(CUT)
        await daemon.wait_for_event("claims.lost")
        await guarded.insert([2])

        successor = guarded.folder / "dsn.new"
        successor.write_text(scram.dsn_of("app", ROTATED))
        successor.rename(file)

        await guarded.drained(by=daemon)
        assert await guarded.count("SELECT count(*) FROM outboxd.worker WHERE died_at IS NULL") == 1
    assert len(guarded.delivered()) == 2
    assert SECRET not in daemon.stderr
    assert ROTATED not in daemon.stderr


async def test_a_file_that_is_missing_at_the_start_exits_78_and_is_named(guarded: Installation) -> None:
    process = await guarded.run(env={"OUTBOX_DSN_FILE": "/nonexistent/dsn"})

    assert process.returncode == 78
    assert "OUTBOX_DSN_FILE" in process.stderr


async def test_libpq_s_own_variables_are_enough(guarded: Installation, scram: ScramServer) -> None:
    await guarded.insert([1])

    process = await guarded.run(
        "--once",
        "--quiet",
        env={
            "PGHOST": "127.0.0.1",
            "PGPORT": str(scram.port),
            "PGUSER": "app",
            "PGPASSWORD": SECRET,
            "PGDATABASE": "postgres",
        },
    )

    assert (process.returncode, process.stderr) == (0, "")
    assert len(guarded.delivered()) == 1
