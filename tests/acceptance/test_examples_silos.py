"""The example of silos: its README, command by command, and what each silo mode drains."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import processes
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "silos"
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS = re.compile(r"\bin [\d.]+ s$")


def steps() -> list[tuple[list[str], list[str]]]:
    """The README's commands with the lines that follow each."""
    found: list[tuple[list[str], list[str]]] = []
    for block in CONSOLE.findall((EXAMPLE / "README.md").read_text("utf-8")):
        for line in block.splitlines():
            if line.startswith("$ outboxd "):
                found.append((shlex.split(line)[2:], []))
            else:
                found[-1][1].append(line)
    return found


async def outboxd(database: str, *arguments: str, **environment: str) -> processes.Outboxd:
    done = await processes.run(*arguments, cwd=EXAMPLE, env={"OUTBOX_DSN": database, **environment})
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stderr}"
    return done


async def summary(database: str, *arguments: str, **environment: str) -> dict[str, Any]:
    done = await outboxd(database, *arguments, "--once", "--json", **environment)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


async def rows_left(connection: asyncpg.Connection) -> tuple[int, int]:
    return (
        await connection.fetchval("SELECT count(*) FROM sentry_regionoutbox"),
        await connection.fetchval("SELECT count(*) FROM sentry_controloutbox"),
    )


@pytest.fixture
async def filled(database: str) -> str:
    """The DSN of a database with one message in each outbox."""
    await outboxd(database, "migrate")
    await outboxd(database, "enqueue", "ORGANIZATION_UPDATE", "--shard", "1", "--object", "1")
    await outboxd(database, "enqueue", "USER_UPDATE", "--region", "us", "--shard", "42", "--object", "42")
    return database


async def test_the_readme_prints_what_happens(database: str) -> None:
    commands = steps()
    assert len(commands) >= 10

    for arguments, expected in commands:
        done = await outboxd(database, *arguments)

        # Shards run side by side, and the lines of receivers are on stderr: compared without their order.
        printed = [SECONDS.sub("in … s", line) for line in done.stdout_lines + done.stderr_lines]
        assert sorted(printed) == sorted(SECONDS.sub("in … s", line) for line in expected), arguments


async def test_a_monolith_drains_both_outboxes(filled: str, connection: asyncpg.Connection) -> None:
    done = await summary(filled)

    assert done["delivered"] == 2
    assert await rows_left(connection) == (0, 0)


@pytest.mark.parametrize(("mode", "left"), [("region", (0, 1)), ("control", (1, 0))])
async def test_a_silo_drains_its_own_outbox(
    filled: str, connection: asyncpg.Connection, mode: str, left: tuple[int, int]
) -> None:
    done = await summary(filled, "--silo-mode", mode)

    assert (done["delivered"], done["remaining_due"]) == (1, 0)
    assert await rows_left(connection) == left


async def test_the_mode_may_come_from_the_environment(filled: str, connection: asyncpg.Connection) -> None:
    await summary(filled, OUTBOX_SILO_MODE="control")

    assert await rows_left(connection) == (1, 0)


async def test_daemons_of_both_silos_share_a_database(filled: str, connection: asyncpg.Connection) -> None:
    options: dict[str, Any] = {"cwd": EXAMPLE, "env": {"OUTBOX_DSN": filled}}
    async with (
        processes.outboxd("--silo-mode", "region", **options) as region,
        processes.outboxd("--silo-mode", "control", **options) as control,
    ):
        await region.wait_for_event("daemon.ready")
        await control.wait_for_event("daemon.ready")

        async def both_empty() -> bool:
            return await rows_left(connection) == (0, 0)

        await eventually(both_empty)
        assert region.events("daemon.ready")[0]["outboxes"] == ["region"]
        assert control.events("daemon.ready")[0]["outboxes"] == ["control"]


async def test_a_disabled_organization_waits(filled: str, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES"
        " ('hybrid_cloud.authentication.disabled_organization_shards', '[1]')"
    )

    done = await summary(filled)

    assert (done["delivered"], done["skipped_shards"]) == (1, 1)
    assert await rows_left(connection) == (1, 0)
