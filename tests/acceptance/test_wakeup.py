"""How soon a committed message is delivered: by a notification, and without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation

SOON_S = 20.0  # before the claim session checks, every 30 s, that it still listens


async def test_with_the_trigger_a_message_is_delivered_long_before_the_next_poll(bare: Installation) -> None:
    bare.drain["poll_interval_s"] = 3600
    bare.configure()
    migrate = await bare.run("migrate", "--notify")
    assert migrate.returncode == 0, migrate.stderr
    await bare.insert([1])
    async with bare.ready_daemon() as daemon:
        await bare.drained(SOON_S, by=daemon)  # by the first look; what follows is not
        for shard in range(5):
            await bare.insert([shard])
            await bare.drained(SOON_S, by=daemon)


async def test_the_trigger_wakes_after_the_claim_session_was_reopened(bare: Installation) -> None:
    bare.drain["poll_interval_s"] = 3600
    bare.configure()
    await bare.migrate(notify=True)
    await bare.insert([1])
    async with bare.ready_daemon() as daemon:
        await bare.drained(SOON_S, by=daemon)
        await bare.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'outboxd: claim' AND datname = current_database()"
        )
        await daemon.wait_for_event("claims.reopened")

        await bare.insert([2])
        await bare.drained(SOON_S, by=daemon)


async def test_what_is_committed_while_nobody_listens_is_not_forgotten(bare: Installation) -> None:
    """The notification of a message that is committed between two claim sessions is lost."""
    bare.drain["poll_interval_s"] = 3600
    bare.configure()
    await bare.migrate(notify=True)
    await bare.insert([1])
    async with bare.ready_daemon() as daemon:
        await bare.drained(SOON_S, by=daemon)
        async with bare.connection.transaction():
            await bare.connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'outboxd: claim' AND datname = current_database()"
            )
            await bare.insert([2])

        await bare.drained(SOON_S, by=daemon)


async def test_without_the_trigger_the_poll_finds_it(installation: Installation) -> None:
    installation.drain["poll_interval_s"] = 0.2
    installation.configure()
    async with installation.ready_daemon() as daemon:
        for shard in range(3):
            await installation.insert([shard])
            await installation.drained(SOON_S, by=daemon)


async def test_a_message_that_becomes_due_is_delivered_before_the_next_poll(installation: Installation) -> None:
    installation.drain["poll_interval_s"] = 3600
    installation.configure()
    await installation.insert([1, 2])
    await installation.connection.execute(
        "UPDATE outbox SET scheduled_for = now() + interval '1 second' WHERE shard_identifier = 2"
    )
    async with installation.ready_daemon() as daemon:
        await installation.drained(SOON_S, by=daemon)
