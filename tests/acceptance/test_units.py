"""The command lines and environments of the unit files, before a real notify socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.acceptance.servers import free_port
from tests.acceptance.systemd import Systemd
from tests.processes import ROOT, outboxd
from tests.units import Unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.acceptance.installation import Installation
    from tests.processes import Outboxd

CONFIG = "/etc/outboxd/config.toml"
FAIL = """\
@receiver("EVENT")
async def refuse(message):
    raise ValueError("not today")
"""


@pytest.fixture
async def systemd(server_folder: Path) -> AsyncIterator[Systemd]:
    manager = Systemd(str(server_folder / "notify"))
    yield manager
    manager.close()


@pytest.fixture(params=["outboxd.service", "outboxd@PORT.service"])
def daemon_unit(request: pytest.FixtureRequest) -> Unit:
    return Unit(request.param.replace("PORT", str(free_port())))


@contextlib.asynccontextmanager
async def started(unit: Unit, installation: Installation, systemd: Systemd) -> AsyncIterator[Outboxd]:
    """Start a service's ExecStart in the environment that systemd would make for it, and in no other."""
    credentials = installation.folder / "credentials"
    credentials.mkdir(exist_ok=True)
    (credentials / "dsn").write_text(installation.dsn + "\n")
    installation.configure(dsn="")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "CREDENTIALS_DIRECTORY": str(credentials),
        "NOTIFY_SOCKET": systemd.address,
        **unit.environment(str(credentials)),
    }
    for seconds in unit.all("Service", "WatchdogSec"):
        environment["WATCHDOG_USEC"] = str(int(float(seconds) * 1e6))
    as_systemd = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    as_systemd += ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"]
    arguments = [str(installation.config) if argument == CONFIG else argument for argument in unit.arguments()]
    async with outboxd(*arguments, through=as_systemd) as process:
        yield process


async def reload(unit: Unit, daemon: Outboxd) -> None:
    command = unit.one("Service", "ExecReload")
    environment = {"PATH": os.environ["PATH"], "MAINPID": str(daemon.pid)}
    shell = await asyncio.create_subprocess_exec("sh", "-c", command, env=environment)
    assert await shell.wait() == 0


async def test_a_unit_s_daemon_starts_feeds_reloads_and_stops(
    installation: Installation, systemd: Systemd, daemon_unit: Unit
) -> None:
    async with started(daemon_unit, installation, systemd) as daemon:
        await installation.until(lambda: "READY=1" in systemd.heard, by=daemon)
        await installation.until(lambda: bool(systemd.fed_at), by=daemon)
        await installation.insert([1])
        await installation.drained(by=daemon)

        systemd.heard.clear()
        await reload(daemon_unit, daemon)
        await installation.until(lambda: "READY=1" in systemd.heard, by=daemon)
        assert systemd.heard[0] == "RELOADING=1"

        daemon.signal(signal.SIGTERM)
        assert await daemon.wait(float(daemon_unit.one("Service", "TimeoutStopSec"))) == 0
        await installation.until(lambda: "STOPPING=1" in systemd.heard, by=daemon)


async def test_a_unit_s_daemon_waits_for_a_database_that_is_not_migrated(
    bare: Installation, systemd: Systemd, daemon_unit: Unit
) -> None:
    async with started(daemon_unit, bare, systemd) as daemon:
        await daemon.wait_for_event("daemon.waiting")
        assert "READY=1" not in systemd.heard

        bare.configure()
        await bare.migrate()
        await bare.until(lambda: "READY=1" in systemd.heard, by=daemon)


async def test_a_wrong_configuration_ends_with_a_code_that_prevents_a_restart(
    installation: Installation, systemd: Systemd, daemon_unit: Unit
) -> None:
    installation.drain["concurrency"] = 0
    async with started(daemon_unit, installation, systemd) as daemon:
        code = await daemon.wait()

    assert str(code) in daemon_unit.one("Service", "RestartPreventExitStatus").split(), daemon.stderr
    assert "READY=1" not in systemd.heard


async def test_replicas_of_the_template_run_side_by_side(installation: Installation, systemd: Systemd) -> None:
    """Each answers on the port that its name says, whatever the configuration has."""
    units = [Unit(f"outboxd@{free_port()}.service") for _ in range(2)]
    async with started(units[0], installation, systemd) as one, started(units[1], installation, systemd) as other:
        for daemon in (one, other):
            await daemon.wait_for_event("daemon.ready")
        for unit in units:
            await installation.until(functools.partial(is_ready, unit), by=one)


async def is_ready(unit: Unit) -> bool:
    """Whether the replica's own port says so: a little after READY=1, when each outbox was looked at."""
    async with aiohttp.request("GET", f"http://127.0.0.1:{unit.instance}/readyz") as answer:
        return answer.status == 200


async def test_a_single_run_delivers_and_prints_nothing(installation: Installation, systemd: Systemd) -> None:
    await installation.insert([1, 2, 3])
    async with started(Unit("outboxd-once.service"), installation, systemd) as run:
        assert await run.wait() == 0

    assert (run.stdout, run.stderr) == ("", "")
    assert await installation.count() == 0


async def test_a_single_run_in_which_something_fails_is_failed(installation: Installation, systemd: Systemd) -> None:
    installation.receive(FAIL)
    await installation.insert([1])
    async with started(Unit("outboxd-once.service"), installation, systemd) as run:
        assert await run.wait() == 1

    assert "not today" in run.stderr
    assert await installation.count() == 1
