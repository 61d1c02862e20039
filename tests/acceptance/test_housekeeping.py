"""Dead letters that have been kept long enough go, by the daemon and by --once, and keep_days can be changed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.drains import connected
from tests.letters import letter_ids, write_letters

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation

OLD_S = 31 * 86_400


def keep_days(installation: Installation, days: int) -> None:
    text = installation.config.read_text().partition("\n[dead_letter]")[0]
    installation.config.write_text(f"{text}\n[dead_letter]\nkeep_days = {days}\n")


async def test_the_daemon_deletes_them_at_its_start(installation: Installation) -> None:
    await write_letters(installation.connection, 3, age_s=OLD_S, outbox="main")
    young = await write_letters(installation.connection, outbox="main")

    async with installation.daemon() as daemon:
        event = await daemon.wait_for_event("dead_letters.purged")

    assert (event["rows"], event["keep_days"], event["level"]) == (3, 30, "info")
    assert await letter_ids(installation.connection) == young


async def test_a_failure_of_it_does_not_stop_the_drain(installation: Installation) -> None:
    await write_letters(installation.connection, age_s=OLD_S)
    async with connected(installation.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE outboxd.dead_letter")
        async with installation.daemon() as daemon:
            await daemon.wait_for_event("dead_letters.not_purged")
            ids = await installation.insert([1, 2])
            await installation.drained(by=daemon)
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0

    assert sorted(installation.delivered()) == ids


async def test_once_deletes_them_at_its_end(installation: Installation) -> None:
    await write_letters(installation.connection, 3, age_s=OLD_S)
    await installation.insert([1])

    done = await installation.run("--once", "--quiet")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert await letter_ids(installation.connection) == []


async def test_keep_days_of_0_keeps_them(installation: Installation) -> None:
    kept = await write_letters(installation.connection, age_s=OLD_S)
    keep_days(installation, 0)

    assert (await installation.run("--once")).returncode == 0

    assert await letter_ids(installation.connection) == kept
