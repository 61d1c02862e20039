"""`outboxd explain` beside real daemons: one that drains, one that was killed; and on narrow terminals and pipes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests import terminal
from tests.eventually import eventually
from tests.processes import ROOT

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation
    from tests.processes import Outboxd

WAIT_AT_GATE = """\
@receiver("UPDATE", "EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""


async def explained(installation: Installation, shard: int) -> dict[str, Any]:
    done = await installation.run("explain", "ACCOUNT", str(shard), "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


async def inside(installation: Installation, daemon: Outboxd) -> None:
    await installation.until(lambda: bool(installation.delivered("start")), by=daemon)


async def test_the_daemon_that_drains_the_shard_is_named_with_host_and_pid(installation: Installation) -> None:
    installation.receive(WAIT_AT_GATE)
    await installation.insert([7])
    async with installation.ready_daemon() as daemon:
        await inside(installation, daemon)

        document = await explained(installation, 7)
        idle = await explained(installation, 8)

        installation.open("gate")
        await installation.drained(by=daemon)

    holder = document["facts"]["claimed_by"]
    assert document["reason"] == "draining"
    assert (holder["pid"], holder["host"]) == (daemon.pid, socket.gethostname())
    assert f"pid {daemon.pid} on {socket.gethostname()}" in document["headline"]
    assert idle["reason"] == "empty"


async def test_a_running_drain_is_named_where_it_drains_and_is_no_daemon_elsewhere(installation: Installation) -> None:
    installation.receive(WAIT_AT_GATE)
    await installation.insert([7, 8])
    async with installation.daemon("drain", "ACCOUNT", "7") as drain:
        await inside(installation, drain)

        drained = await explained(installation, 7)
        other = await explained(installation, 8)

        installation.open("gate")
        assert await drain.wait() == 0

    holder = drained["facts"]["claimed_by"]
    assert drained["reason"] == "draining"
    assert (holder["pid"], holder["is_daemon"]) == (drain.pid, False)
    assert f"by the `outboxd drain` with pid {drain.pid} on {socket.gethostname()}" in drained["headline"]
    assert (other["reason"], other["facts"]["daemons"]) == ("no_daemon", [])


async def test_a_killed_daemon_is_no_daemon_and_is_named(installation: Installation) -> None:
    installation.receive(WAIT_AT_GATE)
    await installation.insert([7])
    async with installation.ready_daemon() as daemon:
        await inside(installation, daemon)
        daemon.signal(signal.SIGKILL)
        await daemon.wait()

    async def lock_is_free() -> bool:
        return (await explained(installation, 7))["facts"]["claimed_by"] is None

    await eventually(lock_is_free)
    document = await explained(installation, 7)

    assert document["reason"] == "no_daemon"
    assert f"pid {daemon.pid} on {socket.gethostname()} has died" in document["reasons"][0]["details"][0]


async def test_a_delivered_shard_is_empty(installation: Installation) -> None:
    await installation.insert([7])
    async with installation.ready_daemon() as daemon:
        await installation.drained(by=daemon)

        assert (await explained(installation, 7))["reason"] == "empty"


@pytest.mark.parametrize("columns", [40, 100])
async def test_lines_fit_the_terminal(installation: Installation, columns: int) -> None:
    await installation.insert([7])

    shown = await terminal.run(installation.config, "explain", "ACCOUNT", "7", columns=columns)

    lines = shown.splitlines()
    assert lines[0].startswith("no daemon is running")
    command = "  -> outboxd drain --outbox main ACCOUNT 7"
    assert command in lines
    assert max(len(line) for line in lines if line != command) <= columns
    assert "-> Start `outboxd`, or wait" in shown


async def test_a_pipe_that_is_closed_early_makes_no_noise(installation: Installation) -> None:
    await installation.insert([7])
    command = f"{sys.executable} -m outboxd --config {installation.config} explain ACCOUNT 7 | head -1"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    shown, noise = await process.communicate()

    assert (shown.decode().count("\n"), noise) == (1, b"")
