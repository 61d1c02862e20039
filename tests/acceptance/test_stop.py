"""How a daemon ends: softly at the first signal, hard at the second one or when its time is up."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation

WORK = """\
@receiver("EVENT")
async def work(message):
    record(message, "start")
    await asyncio.sleep(message.id % 7 / 1000)
    record(message)
"""
HANG = {
    "a coroutine": """\
@receiver("EVENT")
async def hang(message):
    record(message, "start")
    await asyncio.Event().wait()
""",
    "a function": """\
@receiver("EVENT")
def hang(message):
    record(message, "start")
    time.sleep(3600)
""",
    "a coroutine that ignores its cancellation": """\
@receiver("EVENT")
async def hang(message):
    record(message, "start")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
""",
}
every_way_to_hang = pytest.mark.parametrize("code", HANG.values(), ids=HANG)


async def test_sigterm_under_load_settles_what_was_delivered_and_delivers_nothing_twice(
    installation: Installation,
) -> None:
    installation.receive(WORK)
    ids = await installation.insert(range(200), objects=range(10))
    async with installation.ready_daemon() as daemon:
        await eventually(lambda: len(installation.delivered()) > 100)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0

    first = installation.delivered()
    assert first
    assert len(first) < len(ids)
    assert set(first) == set(installation.delivered("start"))
    assert await installation.ids() == set(ids) - set(first)
    assert await installation.left_behind() == []

    await installation.once()

    assert Counter(installation.delivered()) == Counter(ids)
    assert await installation.count() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_daemon_stops_with_exit_0(installation: Installation, number: signal.Signals) -> None:
    installation.drain["poll_interval_s"] = 3600
    installation.configure()
    async with installation.ready_daemon() as daemon:
        daemon.signal(number)
        assert await daemon.wait() == 0

    assert daemon.events("daemon.stopped")[0]["hard"] is False
    assert await installation.left_behind() == []
    assert daemon.stdout == ""


async def test_a_soft_stop_waits_for_the_delivery_under_way(installation: Installation) -> None:
    installation.receive(
        '@receiver("EVENT")\nasync def wait(message):\n    await opened("gate")\n    record(message)\n'
    )
    ids = await installation.insert([1], objects=range(3))
    async with installation.ready_daemon() as daemon:
        daemon.signal(signal.SIGTERM)
        await daemon.wait_for_event("daemon.stopping")
        installation.open("gate")
        assert await daemon.wait() == 0

    assert len(installation.delivered()) <= 1
    assert await installation.ids() == set(ids) - set(installation.delivered())


@every_way_to_hang
async def test_a_second_sigterm_is_a_hard_stop(installation: Installation, code: str) -> None:
    installation.receive(code)
    ids = await installation.insert([1, 2])
    async with installation.ready_daemon() as daemon:
        await eventually(lambda: len(installation.delivered("start")) == 2)
        daemon.signal(signal.SIGTERM)
        await daemon.wait_for_event("daemon.stopping")
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait(5) == 1

    assert await installation.ids() == set(ids)
    assert await installation.count("SELECT count(*) FROM outboxd.failure") == 0
    assert await installation.left_behind() == []


@every_way_to_hang
async def test_the_end_of_the_grace_period_is_a_hard_stop(installation: Installation, code: str) -> None:
    installation.receive(code)
    installation.drain["grace_period_s"] = 0.2
    installation.configure()
    ids = await installation.insert([1])
    async with installation.ready_daemon() as daemon:
        await eventually(lambda: installation.delivered("start"))
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait(5) == 1

    assert daemon.events("daemon.stopping_hard")[0]["reason"] == "end of the grace period"
    assert await installation.ids() == set(ids)
    assert await installation.left_behind() == []


async def test_a_hard_stop_settles_what_was_delivered(installation: Installation) -> None:
    """One shard hangs while others are delivered."""
    installation.receive(
        '@receiver("EVENT")\n'
        "async def work(message):\n"
        "    if message.shard_identifier == 0:\n"
        "        await asyncio.Event().wait()\n"
        "    record(message)\n"
    )
    ids = await installation.insert(range(50), objects=range(4))
    async with installation.ready_daemon() as daemon:
        await eventually(lambda: len(installation.delivered()) > 20)
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGINT)  # two of one kind may arrive as one
        assert await daemon.wait(5) == 1

    assert await installation.ids() == set(ids) - set(installation.delivered())
    assert len(set(installation.delivered())) == len(installation.delivered())


async def test_a_daemon_that_waits_for_its_database_stops_with_exit_0(bare: Installation) -> None:
    async with bare.daemon() as daemon:
        await daemon.wait_for_event("daemon.waiting")
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait(10) == 0
