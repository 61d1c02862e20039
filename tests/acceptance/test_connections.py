"""Databases that are down, cut connections, refuse the login, or are not the primary."""

from __future__ import annotations

import contextlib
import random
import signal
from collections import Counter
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.acceptance.servers import ComingAndGoing
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.acceptance.installation import Installation

KILLS = 8
CONCURRENCY = 5
WORK = """\
@receiver("EVENT")
async def work(message):
    await asyncio.sleep(0.004)
    record(message)
"""
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'outboxd%' AND datname = current_database()"


# --- a server that comes and goes --------------------------------------------------------------------------


@pytest.fixture
def server(bare: Installation, server_folder: Path) -> ComingAndGoing:
    """A server that is down; the installation's DSN leads to it."""
    made = ComingAndGoing(server_folder)
    bare.dsn = made.dsn
    bare.configure()
    return made


async def test_a_daemon_waits_for_a_database_that_is_down_and_then_works(
    bare: Installation, server: ComingAndGoing
) -> None:
    async with server.started() as bare.connection:
        await bare.migrate()
        ids = await bare.insert([1, 2])
    async with bare.daemon() as daemon:
        waiting = await daemon.wait_for_event("daemon.waiting")
        assert waiting["level"] == "warning"
        assert daemon.events("daemon.ready") == []
        async with server.started() as bare.connection:
            await daemon.wait_for_event("daemon.ready")
            await bare.drained(by=daemon)
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0

    assert sorted(bare.delivered()) == ids
    assert ComingAndGoing.PASSWORD not in daemon.stderr


async def test_a_daemon_survives_a_restart_of_its_database(bare: Installation, server: ComingAndGoing) -> None:
    bare.receive(WORK)
    async with server.started() as bare.connection:
        await bare.migrate()
        ids = await bare.insert(range(50), objects=range(10))
    async with bare.daemon() as daemon:
        async with server.started():
            await eventually(lambda: len(bare.delivered()) > 50)
        async with server.started() as bare.connection:
            await bare.drained(by=daemon)
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0

    assert set(bare.delivered()) == set(ids)
    assert len(bare.delivered()) <= len(ids) + CONCURRENCY


async def test_a_standby_is_waited_for_until_it_is_promoted(bare: Installation, server: ComingAndGoing) -> None:
    async with server.started() as bare.connection:
        await bare.migrate()
        await bare.insert([1])
    (server.data / "standby.signal").touch()
    async with server.started() as bare.connection:
        once = await bare.run("--once")
        assert once.returncode == 69, once.stderr
        async with bare.daemon() as daemon:
            waiting = await daemon.wait_for_event("daemon.waiting")
            assert "standby" in waiting["error"]
            await bare.connection.fetch("SELECT pg_promote()")
            await bare.drained(by=daemon)


async def test_a_daemon_waits_for_its_migration(bare: Installation) -> None:
    async with bare.daemon() as daemon:
        waiting = await daemon.wait_for_event("daemon.waiting")
        assert "outboxd migrate" in waiting["hint"]
        assert daemon.events("daemon.ready") == []
        good = bare.config.read_text()
        bare.config.write_text("[")
        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("config.refused")
        bare.config.write_text(good)

        migrate = await bare.run("migrate")
        assert migrate.returncode == 0
        await daemon.wait_for_event("daemon.ready")
        ids = await bare.insert([1])
        await bare.drained(by=daemon)

    assert bare.delivered() == ids


async def test_an_outbox_table_that_vanishes_and_comes_back_is_drained_again(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        await installation.connection.execute("DROP TABLE outbox")
        await daemon.wait_for_event("outbox.not_ready")

        assert (await installation.run("migrate")).returncode == 0
        await installation.insert([1])
        await installation.drained(by=daemon)


async def test_a_missing_index_is_named_and_waited_for(installation: Installation) -> None:
    await installation.connection.execute("DROP INDEX outbox_scheduled_for_shard_scope_shard_identifier_idx")
    ids = await installation.insert([1])
    async with installation.daemon() as daemon:
        warning = await daemon.wait_for_event("outbox.not_ready")
        assert "outboxd migrate" in warning["error"] + warning["hint"]
        assert await installation.ids() == set(ids)

        assert (await installation.run("migrate")).returncode == 0
        await installation.drained(by=daemon)


@pytest.mark.parametrize("harm", ["missing", "locked"])
async def test_one_outbox_in_trouble_does_not_stop_another_one(installation: Installation, harm: str) -> None:
    installation.outbox += '[[outbox]]\nname = "second"\ntable = "second"\n'
    installation.configure()
    await installation.migrate()
    await installation.insert([1], table="second")
    async with installation.ready_daemon() as daemon, connected(installation.dsn) as other:
        if harm == "missing":
            await other.execute("DROP TABLE second")
            await daemon.wait_for_event("outbox.not_ready")
        else:
            await other.execute("BEGIN; LOCK TABLE second IN ACCESS EXCLUSIVE MODE")
            await daemon.wait_for_event("outbox.unavailable")
        for number in range(5):
            await installation.insert([number])
            await installation.drained(by=daemon)


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


# --- cut connections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_connections_cut_at_random_lose_nothing_and_repeat_only_what_was_under_way(
    installation: Installation, seed: int
) -> None:
    chosen = random.Random(seed)
    installation.receive(WORK)
    installation.drain["concurrency"] = CONCURRENCY
    installation.configure()
    ids = await installation.insert(range(100), objects=range(20))
    async with installation.ready_daemon() as daemon:
        for kill in range(KILLS):
            reached = len(ids) * (kill + 1) // (KILLS + 4) + chosen.randrange(40)
            await installation.until(lambda: len(set(installation.delivered())) >= reached, by=daemon)  # noqa: B023
            backends = await installation.connection.fetch(BACKENDS)
            victims = [row["pid"] for row in backends] if kill % 4 == 3 else [chosen.choice(backends)["pid"]]
            await installation.connection.execute("SELECT pg_terminate_backend(p) FROM unnest($1::int[]) AS p", victims)
        await installation.drained(by=daemon)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0, daemon.stderr

    repeated = Counter(installation.delivered())
    assert set(repeated) == set(ids)
    assert sum(repeated.values()) - len(ids) <= KILLS * CONCURRENCY
    assert "Traceback" not in daemon.stderr
    assert await installation.left_behind() == []


async def test_a_daemon_that_loses_every_connection_at_once_goes_on(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        for number in range(8):
            await installation.connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) AS b")
            await installation.insert([number])
            await installation.drained(20, by=daemon)  # the pause does not grow from one loss to the next

    assert len(installation.delivered()) == 8
