"""What systemd hears over a real socket."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.installation import OUTBOX
from tests.acceptance.systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.acceptance.installation import Installation
    from tests.processes import Outboxd

STUCK = """\
@receiver("EVENT")
async def stuck(message):
    record(message, "start")
    while not is_open("gate"):
        try:
            await opened("gate")
        except asyncio.CancelledError:
            pass
    record(message)
"""
BLOCK = """\
@receiver("EVENT")
async def block(message):
    record(message, "start")
    wait_until_opened("gate")
    record(message)
"""
WAIT = """\
@receiver("EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""

OTHER = """
[[outbox]]
name = "other"
table = "other_outbox"
"""


@pytest.fixture(params=["path", "abstract"])
async def systemd(request: pytest.FixtureRequest, server_folder: Path) -> AsyncIterator[Systemd]:
    path = f"@outboxd-test-{os.getpid()}" if request.param == "abstract" else str(server_folder / "notify")
    manager = Systemd(path)
    yield manager
    manager.close()


only_by_path = pytest.mark.parametrize("systemd", ["path"], indirect=True)


async def fed(systemd: Systemd, installation: Installation, daemon: Outboxd, times: int = 5) -> None:
    count = len(systemd.fed_at) + times
    await installation.until(lambda: len(systemd.fed_at) >= count, by=daemon)


async def test_ready_reload_and_end_are_told(installation: Installation, systemd: Systemd) -> None:
    async with installation.daemon(env=systemd.environment()) as daemon:
        await installation.until(lambda: "READY=1" in systemd.heard, by=daemon)
        systemd.heard.clear()

        before_us = time.monotonic_ns() // 1000
        daemon.signal(signal.SIGHUP)
        await installation.until(lambda: "READY=1" in systemd.heard, by=daemon)
        after_us = time.monotonic_ns() // 1000
        reloading, clock, ready = systemd.heard
        assert (reloading, ready) == ("RELOADING=1", "READY=1")
        assert before_us <= int(clock.removeprefix("MONOTONIC_USEC=")) <= after_us
        systemd.heard.clear()

        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0
        await installation.until(lambda: "STOPPING=1" in systemd.heard, by=daemon)

    assert systemd.fed_at == []


async def test_a_refused_reload_ends_too(installation: Installation, systemd: Systemd) -> None:
    async with installation.daemon(env=systemd.environment()) as daemon:
        await installation.until(lambda: "READY=1" in systemd.heard, by=daemon)
        systemd.heard.clear()
        installation.config.write_text("[")

        daemon.signal(signal.SIGHUP)

        await installation.until(lambda: "READY=1" in systemd.heard, by=daemon)
        assert systemd.heard[0] == "RELOADING=1"


async def test_while_it_waits_it_is_not_ready_and_says_why(bare: Installation, systemd: Systemd) -> None:
    async with bare.daemon(env=systemd.environment()) as daemon:
        await daemon.wait_for_event("daemon.waiting")
        await bare.until(lambda: any(line.startswith("STATUS=waiting") for line in systemd.heard), by=daemon)
        assert "READY=1" not in systemd.heard

        await bare.migrate()
        await eventually_ready(bare, systemd, daemon)
        told = [line for line in systemd.heard if line.startswith("STATUS=")]
        assert told[-1].startswith("STATUS=draining"), "else it would still be shown as waiting"


@only_by_path
async def test_a_table_that_is_missing_holds_up_neither_the_start_nor_the_watchdog(
    installation: Installation, systemd: Systemd
) -> None:
    installation.outbox = OUTBOX + OTHER
    installation.configure()
    async with installation.daemon(env=systemd.environment(watchdog=True)) as daemon:
        await eventually_ready(installation, systemd, daemon)
        await fed(systemd, installation, daemon)
        await installation.insert([1])
        await installation.drained(by=daemon)
        assert daemon.events("daemon.ready") == []
        status = [line for line in systemd.heard if line.startswith("STATUS=")][-1]
        assert "waiting: " in status
        assert "other_outbox" in status
        assert status.endswith("draining main")

        await installation.migrate()
        ready = await daemon.wait_for_event("daemon.ready")
        await installation.until(lambda: systemd.heard[-1] == "STATUS=draining main, other", by=daemon)
    assert ready["outboxes"] == ["main", "other"]


@only_by_path
async def test_a_running_daemon_that_loses_its_database_shows_it(installation: Installation, systemd: Systemd) -> None:
    async with installation.daemon(env=systemd.environment()) as daemon:
        await eventually_ready(installation, systemd, daemon)
        await installation.connection.execute("ALTER SCHEMA outboxd RENAME TO elsewhere")

        await daemon.wait_for_event("claims.lost")
        await installation.until(lambda: systemd.heard[-1].startswith("STATUS=waiting: "), by=daemon)
        assert "outboxd" in systemd.heard[-1]

        await installation.connection.execute("ALTER SCHEMA elsewhere RENAME TO outboxd")
        await installation.until(lambda: systemd.heard[-1] == "STATUS=draining main", by=daemon)


@only_by_path
async def test_an_outbox_that_somebody_has_locked_is_shown_while_it_is(
    installation: Installation, systemd: Systemd
) -> None:
    async with installation.daemon(env=systemd.environment()) as daemon:
        await eventually_ready(installation, systemd, daemon)
        async with installation.connection.transaction():
            await installation.connection.execute("LOCK TABLE outbox")
            await installation.until(lambda: systemd.heard[-1].startswith("STATUS=waiting: "), by=daemon)
        await installation.until(lambda: systemd.heard[-1] == "STATUS=draining main", by=daemon)


async def eventually_ready(installation: Installation, systemd: Systemd, daemon: Outboxd) -> None:
    async def is_ready() -> bool:
        return "READY=1" in systemd.heard

    await installation.until(is_ready, by=daemon)


@only_by_path
async def test_the_watchdog_is_fed_while_idle(installation: Installation, systemd: Systemd) -> None:
    installation.drain["poll_interval_s"] = 0.05
    installation.configure()
    async with installation.ready_daemon(env=systemd.environment(watchdog=True)) as daemon:
        await fed(systemd, installation, daemon)


@only_by_path
async def test_the_watchdog_is_fed_while_idle_whatever_the_poll_interval(
    installation: Installation, systemd: Systemd
) -> None:
    installation.drain["poll_interval_s"] = 3600
    installation.configure()
    async with installation.ready_daemon(env=systemd.environment(watchdog=True)) as daemon:
        await fed(systemd, installation, daemon)


@only_by_path
async def test_the_watchdog_is_fed_while_it_waits_for_the_database(bare: Installation, systemd: Systemd) -> None:
    async with bare.daemon(env=systemd.environment(watchdog=True)) as daemon:
        await daemon.wait_for_event("daemon.waiting")

        async def is_fed() -> bool:
            return len(systemd.fed_at) >= 5

        await bare.migrate()  # only so that a failure can count messages
        await bare.until(is_fed, by=daemon)


@only_by_path
async def test_the_watchdog_is_fed_while_receivers_are_inside_their_timeout(
    installation: Installation, systemd: Systemd
) -> None:
    """All drainers wait, and all claims that may be held ahead are held."""
    installation.receive(WAIT)
    installation.drain["concurrency"] = 2
    installation.configure()
    await installation.insert(range(50))
    async with installation.ready_daemon(env=systemd.environment(watchdog=True)) as daemon:
        await installation.until(lambda: len(installation.delivered("start")) == 2, by=daemon)
        await fed(systemd, installation, daemon, times=8)
        installation.open("gate")
        await installation.drained(by=daemon)


@only_by_path
async def test_the_watchdog_is_not_fed_while_a_receiver_blocks_the_event_loop(
    installation: Installation, systemd: Systemd
) -> None:
    installation.receive(BLOCK)
    await installation.insert([1])
    async with installation.ready_daemon(env=systemd.environment(watchdog=True)) as daemon:
        await installation.until(systemd.silent, by=daemon)
        assert installation.delivered() == []
        installation.open("gate")
        await fed(systemd, installation, daemon)


@only_by_path
async def test_the_watchdog_is_not_fed_while_every_receiver_is_stuck_beyond_its_timeout(
    installation: Installation, systemd: Systemd
) -> None:
    installation.receive(STUCK)
    installation.drain |= {"concurrency": 2, "receiver_timeout_s": 0.3}
    installation.configure()
    await installation.insert(range(50))
    async with installation.ready_daemon(env=systemd.environment(watchdog=True)) as daemon:
        await installation.until(systemd.silent, by=daemon)


@only_by_path
async def test_the_watchdog_is_not_fed_by_a_stopped_process(installation: Installation, systemd: Systemd) -> None:
    async with installation.ready_daemon(env=systemd.environment(watchdog=True)) as daemon:
        await fed(systemd, installation, daemon, times=2)
        daemon.signal(signal.SIGSTOP)
        await installation.until(systemd.silent, by=daemon)
        daemon.signal(signal.SIGCONT)
        await fed(systemd, installation, daemon)


@only_by_path
async def test_a_watchdog_that_is_meant_for_another_process_is_left_alone(
    installation: Installation, systemd: Systemd
) -> None:
    environment = {**systemd.environment(watchdog=True), "WATCHDOG_PID": str(os.getpid())}
    async with installation.ready_daemon(env=environment) as daemon:
        await installation.insert([1])
        await installation.drained(by=daemon)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0

    await installation.until(lambda: "STOPPING=1" in systemd.heard, by=daemon)
    assert systemd.fed_at == []


@only_by_path
async def test_a_watchdog_that_names_this_process_is_fed(installation: Installation, systemd: Systemd) -> None:
    """The shell puts its own id there, and then becomes the daemon."""
    environment = systemd.environment(watchdog=True)
    async with installation.ready_daemon(env=environment, through=["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"]) as d:
        await fed(systemd, installation, d)


async def test_a_socket_that_is_gone_is_no_reason_to_stop(installation: Installation) -> None:
    async with installation.ready_daemon(env={"NOTIFY_SOCKET": "/nonexistent/notify"}) as daemon:
        await installation.insert([1])
        await installation.drained(by=daemon)
