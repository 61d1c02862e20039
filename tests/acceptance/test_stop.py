"""How a daemon ends: softly at the first signal, hard at the second one or when its time is up."""

from __future__ import annotations

import signal
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from outboxd import acts
from outboxd.claims import SHARD_CLASS
from outboxd.inspection import inspect_table
from outboxd.load import load
from tests.acceptance.installation import RECORD_ALL, SCOPE
from tests.drains import connected
from tests.eventually import eventually
from tests.letters import write_letters

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
        assert await daemon.wait() == 1

    assert daemon.events("daemon.stopping_hard")[0]["reason"] == "second signal"
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
        assert await daemon.wait() == 1

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
        assert await daemon.wait() == 1

    assert daemon.events("daemon.stopping_hard")[0]["reason"] == "second signal"
    assert await installation.ids() == set(ids) - set(installation.delivered())
    assert len(set(installation.delivered())) == len(installation.delivered())


async def test_a_daemon_that_waits_for_its_database_stops_with_exit_0(bare: Installation) -> None:
    async with bare.daemon() as daemon:
        await daemon.wait_for_event("daemon.waiting")
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0


async def waits_for_a_lock(installation: Installation, session: str) -> bool:
    """Whether a session of outboxd stands behind a lock that somebody else holds."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = $1"
    return bool(await installation.connection.fetchval(waiting, f"outboxd: {session}"))


async def registered(installation: Installation) -> bool:
    return bool(await installation.count("SELECT count(*) FROM outboxd.worker"))


@pytest.mark.parametrize("lock", ["the shard", "a message"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_while_drain_waits_is_no_death(
    installation: Installation, lock: str, number: signal.Signals
) -> None:
    await installation.insert([7])
    await installation.connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour'")
    config = load(installation.config, environ={}).config
    async with connected(installation.dsn) as other, other.transaction():
        if lock == "the shard":
            key = await acts.lock_key(other, config, await inspect_table(other, config.outboxes[0]), (SCOPE, 7))
            await other.execute(f"SELECT pg_advisory_xact_lock({SHARD_CLASS}, {key})")
        else:
            await other.execute("SELECT FROM outbox FOR UPDATE")
        async with installation.daemon("drain", "ACCOUNT", "7") as drain:
            await installation.until(lambda: registered(installation), by=drain)
            drain.signal(number)
            assert await drain.wait() == 1

    assert "stopped by a signal before the shard was won; nothing was done" in drain.stderr
    assert "Traceback" not in drain.stderr
    assert await installation.left_behind() == []
    assert installation.delivered() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_while_once_starts_is_no_death(installation: Installation, number: signal.Signals) -> None:
    await installation.insert([7])
    async with connected(installation.dsn) as other:
        locking = other.transaction()
        await locking.start()
        await other.execute("LOCK TABLE outboxd.pause")
        async with installation.daemon("--once") as once:
            await installation.until(lambda: waits_for_a_lock(installation, "options"), by=once)
            assert await registered(installation)
            once.signal(number)
            await locking.rollback()
            assert await once.wait() == 0

    assert await installation.left_behind() == []
    assert installation.delivered() == []


HEAR = """\
from outboxd.stopping import Stopper


def hear(stopper, stop=Stopper.stop):
    stop(stopper)
    with (HERE / "heard").open("a") as file:
        file.write(".")


Stopper.stop = hear


@receiver("EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""


def has_heard(installation: Installation, count: int) -> bool:
    heard = installation.folder / "heard"
    return heard.exists() and len(heard.read_text()) == count


async def test_hanging_up_is_a_soft_stop_of_once_and_never_a_hard_one(installation: Installation) -> None:
    installation.receive(HEAR)
    ids = await installation.insert([7], objects=range(2))
    async with installation.daemon("--once") as once:
        await installation.until(lambda: bool(installation.delivered("start")), by=once)
        for count, number in enumerate((signal.SIGHUP, signal.SIGTERM, signal.SIGHUP), 1):
            once.signal(number)
            await installation.until(partial(has_heard, installation, count), by=once)
        installation.open("gate")
        assert await once.wait() == 0

    assert installation.delivered() == ids[:1]
    assert await installation.left_behind() == []


async def test_nohup_keeps_once_from_hearing_the_hangup(installation: Installation) -> None:
    installation.receive(HEAR)
    ids = await installation.insert([7], objects=range(2))
    async with installation.daemon("--once", through=("nohup",)) as once:
        await installation.until(lambda: bool(installation.delivered("start")), by=once)
        once.signal(signal.SIGHUP)
        installation.open("gate")
        assert await once.wait() == 0

    assert installation.delivered() == ids
    assert await installation.left_behind() == []


async def test_a_signal_ends_the_housekeeping_of_once(installation: Installation) -> None:
    installation.receive("import outboxd.once\n\noutboxd.once.HOUSEKEEPING_S_MAX = 3600.0\n\n\n" + RECORD_ALL)
    await write_letters(installation.connection, age_s=31 * 86_400)
    ids = await installation.insert([7])
    async with connected(installation.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE outboxd.dead_letter")
        async with installation.daemon("--once") as once:
            await installation.until(lambda: waits_for_a_lock(installation, "housekeeping"), by=once)
            once.signal(signal.SIGTERM)
            assert await once.wait() == 0

    assert once.events("dead_letters.not_purged") == []  # so it did not wait for the end of its patience
    assert "delivered 1," in once.stdout
    assert installation.delivered() == ids
    assert await installation.left_behind() == []
