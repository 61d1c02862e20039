"""An act is finished whatever becomes of its output: a reader who has left, as behind `| head -1`, or a full disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.drains import CONTROL, REGION, Recorder, configure, drain_once, failing, write
from tests.letters import letter_ids, write_letters

if TYPE_CHECKING:
    import asyncpg

    from tests.integration.operate.switched import Here

# A pipe that nobody reads: its reader has ended before outboxd begins.
LEFT = ("bash", "-c", 'exec 3> >(:); wait $!; exec "$@" >&3', "bash")
LEFT_BOTH = ("bash", "-c", 'exec 3> >(:); wait $!; exec "$@" >&3 2>&3', "bash")
FULL = ("bash", "-c", 'exec "$@" >/dev/full', "bash")
FULL_STDERR = ("bash", "-c", 'exec "$@" 2>/dev/full', "bash")
NO_SPACE = "error: cannot write the output: No space left on device\n"


class Way(NamedTuple):
    """How output is lost, and what then comes of an act that succeeds."""

    through: tuple[str, ...]
    code: int
    said: str


WAYS = {"left": Way(LEFT, 141, ""), "both left": Way(LEFT_BOTH, 141, ""), "full": Way(FULL, 1, NO_SPACE)}

pytestmark = [
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is Linux's"),
    pytest.mark.parametrize("way", WAYS.values(), ids=WAYS),
]


async def stuck(database: str, connection: asyncpg.Connection) -> None:
    """Shards of two outboxes have failed and wait for an hour."""
    for shard in (1, 2):
        await write(connection, shard=shard)
    await write(connection, region="eu", table="control_outbox")
    await drain_once(database, Recorder(failing()), configure(REGION, CONTROL))
    for table in ("outbox", "control_outbox"):
        await connection.execute(
            f"UPDATE {table} SET scheduled_from = now(), scheduled_for = now() + interval '1 hour'"
        )


async def due(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval(
        "SELECT (SELECT count(*) FROM outbox WHERE scheduled_for <= now())"
        " + (SELECT count(*) FROM control_outbox WHERE scheduled_for <= now())"
    )
    return count


async def test_resume_ends_the_pauses_and_makes_due(
    here: Here,
    database: str,
    connection: asyncpg.Connection,
    way: Way,
) -> None:
    await stuck(database, connection)
    await here.run("pause", "--outbox", "region", "--reason", "x")
    await here.run("pause", "--outbox", "control", "--reason", "x")

    done = await here.run("resume", "--all", "--yes", "--now", code=way.code, through=way.through)

    assert (done.stdout, done.stderr) == ("", way.said)
    assert await connection.fetchval("SELECT count(*) FROM outboxd.pause") == 0
    assert await due(connection) == 3


@pytest.mark.parametrize("arguments", [("--all-stuck", "--yes"), ("ORGANIZATION_SCOPE", "1", "--outbox", "region")])
async def test_retry_makes_due(
    here: Here,
    database: str,
    connection: asyncpg.Connection,
    way: Way,
    arguments: tuple[str, ...],
) -> None:
    await stuck(database, connection)
    await here.run("pause", "--outbox", "region", "--reason", "x")  # something more to be said

    done = await here.run("retry", *arguments, code=way.code, through=way.through)

    assert (done.stdout, done.stderr) == ("", way.said)
    assert await due(connection) == (3 if "--all-stuck" in arguments else 1)


@pytest.mark.parametrize("act", ["retry", "purge"])
async def test_dead_letters_of_every_outbox_are_moved(
    here: Here, connection: asyncpg.Connection, way: Way, act: str
) -> None:
    await write_letters(connection, 2)
    await write_letters(connection, 2, outbox="control", region="eu")

    done = await here.run("dead-letters", act, "--all", "--yes", code=way.code, through=way.through)

    assert (done.stdout, done.stderr) == ("", way.said)
    assert await letter_ids(connection) == []


async def test_what_goes_wrong_counts_more_than_what_could_not_be_said(
    here: Here, connection: asyncpg.Connection, way: Way
) -> None:
    await here.run("pause", "--outbox", "control")
    await connection.execute("DROP TABLE control_outbox")

    done = await here.run("resume", "--all", "--yes", "--now", code=78, through=way.through)

    assert ("outbox control: " in done.stderr) is (way.through is not LEFT_BOTH)
    assert await connection.fetchval("SELECT count(*) FROM outboxd.pause") == 0


async def test_an_error_that_cannot_be_said_keeps_its_exit_code(here: Here, way: Way) -> None:
    await here.run("resume", "--outbox", "regoin", code=2, through=way.through)
    await here.run("resume", "--outbox", "regoin", code=2, through=FULL_STDERR)
